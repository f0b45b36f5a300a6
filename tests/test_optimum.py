"""Tasks whose best reward is known, through the loop of a run: every way of learning from rewards finds it (G20)."""

import json
import random
from itertools import product
from statistics import fmean

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from acclimate.data.examples import Document
from acclimate.data.template import Template
from acclimate.evaluation.rollouts import Rewarded
from acclimate.recipe import parse
from acclimate.rewards import Function
from acclimate.rewards.rollout import Rollouts
from acclimate.run.carry import REFERENCE, installed, ready
from acclimate.run.draw import drawn
from acclimate.run.rollouts import encode
from acclimate.run.train import train
from acclimate.training.folder import RunFolder
from acclimate.training.signals import Stop

DIGITS = "123"
PAYS = dict(zip(DIGITS, (0.1, 1.0, 0.4), strict=True))  # what an arm of the bandit pays
PAIRS = ["".join(pair) for pair in product(DIGITS, repeat=2)]
TASKS = {"bandit": ["??"], "copy": PAIRS, "sorted": [f"s{a}{b}" for a, b in PAIRS if a != b]}
WRITTEN = {"bandit": 1, "copy": 2, "sorted": 2}
HOW = {  # steps, prompts and completions of an iteration, times that they are learned from, rate
    "bandit": (24, 4, 16, 2, 0.02),
    "copy": (28, 9, 8, 2, 0.01),
    "sorted": (48, 6, 32, 2, 0.004),
}
RIGHT = {"bandit": 0.2, "copy": 0.5, "sorted": 0.5}  # of the demonstrations that the base learned from
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]
RECIPE = """
model: {home}/model
data: {train: {home}/{task}.jsonl, test: {home}/other.jsonl, dev: {home}/other.jsonl}
task: {template: "{{ text }}", chat: false}
method: full
rewards: [{name: function, function: "tests.test_optimum:scalar"}]
rollouts: {prompts: {prompts}, each: {each}, epochs: {epochs}, beta: 0.0, max_new_tokens: {written}}
training: {steps: {steps}, rate: {rate}, precision: float32, seed: {seed}}
"""
WAYS = {
    "ppo": ("objective=ppo",),
    "fine-grained ppo": ("objective=ppo", "rewards=[{name: function, function: 'tests.test_optimum:dense'}]"),
    "grpo": ("objective=grpo",),
    "rloo": ("objective=rloo",),
    # Comparisons of completions that were drawn hot: what was never drawn is put behind nothing, and gains what they lose.
    "dpo": (
        "objective={name: dpo, beta: 0.5}",
        "data.sampled={prompts: 9, each: 64}",
        "rollouts.temperature=4",
        "training.steps=60",
        "training.rate=0.005",
    ),
}


def dense(completions):
    """(end, score) of every digit that was written; those of the best completion earn 1 together."""
    return [[(end, _worth(c.prompt, end - 1, digit)) for end, digit in enumerate(c.text, start=1)] for c in completions]


def scalar(completions):
    """The same in all, at the end."""
    return [sum(score for _, score in marks) for marks in dense(completions)]


def _worth(prompt, place, digit):
    if prompt == "??":
        return PAYS.get(digit, 0.0)
    return float(best(prompt)[place : place + 1] == digit) / 2


def best(prompt):
    """The completion that earns 1."""
    return "2" if prompt == "??" else "".join(sorted(prompt[1:])) if prompt[0] == "s" else prompt


def shown(model, tokenizer):
    """Demonstrations of which RIGHT are right and the rest random: what a policy starts from."""
    draw, optimizer = random.Random(0), torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(40):
        for task, prompts in TASKS.items():
            asked = prompts * (48 // len(prompts))
            said = [
                best(p) if draw.random() < RIGHT[task] else "".join(draw.choices(DIGITS, k=WRITTEN[task]))
                for p in asked
            ]
            ids = torch.tensor([tokenizer.encode(p + text) for p, text in zip(asked, said, strict=True)])
            start = len(prompts[0])
            logits = model(input_ids=ids).logits[:, start - 1 : -1]
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, start:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model of one layer that is often wrong, and prompts."""
    folder = tmp_path_factory.mktemp("optimum")
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", "</s>", *DIGITS, "?", "s"])}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>")
    made.save_pretrained(folder / "model")
    torch.manual_seed(0)
    sizes = {"vocab_size": len(made), "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 16}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.15, eos_token_id=1, pad_token_id=1))
    shown(model, made)
    model.save_pretrained(folder / "model")
    for name, texts in {**TASKS, "other": ["ss"]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def recipe_of(home, task, seed, *words):
    table = dict(zip(("steps", "prompts", "each", "epochs", "rate"), HOW[task], strict=True))
    table |= {"home": home, "task": task, "seed": seed, "written": WRITTEN[task]}
    text = RECIPE
    for name, value in table.items():
        text = text.replace("{" + name + "}", str(value))
    return parse(text, "recipe", words)


def trained(recipe, folder):
    run = RunFolder(folder, -1)
    prepared, model = installed(drawn(recipe, folder, lambda line: None, lambda: None))
    prepared = ready(prepared, model, (), folder / REFERENCE, {"weights": ""}, lambda what, n: lambda done: None)
    train(prepared, model, run, Stop(), (), lambda step: None, lambda line: None, resumable=False)
    return prepared, model


def asked(model, codec, task, each, seed=99):
    """`each` completions of every prompt, as (prompt, text, what it earns)."""
    rows = [Document(text, text) for text in TASKS[task] for _ in range(each)]
    prompts, _ = encode(rows, Template("{{ text }}"), codec, 8, "error")
    how = Rollouts(max_new_tokens=WRITTEN[task])
    said = Rewarded(model, prompts, Function(f"{__name__}:scalar"), how, codec, seed, None)(rows)
    return [(row.text, output.text, output.value) for row, output in zip(rows, said, strict=True)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("way", WAYS)
def test_the_best_reward_is_found(home, tmp_path, way, task, seed):
    prepared, model = trained(recipe_of(home, task, seed, *WAYS[way]), tmp_path)
    assert fmean(earned for *_, earned in asked(model, prepared.codec, task, 8)) >= 0.95
