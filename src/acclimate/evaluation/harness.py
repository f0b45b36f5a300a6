"""Any task of lm-evaluation-harness asked of a model of ours: it builds the requests and aggregates, we answer and write.

Gao et al., https://github.com/EleutherAI/lm-evaluation-harness; needs the extra `harness`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from acclimate.errors import SourceError, UsageError, unknown
from acclimate.evaluation.continuations import Continuing
from acclimate.metrics.intervals import Score

SEED = 1234  # of its draws of shots
BOOTSTRAP = 1000  # draws for the standard error of what is no mean


@dataclass(frozen=True)
class Harness:
    """What lm-evaluation-harness made of a task (or of a group of tasks) and what it asked and got, a row a question."""

    name: str
    about: str
    scores: Mapping[str, Score]
    rows: tuple[Mapping[str, Any], ...]


def harness(
    names: Sequence[str | Mapping[str, Any]], asked: Continuing, limit: int = 0, manager: Any = None
) -> list[Harness]:
    """Its tasks by name, or as the tables that its YAML files hold. limit: questions of each task at most; 0 is all.

    manager: a TaskManager, where it should not look through all of its files. The interval of a score is normal, from the
    standard error that lm-evaluation-harness gives; where it gives none the interval is the value.
    UsageError without the extra and for a name that there is not, SourceError where its data cannot be had.
    """
    evaluator, loader, own = _library()
    manager = manager or loader()
    for name in names:
        if isinstance(name, str) and name not in manager.all_tasks:
            raise UsageError(unknown("task of lm-evaluation-harness", name, manager.all_tasks))
    try:
        loaded = manager.load([dict(name) if isinstance(name, Mapping) else name for name in names])
    except OSError as error:  # ConnectionError and what `datasets` raises are
        raise SourceError(
            f"lm-evaluation-harness could not get the data of {', '.join(map(str, names))}: {error}"
        ) from error
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)
    made = evaluator(lm=own(asked), task_dict=loaded, limit=limit or None, bootstrap_iters=BOOTSTRAP)
    return [_told(name, table, made) for name, table in made["results"].items()]


def _library() -> tuple[Any, Any, Any]:
    try:
        from lm_eval.evaluator import evaluate
        from lm_eval.tasks import TaskManager

        from acclimate.evaluation.harness_model import AcclimateLM
    except ImportError:
        raise UsageError("harness:NAME needs lm-evaluation-harness: pip install 'acclimate[harness]'") from None
    return evaluate, TaskManager, AcclimateLM


def _told(name: str, table: Mapping[str, Any], made: Mapping[str, Any]) -> Harness:
    asked = made["samples"].get(name, [])
    counts = [made["n-samples"][part]["effective"] for part in _leaves(name, made)]
    scores = {
        _plain(key): _score(float(value), table.get(_beside(key)), sum(counts))
        for key, value in table.items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float)
    }
    return Harness(
        f"harness:{name}", str(table.get("alias", name)).strip(" -"), scores, tuple(_row(one) for one in asked)
    )


def _leaves(name: str, made: Mapping[str, Any]) -> list[str]:
    """The tasks that a group is made of; a task itself."""
    inner = made.get("group_subtasks", {}).get(name) or []
    return [leaf for part in inner for leaf in _leaves(part, made)] or [name]


def _plain(key: str) -> str:
    """The metric of `metric,filter`, with the filter where it has a name."""
    metric, _, filtered = key.partition(",")
    return metric if filtered == "none" else f"{metric}_{filtered}"


def _beside(key: str) -> str:
    metric, _, filtered = key.partition(",")
    return f"{metric}_stderr,{filtered}"


def _score(value: float, stderr: Any, n: int) -> Score:
    error = float(stderr) if isinstance(stderr, int | float) else 0.0
    reach = NormalDist().inv_cdf(0.975) * error
    return Score(value, value - reach, value + reach, n, error)


def _row(one: Mapping[str, Any]) -> dict[str, Any]:
    """A question: what was asked, what came back, and its metrics."""
    return {
        "row": one["doc_id"],
        "filter": one["filter"],
        "asked": [list(arguments) for arguments in one["arguments"]],
        "answered": one["resps"],
        "target": one["target"],
        "metrics": {name: one[name] for name in one["metrics"]},
    }
