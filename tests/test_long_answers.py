"""Fine-grained learning from end to end: three models of spans, then PPO on all of them, by the project's own recipes (E6)."""

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch

from acclimate.data.examples import Message, Preference, Ranking
from acclimate.data.read import read
from acclimate.data.template import Template
from acclimate.errors import DataError
from acclimate.methods import LoRA
from acclimate.methods.delta import adapt
from acclimate.models.load import load
from acclimate.recipe import parse
from acclimate.rewards.model import Heard
from acclimate.rewards.reward import Completion, Weighted, total
from acclimate.run.beside import bound
from acclimate.run.prepare import codec_of, prepare
from acclimate.run.rollouts import encode
from acclimate.run.rungs import load as comparison
from acclimate.tokens.codec import codec
from acclimate.tokens.pairs import compared
from tests import spelling, tiny
from tests.runs import verb

RECIPES = Path(__file__).parent.parent / "recipes" / "alignment"
WORDS = ("quick", "brown", "lazy", "good", "fox", "dog")
SMALL = ("training.precision=float32", "evaluation.draws=50", "evaluation.forgetting=false", "data.max_tokens=128")
MODELS = {
    "relevance": (),
    "factuality": ("objective.level=sentence", "objective.kinds.error=[Wrong-Grounding, Unverifiable]"),
    "completeness": ("objective.level=text", "objective.kinds.error=[Missing-Answer, Missing-Major-Auxiliary]"),
}
CHAT = codec(spelling.byte_level())


def answer(n):
    """An answer with its errors: "bad" is irrelevant, a sentence with "wrong" is wrong; every third lacks something."""
    text = f"The {WORDS[n % 6]} is {'bad' if n % 2 else 'here'}, {WORDS[n % 5]}. It is {'wrong' if n % 3 else 'so'}."
    found = [(text.find(word), kind) for word, kind in (("bad", "Irrelevant"), ("wrong", "Unverifiable"))]
    errors = [{"error type": kind, "start": at, "end": at + 3} for at, kind in found if at >= 0]
    return text, {"errors": errors, "missing-info": [{"error type": "Missing-Answer"}] * (n % 3 == 0)}


