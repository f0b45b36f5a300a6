"""What is measured: one file a family, one class a metric. No torch here.

>>> [metric.name for metric in choose(["accuracy", "rougeL"], ("no", "yes"))]
['accuracy', 'rougeL']
"""

from collections.abc import Iterable, Mapping

from acclimate.errors import RecipeError, unknown
from acclimate.metrics.labels import Accuracy, BalancedAccuracy, ExactMatch, MacroF1, plain
from acclimate.metrics.likelihood import BitsPerByte, Perplexity
from acclimate.metrics.metric import Metric, Summed
from acclimate.metrics.overlap import Bleu, Chrf, Rouge1, Rouge2, RougeL

_OF_LABELS: Mapping[str, type[Accuracy] | type[BalancedAccuracy] | type[MacroF1]] = {
    metric.name: metric for metric in (Accuracy, BalancedAccuracy, MacroF1)
}
_OF_TEXT: Mapping[str, type[Summed]] = {
    metric.name: metric for metric in (ExactMatch, Rouge1, Rouge2, RougeL, Bleu, Chrf, Perplexity, BitsPerByte)
}
METRICS: Mapping[str, type[Summed]] = {**_OF_LABELS, **_OF_TEXT}


def choose(names: Iterable[str], labels: tuple[str, ...] | None = None) -> tuple[Metric, ...]:
    """The metrics called `names`, those of labels built with `labels`.

    RecipeError for a name that does not exist, and for a metric of labels where the task has none or two alike.
    """
    return tuple(_build(name, labels or ()) for name in dict.fromkeys(names))


def default_metrics(labels: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Names for a recipe that asks for none, the first one the headline."""
    return ("balanced_accuracy", "accuracy", "macro_f1") if labels else ("rougeL", "rouge1", "rouge2")


def describe() -> dict[str, str]:
    """One line for each metric."""
    return {name: (metric.__doc__ or "").splitlines()[0] for name, metric in METRICS.items()}


def _build(name: str, labels: tuple[str, ...]) -> Metric:
    if name in _OF_TEXT:
        return _OF_TEXT[name]()
    if name not in _OF_LABELS:
        raise RecipeError(unknown("metric", name, METRICS))
    if not labels:
        free = ", ".join(sorted(_OF_TEXT))
        raise RecipeError(f"{name} compares labels, and the task has none. Give task.labels, or measure: {free}.")
    if len({plain(label) for label in labels}) < len(labels):
        raise RecipeError(f"task.labels names a label twice: {', '.join(labels)}.")
    return _OF_LABELS[name](labels)
