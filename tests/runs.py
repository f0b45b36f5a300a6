"""A small model with its data and recipe in a folder, and runs of it that several test files look at."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from acclimate.cli.main import app
from acclimate.errors import AcclimateError
from acclimate.tokens.codec import codec
from tests import spelling, tiny

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def reader():
    """A tokenizer's conventions, without a chat format."""
    return codec(spelling.byte_level(template=None))


@pytest.fixture(scope="module")
def model(reader):
    """A small model in float64 that reads what `reader` spells."""
    torch.manual_seed(0)
    return tiny.llama(vocab=len(reader.tokenizer)).double().eval()


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with a model, its data and a recipe that takes a second or two."""
    folder = tmp_path_factory.mktemp("home")
    tokenizer = spelling.byte_level()
    torch.manual_seed(0)
    model = tiny.llama(tied=True, vocab=len(tokenizer))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"text": f"{a} {b} {n}", "label": b} for n in range(12) for a in ("the", "this") for b in ("good", "bad")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(
        f"""model: {folder}/model
data: {{train: {folder}/rows.jsonl}}
task: {{template: "is it good or bad? {{{{ text }}}}:", labels: [bad, good], chat: false}}
method: {{name: lora, rank: 4, targets: [query, value, up]}}
training: {{steps: 12, tokens_per_step: 128, rate: 0.02, seed: 0, checkpoint_every: 4, precision: float32}}
evaluation: {{draws: 200, forgetting: false}}
"""
    )
    return folder


def verb(*words, expect=0):
    """One call of the command line in this process; its status is that of the error it raises."""
    try:
        app([str(word) for word in words], standalone_mode=False)
        status = 0
    except AcclimateError as error:
        status = error.status
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    assert status == expect
    return status


@pytest.fixture(scope="session")
def finished(home):
    """One finished run."""
    out = home / "finished"
    verb("run", home / "recipe.yaml", "--out", out, "--quiet")
    return out


def child(home, out, *words):
    line = [sys.executable, "-m", "acclimate", "run", str(home / "recipe.yaml"), "--out", str(out), "--quiet", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # a suite that runs in the background of a shell has SIGINT ignored, and children inherit that
    heeding = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    return subprocess.Popen(line, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heeding)


def steps_logged(out):
    path = out / "log.jsonl"
    return path.read_text().count('"loss": ') if path.exists() else 0


def wait_for(out, steps, process):
    for _ in range(3000):
        if steps_logged(out) >= steps or process.poll() is not None:
            return
        time.sleep(0.02)
    raise AssertionError("the child never reached its step")


SLOWER = ("training.steps=40", "training.checkpoint_every=3")


@pytest.fixture(scope="session")
def straight(home):
    """A run of forty steps without interruption."""
    out = home / "straight"
    verb("run", home / "recipe.yaml", *SLOWER, "--out", out, "--quiet")
    return out


def same_run(one, other):
    for name in ("adapter/adapter_model.safetensors", "log.jsonl", "predictions.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    ours, theirs = (next(iter(sorted((d / "checkpoints").iterdir(), reverse=True))) for d in (one, other))
    left, right = load_file(ours / "tensors.safetensors"), load_file(theirs / "tensors.safetensors")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def overrides(text: str) -> list[str]:
    """`a.b=c d.e={f: g}` as overrides; a space before a word without `=` belongs to the value.

    >>> overrides("task.system=be brief data.limit={train: 3}")
    ['task.system=be brief', 'data.limit={train: 3}']
    """
    found: list[str] = []
    for word in text.split():
        if "=" in word:
            found.append(word)
        else:
            found[-1] += f" {word}"
    return found
