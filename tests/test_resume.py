"""A run that is broken off anywhere and resumed is the run that was not: weights, optimizer, log, answers (G28).

Broken off by an exception here, so that every place can be tried; test_run.py and test_checkpoint_crashes.py kill processes.
"""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from zlib import crc32

import pytest
import torch
from safetensors.torch import load_file

from acclimate.errors import UsageError
from acclimate.recipe import parse
from acclimate.run.carry import Voice, carry
from acclimate.training.folder import claim
from acclimate.training.signals import Stop
from tests import spelling, tiny

STEPS = 8
QUIET = Voice(lambda line: None, lambda what, n: lambda done: None, lambda step, steps: None, lambda prepared: None)
WAYS = {
    "lora": ("method.dropout=0.3", "objective=lm"),
    "lora by row, cut into passes": ("method.dropout=0.3", "objective=sequence_lm", "training.tokens_per_pass=32"),
    "full": ("method=full", "training.rate=0.002", "training.decay=0.1", "training.schedule=linear"),
    "head": ("method=head",),
}


class Killed(BaseException):
    """Nothing in the package expects it."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model that drops attention weights while training, so that every step draws random numbers; and rows."""
    folder = tmp_path_factory.mktemp("resume")
    tokenizer = spelling.byte_level()
    torch.manual_seed(0)
    tiny.llama(tied=True, vocab=len(tokenizer), dropout=0.2).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"text": f"{a} {b} {n}", "label": b} for n in range(14) for a in ("the", "this") for b in ("good", "bad")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(home: Path, out: Path, way: str, voice: Voice = QUIET, *more: str) -> None:
    """Begin the run in `out`, or go on with it; the global generator is where a new process could have it."""
    torch.manual_seed(crc32(str(out).encode()))
    text = f"""
model: {home}/model
data: {{train: {home}/rows.jsonl}}
task: {{template: "is it good or bad? {{{{ text }}}}:", labels: [bad, good]}}
method: {{name: lora, rank: 2}}
training: {{steps: {STEPS}, tokens_per_step: 96, rate: 0.02, checkpoint_every: 3, dev_every: 2, precision: float32}}
evaluation: {{draws: 20, forgetting: false}}
"""
    with claim(out, resume=(out / "recipe.yaml").exists()) as folder:
        carry(parse(text, overrides=[*WAYS[way], *more]), folder, Stop(), voice)


def killed_after(step: int) -> Voice:
    """Dies when it hears of this step."""

    def hear(done: object, steps: int) -> None:
        if done.index == step:  # type: ignore[attr-defined]
            raise Killed

    return replace(QUIET, step=hear)


def killed_at(tick: int) -> Voice:
    """Dies at the so-manieth sign of life of the evaluations."""
    ticks = count(1)

    def hear(done: int) -> None:
        if next(ticks) == tick:
            raise Killed

    return replace(QUIET, told=lambda what, n: hear)


@pytest.fixture(scope="module")
def straight(home, tmp_path_factory):
    """straight(way): the folder of the run that nothing disturbed."""
    known: dict[str, Path] = {}

    def made(way: str) -> Path:
        if way not in known:
            known[way] = tmp_path_factory.mktemp("straight") / "run"
            run(home, known[way], way)
        return known[way]

    return made


def assert_same(one: Path, other: Path) -> None:
    (artifact,) = (path.name for path in (one / "adapter").glob("*.safetensors"))
    for name in (f"adapter/{artifact}", "adapter/acclimate.json", "log.jsonl", "predictions.jsonl", "recipe.yaml"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    last = f"checkpoints/step-{STEPS:08d}/tensors.safetensors"
    left, right = load_file(one / last), load_file(other / last)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    ours, theirs = (json.loads((folder / "report.json").read_text()) for folder in (one, other))
    for key in ("seconds", "tokens_per_second", "peak_memory_bytes"):
        ours["training"].pop(key), theirs["training"].pop(key)
    assert ours == theirs


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", [1, 5])
def test_killed_after_a_step(home, straight, tmp_path, way, step):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        run(home, out, way, killed_after(step))
    assert not (out / "report.json").exists()
    run(home, out, way)
    assert_same(straight(way), out)


@pytest.mark.parametrize("tick", [1, 2])
def test_killed_while_evaluating(home, straight, tmp_path, tick):
    """The first sign of life is the base's, the second the result's: nothing is asked or trained twice."""
    out, heard = tmp_path / "run", []
    with pytest.raises(Killed):
        run(home, out, "lora", killed_at(tick))
    run(home, out, "lora", replace(QUIET, step=lambda step, steps: heard.append(step.index)))
    assert len(heard) == (STEPS if tick == 1 else 0)
    assert_same(straight("lora"), out)


def test_killed_again_and_again(home, straight, tmp_path):
    out = tmp_path / "run"
    for step in (2, 4, 4, 7, 8):
        with pytest.raises(Killed):
            run(home, out, "lora", killed_after(step))
    run(home, out, "lora")
    assert_same(straight("lora"), out)


def test_a_broken_newest_checkpoint_costs_its_steps_only(home, straight, tmp_path):
    out, said = tmp_path / "run", []
    with pytest.raises(Killed):
        run(home, out, "lora", killed_after(7))
    (out / "checkpoints" / "step-00000006" / "state.json").write_text("{}")
    run(home, out, "lora", replace(QUIET, say=said.append))
    assert any("step-00000006 is broken" in line for line in said)
    assert_same(straight("lora"), out)


def test_without_the_word_resume_nothing_goes_on(home, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        run(home, out, "lora", killed_after(4))
    with pytest.raises(UsageError, match=r"unfinished run; continue it with --resume"):
        claim(out, resume=False)
