"""Runs named tests on a copy of the package in a process of its own: torch is imported once, and forked for every copy.

A child whose tests were not carried out (it hung, or pytest's exit code is neither 0 nor 1) is asked a second time, alone.

One JSON request a line on stdin: `source` (the folder that holds the copy of `acclimate`), `tests`, `scratch`, `most`
(failures after which it stops; 0: none).
The answer is `scratch`/answer.json: `package` (where acclimate came from), `passed`, `failed` (test → how it failed),
`code` (pytest's own exit code: 0 all passed, 1 some failed, anything else: they were not carried out).
"""

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MODELS = ("llama", "gpt2", "bert", "t5", "bart")
HEAVY = (
    "torch", "torch.utils.checkpoint", "tokenizers", "transformers", "transformers.masking_utils", "jaxtyping",
    "beartype.door", "hypothesis", "transformers.integrations.sdpa_attention", "sacrebleu", "rouge_score.rouge_scorer",
    *(f"transformers.models.{kind}.modeling_{kind}" for kind in MODELS),
)  # fmt: skip
AT_ONCE = min(4, os.cpu_count() or 1)
LONGEST = 600  # seconds of one child: a fork can inherit a lock that nobody holds any more


class Results:
    """Which tests passed, and what the others said in the end."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failed[report.nodeid] = f"{report.when}: {crash.message if crash else report.longrepr}"[:300]
        elif report.when == "call" and report.passed:
            self.passed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed[report.nodeid] = f"collect: {report.longrepr}"[-300:]


def run(request: dict[str, object]) -> dict[str, object]:
    """In the forked child: the tests of one request."""
    source, scratch = str(request["source"]), str(request["scratch"])
    sys.path.insert(0, source)
    os.environ |= {"PYTHONPATH": source, "HYPOTHESIS_STORAGE_DIRECTORY": scratch}
    options = ["-p", "no:cacheprovider", "-o", "addopts=", "--disable-socket", "--allow-unix-socket", "--timeout=400"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins, which are here already
    options += [f"--basetemp={scratch}/tmp", f"--rootdir={ROOT}", f"--maxfail={request['most']}"]
    results = Results()
    code = pytest.main([*options, *map(str, request["tests"])], plugins=[results])  # type: ignore[call-overload]
    return {**vars(results), "code": int(code), "package": str(sys.modules["acclimate"].__file__)}


def fork(request: dict[str, object]) -> int:
    """A child that answers, by its number; what pytest prints lies beside the answer."""
    child = os.fork()
    if not child:
        scratch = Path(str(request["scratch"]))
        try:
            told = os.open(scratch / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(told, 1)
            os.dup2(told, 2)
            (scratch / "answer.json").write_text(json.dumps(run(request)), encoding="utf-8")
        finally:
            os._exit(0)
    return child


def children(requests: list[dict[str, object]], at_once: int) -> None:
    """One child per request, so many at a time; one that takes longer than LONGEST is stopped."""
    waiting, running = list(requests), dict[int, float]()
    while waiting or running:
        while waiting and len(running) < at_once:
            running[fork(waiting.pop(0))] = time.monotonic() + LONGEST
        child, _ = os.waitpid(-1, os.WNOHANG)
        if child:
            del running[child]
            continue
        for late in [child for child, until in running.items() if time.monotonic() > until]:
            os.kill(late, signal.SIGKILL)
        time.sleep(0.05)


def carried_out(request: dict[str, object]) -> bool:
    """Whether the child answered, and pytest did what it was asked."""
    answer = Path(str(request["scratch"]), "answer.json")
    return answer.exists() and json.loads(answer.read_text(encoding="utf-8"))["code"] in (0, 1)


def main() -> None:
    for name in HEAVY:
        importlib.import_module(name)
    assert "acclimate" not in sys.modules
    os.chdir(ROOT)
    requests = [json.loads(line) for line in sys.stdin]
    children(requests, AT_ONCE)
    children([request for request in requests if not carried_out(request)], 1)


if __name__ == "__main__":
    main()
