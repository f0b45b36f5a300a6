"""Learning from one's own completions, killed with SIGKILL anywhere: the same bits in the end (G28).

test_rollout_run.py breaks runs off by exceptions; here processes die. β is adapted from one iteration to the next, so the
file of completions is part of what must survive.
"""

import json
import os
import subprocess
import sys
from subprocess import PIPE

import pytest
import torch
from safetensors.torch import load_file

from tests import spelling, tiny
from tests.onpolicy import WORDS, films
from tests.runs import ROOT, SLOWER, same_run, verb

RECIPE = """
model: {home}/model
data: {train: {home}/rows.jsonl, test: {home}/test.jsonl}
task: {template: "{{ text.split()[:4] | join(' ') }}", chat: false}
method: {name: lora, rank: 4, targets: [linear], dropout: 0.3}
objective: {name: ppo}
rollouts: {prompts: 3, each: 2, epochs: 2, parts: 2, max_new_tokens: 5, temperature: 0.8, target: 1.0}
rewards: [{name: length, words: 3}]
training: {rate: 0.01, tokens_per_step: 60, tokens_per_pass: 40, precision: float32}
evaluation: {draws: 50, forgetting: false}
"""
JUDGED = """
model: {home}/model
data: {train: {home}/pairs.jsonl}
method: {name: lora, rank: 2, alpha: 16, targets: [linear]}
objective: {name: reward}
task: {chat: true}
training: {steps: 4, tokens_per_step: 300, rate: 0.02, precision: float32}
evaluation: {draws: 50, forgetting: false}
"""
WAYS = {
    "ptx": ("rollouts.ptx=0.5", "data.pretrain={home}/texts.jsonl"),
    "reward model": ("rewards=[{name: model, adapter: '{home}/judge/adapter'}]", "judge=[{name: length, words: 3}]"),
}
# Where a run dies: each of these calls is of a run that goes on from where the one before it died.
PLACES = {
    "completions are drawn and nobody has read them": ("acclimate.rewards.rollout:opinions", 1, 0),
    "completions are read and not written down": ("acclimate.run.iterations:save", 1, 0),
    "their file is half written": ("acclimate.run.iterations:save", 1, 60),
    "between rollout and update": ("acclimate.run.iterations:save", 1, -1),
    "between rollout and update, once more": ("acclimate.run.iterations:save", 2, -1),
    "inside an update, between two passes": ("acclimate.objectives.ppo:PPO.__call__", 11, 0),
    "inside an update, gradients formed": ("acclimate.training.fit:_mean_gradient", 5, -1),
    "inside the optimizer": ("torch.optim:AdamW.step", 6, 40),
    "updated and not logged": ("torch.optim:AdamW.step", 4, -1),
    "logged and not kept": ("acclimate.run.train:append_line", 6, -1),
    "while the checkpoint is written": ("acclimate.run.train:save", 2, 60),
    "while the checkpoint of an iteration's last update is written": ("acclimate.run.train:save", 1, 90),
    "another file of completions is half written": ("acclimate.run.iterations:save", 2, 120),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model with dropout, prompts, ordinary text, and a reward model trained on comparisons."""
    folder = tmp_path_factory.mktemp("alignment")
    tokenizer = spelling.byte_level()
    torch.manual_seed(0)
    tiny.llama(tied=True, vocab=len(tokenizer), dropout=0.2).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    parts = {
        "rows": films("the", 20),
        "test": films("this", 3),
        "texts": [{"text": f"it is {WORDS[n % 7]} and {WORDS[n % 3]} here"} for n in range(9)],
        "pairs": [
            {"prompt": f"say {WORDS[n % 7]} {n}", "chosen": WORDS[n % 3], "rejected": WORDS[n % 5] * 3}
            for n in range(24)
        ],
    }
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in {"recipe": RECIPE, "judge": JUDGED}.items():
        (folder / f"{name}.yaml").write_text(text.replace("{home}", str(folder)))
    verb("run", folder / "judge.yaml", "--out", folder / "judge", "--quiet")
    return folder


@pytest.fixture(scope="module")
def child():
    """child(request): what became of a run in a process of its own."""
    line = [sys.executable, "-m", "tests.crash.places"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(line, cwd=ROOT, env=environment, stdin=PIPE, stdout=PIPE, text=True) as process:

        def asked(request):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())["killed"]

        yield asked
        process.stdin.close()


def overrides(home, way):
    return [word.replace("{home}", str(home)) for word in (*WAYS[way], *SLOWER)]


@pytest.fixture(scope="module")
def straight(home, child):
    """straight(way): the folder of a run that nobody killed."""
    known = {}

    def made(way):
        if way not in known:
            known[way] = home / f"straight {way}"
            asked = {"recipe": str(home / "recipe.yaml"), "overrides": overrides(home, way), "out": str(known[way])}
            assert not child(asked)
        return known[way]

    return made


def assert_same(one, other):
    """The same run: adapter, log, answers, last checkpoint, and the completions that are still on disk."""
    same_run(one, other)
    names = sorted(path.name for path in (one / "rollouts").iterdir())
    assert names == sorted(path.name for path in (other / "rollouts").iterdir())
    for name in names:
        left, right = (load_file(folder / "rollouts" / name / "tensors.safetensors") for folder in (one, other))
        assert all(torch.equal(left[key], right[key]) for key in left), name
        assert (one / "rollouts" / name / "state.json").read_bytes() == (
            other / "rollouts" / name / "state.json"
        ).read_bytes()
    ours, theirs = (json.loads((folder / "report.json").read_text())["rollouts"] for folder in (one, other))
    assert ours == theirs
    assert len({row["beta"] for row in ours["iterations"]}) == len(ours["iterations"])


@pytest.mark.parametrize(("way", "places"), [("ptx", list(PLACES)), ("reward model", list(PLACES)[1::2])])
def test_killed_everywhere_and_the_same_bits(home, straight, child, tmp_path, way, places):
    """One run, killed at every place in turn, gone on with each time."""
    asked = {"recipe": str(home / "recipe.yaml"), "overrides": overrides(home, way), "out": str(tmp_path / "run")}
    for name in places:
        call, nth, line = PLACES[name]
        assert child({**asked, "call": call, "nth": nth, "line": line}), f"it never came so far: {name}"
    assert not child(asked)
    assert_same(straight(way), tmp_path / "run")
