"""What a recipe will take, said before it is run, beside what it took; and what evaluation holds, whatever the data's size.

Measured are bytes of tensors: every block that torch's allocator hands out or takes back, as its own profiler records them,
from the first update to the last. The memory of a whole process is mostly torch itself, so that a forecast of it would be
near the truth whatever it said of the model; one test asks for it all the same.
"""

import gc
import json
import os
import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from acclimate.data.examples import Example
from acclimate.data.template import Template
from acclimate.evaluation.predictor import Choose, Generate
from acclimate.models.gated import lean
from acclimate.recipe import parse
from acclimate.run import iterations, reference
from acclimate.run.carry import installed
from acclimate.run.predict import MB, predict
from acclimate.run.prepare import prepare
from acclimate.run.train import collated, set_mode, train
from acclimate.tokens.schedule import passes, plan
from acclimate.training.folder import claim
from acclimate.training.signals import Stop
from tests import spelling, tiny
from tests.runs import ROOT, verb

VOCAB = 8192
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "good", "bad", "film", "review"]


def llama():
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCAB, num_key_value_heads=2, tie_word_embeddings=True, **SIZES, **special)
    )


def bert(vocab):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0}
    return BertModel(BertConfig(vocab_size=vocab, **SIZES, **still))


def t5():
    sizes = {"d_model": 256, "d_kv": 64, "d_ff": 768, "num_layers": 4, "num_heads": 4, "dropout_rate": 0.0}
    special = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCAB, **sizes, **special))


def said(number, words):
    return " ".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(words))


ROWS = {
    "labels": lambda n: {"text": f"{n} {said(n, 30)}", "label": ("good", "bad")[n % 2]},
    "texts": lambda n: {"prompt": f"{n} {said(n, 40 + n % 30)}", "completion": said(n + 1, 30)},
    "long": lambda n: {"text": f"{n} {said(n, 300 + 20 * (n % 10))}"},
    "pairs": lambda n: {"prompt": f"{n} {said(n, 40)}", "chosen": said(n, 20), "rejected": said(n + 1, 24)},
    "prompts": lambda n: {"text": f"{n} {said(n, 24)}"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Models of 11 to 27 MB, and rows."""
    folder = tmp_path_factory.mktemp("plan")
    torch.manual_seed(0)
    pieces, words = spelling.byte_level(), spelling.wordpiece()
    for name, model, tokenizer in (
        ("llama", llama(), pieces),
        ("bert", bert(len(words)), words),
        ("t5", t5(), pieces),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, row in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row(n)) + "\n" for n in range(60)))
    return folder


RECIPE = """
model: {home}/{model}
data: {{train: {home}/{data}.jsonl, limit: {{test: 2, dev: 4}}}}
task: {{{task}}}
method: {method}
training: {{steps: 2, tokens_per_step: {tokens}, rate: 0.0005, precision: float32}}
evaluation: {{draws: 50, forgetting: false}}
"""
TEXT = 'template: "{{ prompt }}", chat: false, max_new_tokens: 4'
LORA = "{name: lora, rank: 8, targets: [linear]}"
PPO = """
objective: {name: ppo}
rollouts: {prompts: 12, epochs: 1, max_new_tokens: 32}
rewards: [{name: lexicon}]
"""
FIXTURES = {  # model, data, task, method, tokens of a step, and what else the recipe says
    "full": ("llama", "texts", TEXT, "full", "512, tokens_per_pass: 256", ""),
    "lora": ("llama", "texts", TEXT, LORA, 512, ""),
    "qlora": ("llama", "texts", TEXT, "{name: qlora, rank: 8}", 512, ""),
    "prefix": ("llama", "texts", TEXT, "{name: prefix}", 512, ""),
    "head": ("bert", "labels", "labels: [good, bad]", "head", 2048, ""),
    "encoder-decoder": ("t5", "texts", TEXT, LORA, 512, ""),
    "dpo": ("llama", "pairs", "chat: false", LORA, 512, "objective: {name: dpo}"),
    "reward": ("llama", "pairs", "chat: false", LORA, 512, "objective: {name: reward}"),
    "ppo": ("llama", "prompts", 'template: "{{ text }}", chat: false, max_new_tokens: 4', LORA, 512, PPO),
    "long": ("llama", "long", "chat: false, max_new_tokens: 4", "{name: lora, rank: 8}", 1280, ""),
}


def text_of(home, name):
    model, data, task, method, tokens, more = FIXTURES[name]
    return RECIPE.format(home=home, model=model, data=data, task=task, method=method, tokens=tokens) + more


def most(record):
    """The most bytes above those at its start that were handed out at a time, from torch's own record."""
    events = record.profiler.kineto_results.events()
    now, found = 0, 0
    for event in events:
        if event.name() == "[memory]":
            now += event.nbytes()
            found = max(found, now)
    return found


def recorded():
    gc.collect()
    return profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)


def measured(recipe, folder):
    """Bytes: the most that tensors took while the recipe trained, the model's own among them."""
    prepared, model = installed(prepare(recipe))
    reference.hold_bias(prepared, model)
    prepared = iterations.ready(prepared, model)
    kept = prepared.rolled.originals.values() if prepared.rolled else ()
    held = [t.untyped_storage() for t in (*model.parameters(), *model.buffers(), *kept)]
    start = sum({storage.data_ptr(): storage.nbytes() for storage in held}.values())
    with recorded() as record:
        train(prepared, model, claim(folder, resume=False), Stop(), [], quiet, quiet, resumable=False)
    return start + most(record)


def quiet(what):
    """Nobody listens."""


@pytest.mark.parametrize("name", FIXTURES)
def test_the_forecast_is_near_the_peak(home, tmp_path, name):
    """Within a fifth (G33)."""
    recipe = parse(text_of(home, name), name)
    forecast = predict(recipe)
    peak = measured(recipe, tmp_path / "run")
    print(
        f"{name}: forecast {forecast.tensors / MB:.1f} MB, measured {peak / MB:.1f} MB, {forecast.tensors / peak:.3f}"
    )
    assert forecast.tensors == pytest.approx(peak, rel=0.2)
    assert forecast.tensors > 1.2 * forecast.weights  # not the weights alone


def test_a_whole_process_is_forecast(home, tmp_path):
    """What a run reports of itself on this machine, within a fifth: torch, metrics, tensors, and holes in the heap."""
    (tmp_path / "recipe.yaml").write_text(text_of(home, "lora"))
    words = [sys.executable, "-m", "acclimate"]
    given = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "cwd": ROOT, "check": True, "capture_output": True}
    told = subprocess.run([*words, "plan", tmp_path / "recipe.yaml", "--json"], **given).stdout
    subprocess.run([*words, "run", tmp_path / "recipe.yaml", "--out", tmp_path / "run", "--quiet"], **given)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    forecast, peak = json.loads(told)["memory"], report["training"]["peak_memory_bytes"]
    print(f"process: forecast {forecast / MB:.0f} MB, measured {peak / MB:.0f} MB, {forecast / peak:.2f}")
    assert forecast == pytest.approx(peak, rel=0.2)