def published(n):
    text, feedback = answer(n)
    return {
        "question": f"what of {WORDS[n % 6]} {n}?",
        "passages": [{"title": WORDS[n % 4], "sentences": ["It is quick.", f"It has {n}."]}],
        "predictions": [text, "a dog", "a fox", "it"],
        "feedback": feedback,
        "preference": [1 + (n + i) % 2 for i, _ in enumerate(combinations(range(4), 2))],
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which the commands at the top of the recipes have been given, on a small model."""
    folder = tmp_path_factory.mktemp("long")
    tokenizer = spelling.byte_level()
    torch.manual_seed(0)
    tiny.llama(tied=True, vocab=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, numbers in {"train": range(24), "dev": range(100, 106)}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(published(n)) + "\n" for n in numbers))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        small = (*SMALL, "model=model", "training.steps=6", "training.tokens_per_step=400", "training.rate=0.01")
        for name, words in MODELS.items():
            verb("run", RECIPES / "span-rewards.yaml", *small, *words, "--out", f"runs/{name}", "--quiet")
        words = ("training.steps=3", "rollouts.prompts=3", "rollouts.max_new_tokens=12", "training.rate=0.02")
        small = (*SMALL, "model=model", "data.limit={dev: 4, test: 5}", *words)
        verb("compare", RECIPES / "long-answers.yaml", "--quick", *small, "--out", "answers", "--quiet")
    return folder


def answers_of(home, rung):
    result = json.loads((home / "answers" / "rungs" / rung / "result.json").read_text())
    return result["seeds"][0]["answers"]["task"]["outputs"]["text"]


def test_the_rungs_differ_in_the_weight_of_relevance_alone():
    found = comparison(RECIPES / "long-answers.yaml")
    weights = [[weight for weight, _ in rung.rewards] for rung in found.rungs]
    assert weights == [[0.4, 0.5, 0.3], [0.3, 0.5, 0.3], [0.2, 0.5, 0.3]]
    assert [each for _, each in found.rungs[1].rewards] == [each for _, each in found.shared.rewards]


def test_every_rung_writes_and_is_paid_by_three_models(home):
    found = json.loads((home / "answers" / "compare.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["relevance 0.4", "relevance 0.3", "relevance 0.2"]
    assert [row["failed"] for row in rows.values()] == [""] * 3
    for row in rows.values():
        assert {"length", "reward", "kl", "dist2"} <= row["scores"].keys()
        assert row["scores"]["length"]["n"] == 5
        assert 1 <= row["scores"]["length"]["value"] <= 12
    assert rows["relevance 0.4"]["scores"]["kl"]["value"] != 0
    texts = {name: [a["text"] for a in answers_of(home, name)] for name in ("relevance-0.4", "relevance-0.2")}
    assert texts["relevance-0.4"] != texts["relevance-0.2"]


def test_what_is_earned_is_the_weighted_sum_of_what_each_model_says(home, monkeypatch):
    """Each model opened by itself, on a base of its own, asked of the completions that a rung wrote (G19)."""
    monkeypatch.chdir(home)
    shared = comparison(RECIPES / "long-answers.yaml").shared
    rows = read(home / "dev.jsonl").rows[:5]
    more = ("It is so, bad. Yes", "fox", "So. It is wrong, bad. So, so.", "bad, bad", "")
    prompts, _ = encode(rows, Template(chat=CHAT.chat(), end=CHAT.eos_text), CHAT, 200, "error")
    said = answers_of(home, "relevance-0.4")
    given = [Completion(p.text, a["text"], True, p.fields, "x") for p, a in zip(prompts, said, strict=True)]
    given += [Completion(p.text, text, True, p.fields, "y") for p, text in zip(prompts, more, strict=True)]
    sums = [0.0] * len(given)
    for weight, reward in shared.rewards:
        marks = opened(reward)(given)
        sums = [before + weight * total(each) for before, each in zip(sums, marks, strict=True)]
    assert [a["value"] for a in said] == pytest.approx(sums[: len(said)])
    assert [total(marks) for marks in opened(Weighted(shared.rewards))(given)] == pytest.approx(sums)
    assert len({round(each, 6) for each in sums}) > 3


def opened(reward):
    """The reward on a policy of its own."""
    loaded = load("model", dtype=torch.float32)
    return bound(reward, adapt(loaded.model, LoRA(rank=2)), codec_of(loaded))


# Prompts of rows that people judged

TALK = (Message("user", "hello"), Message("assistant", "so"), Message("user", "why?"))


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    "asked", [TALK[:1], TALK, (Message("system", "be brief"), *TALK)], ids=["one", "talk", "system"]
)
def test_the_policy_is_asked_with_the_ids_that_a_reward_model_reads(asked, chat):
    """G4: prompt and completion as one row, of the policy and of a reward model with the same template."""
    template = Template("Q: {{ prompt }}\nA:", chat=CHAT.chat() if chat else None, end=CHAT.eos_text)
    row = Preference(asked, "the fox", "a dog", "f:1")
    if not chat and len(asked) > 1:
        with pytest.raises(DataError, match="several turns, which needs a chat format"):
            encode([row], template, CHAT, 200, "error")
        return
    (prompt,), _ = encode([row], template, CHAT, 200, "error")
    read_ = Heard(None, CHAT, template, 200).row(Completion(prompt.text, "the fox", fields=prompt.fields)).rows[0]
    assert read_.ids[: prompt.row.size] == prompt.row.ids
    assert not any(read_.scored[: prompt.row.size])
    assert read_.scored[prompt.row.size]
    assert read_ == compared(row, template, CHAT).rows[0]._replace(where="")


def test_rankings_and_feedback_are_asked_alike(home):
    template = Template(chat=CHAT.chat())
    ranking = Ranking(TALK, ("a", "b"), (1, 2), "f:2")
    same = Preference(TALK, "c", "d", "f:3")
    (one, two), _ = encode([ranking, same], template, CHAT, 200, "error")
    assert one.row.ids == two.row.ids
    row = read(home / "train.jsonl").rows[0]
    (asked,), _ = encode([row], template, CHAT, 200, "error")
    assert asked.text == row.prompt[0].content
    assert row.completion not in CHAT.decode(asked.row.ids)


def test_a_policy_is_asked_in_the_chat_format_its_reward_models_learned_with(home, monkeypatch):
    monkeypatch.chdir(home)
    words = [*SMALL, "model=model", "rewards=[{name: length, words: 3}]"]
    base = "model: m\ndata: {train: train.jsonl, test: dev.jsonl}\nobjective: ppo\nrollouts: {max_new_tokens: 8}\n"
    prepared = prepare(parse(base, "recipe", words))
    facts = json.loads((home / "runs" / "relevance" / "adapter" / "acclimate.json").read_text())
    assert prepared.recipe.task.chat is facts["task"]["chat"] is True