# Activations


def saved(recipe):
    """Bytes and tokens of the pass that is the heaviest of the recipe's: what autograd keeps of it, weights left out."""
    prepared, model = installed(prepare(recipe))
    set_mode(prepared, model)
    rows, given, kept = prepared.train.rows, recipe.training, {}
    sizes = [row.size for row in rows]
    cut = [part for step in plan(sizes, given.tokens_per_step, 2, given.seed) for part in passes(step, sizes, 4096)]
    part = max(cut, key=lambda part: sum(sizes[i] for i in part))
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with lean(model), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = prepared.objective(model, collated(prepared, model, [rows[i] for i in part], part))
    assert loss.total.requires_grad
    found = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
    return found, sum(sizes[i] for i in part)


def test_activations_of_a_token_are_told(home, tmp_path, capsys):
    """As many bytes as autograd keeps when the heaviest pass is really computed, and a fifth where they are made again."""
    (tmp_path / "recipe.yaml").write_text(text_of(home, "lora"))
    verb("plan", tmp_path / "recipe.yaml", "--json")
    told = json.loads(capsys.readouterr().out)
    found, tokens = saved(parse(text_of(home, "lora")))
    assert told["activations"] == pytest.approx(found, rel=0.05)
    assert told["activation_bytes_per_token"] == told["activations"] // tokens
    verb("plan", tmp_path / "recipe.yaml", "training.checkpointing=true")
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("activations: "))
    again = predict(parse(text_of(home, "lora"), "", ["training.checkpointing=true"]))
    assert line.startswith(f"activations: {again.activation_bytes_per_token / 1024:,.0f} KB a token")
    assert 0 < again.activations < told["activations"] / 5
    assert again.tensors < told["tensors"]


def test_paged_states_take_no_memory(home):
    plain, paged = (predict(parse(text_of(home, "full"), "", [f"training.paged={way}"])) for way in ("false", "true"))
    assert paged.paged == plain.optimizer == 8 * plain.trainable_parameters
    assert plain.tensors - paged.tensors == pytest.approx(plain.optimizer, rel=0.3)


# Evaluation


@pytest.fixture(scope="module")
def asked(reader):
    """A small model that reads what `reader` spells, and n questions of two labels each, all of one length."""
    torch.manual_seed(0)
    model = tiny.llama(vocab=len(reader.tokenizer)).eval()
    rows = lambda n: [Example(f"{i + 100:03d} {said(0, 6)}", ("good", "bad")[i % 2]) for i in range(n)]  # noqa: E731
    return model, rows


@pytest.mark.parametrize("way", ["likelihood", "generation"])
def test_evaluation_holds_the_same_whatever_the_data(asked, reader, way):
    """Eight times the rows, the same peak of tensors: at each time those of one batch."""
    model, rows = asked
    template = Template("{{ prompt }}:")
    if way == "likelihood":
        answer = Choose(model, reader, template, ("good", "bad"), 256, budget=512)
    else:
        answer = Generate(model, reader, template, 256, 8, budget=512)
    peaks = []
    answer(rows(4))  # what is tried and made ready once, for the first answer
    for count in (60, 480):  # the smaller number fills a batch as well
        with recorded() as record:
            assert len(answer(rows(count))) == count
        peaks.append(most(record))
    assert peaks[0] > 100_000
    assert peaks[1] == pytest.approx(peaks[0], rel=0.05)
