"""What is measured: one file a family, one class a metric. No torch here.

>>> [metric.name for metric in choose(["accuracy", "rougeL"], ("no", "yes"))]
['accuracy', 'rougeL']
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from acclimate.errors import RecipeError, unknown
from acclimate.metrics.bias import Association, Representation
from acclimate.metrics.calibration import Brier, CoverageArea, Curve, Ece, EceMass, SelectiveAccuracy
from acclimate.metrics.correlation import Matthews, MeanAbsoluteError, MeanSquaredError, Pearson, Spearman
from acclimate.metrics.diversity import Distinct1, Distinct2, Distinct3
from acclimate.metrics.labels import F1, Accuracy, BalancedAccuracy, ExactMatch, F1a, Labelled, MacroF1, plain
from acclimate.metrics.likelihood import BitsPerByte, Perplexity
from acclimate.metrics.metric import Metric, Summed
from acclimate.metrics.overlap import Bleu, Chrf, Meteor, Rouge1, Rouge2, RougeL, Ter
from acclimate.metrics.spans import EntityF1, SquadExact, SquadF1, TagAccuracy
from acclimate.metrics.toxicity import Toxicity, ToxicShare
from acclimate.metrics.weighted import Cider, Nist

Answer = Literal["text", "span", "number", "tags"]  # what a task without labels asks for

_OfLabels = type[Labelled] | type[Ece] | type[Brier] | type[EceMass] | type[SelectiveAccuracy] | type[CoverageArea]
_Free = type[Summed] | type[Spearman]

_OF_LABELS: Mapping[str, _OfLabels] = {
    metric.name: metric
    for metric in (
        *(Accuracy, BalancedAccuracy, MacroF1, Matthews, F1, F1a),
        *(Ece, EceMass, Brier, SelectiveAccuracy, CoverageArea),
    )
}
_FREE: Mapping[str, _Free] = {
    metric.name: metric
    for metric in (
        *(ExactMatch, Rouge1, Rouge2, RougeL, Bleu, Chrf, SquadF1, SquadExact, Perplexity, BitsPerByte),
        *(Ter, Meteor, Nist, Cider, Distinct1, Distinct2, Distinct3),
        *(Representation, Association, Toxicity, ToxicShare),
        *(Pearson, Spearman, MeanSquaredError, MeanAbsoluteError, EntityF1, TagAccuracy),
    )
}
METRICS: Mapping[str, type[Summed] | type[Curve] | type[Spearman]] = {**_OF_LABELS, **_FREE}
_DEFAULT: Mapping[Answer, tuple[str, ...]] = {
    "text": ("rougeL", "rouge1", "rouge2"),
    "span": ("squad_f1", "squad_exact"),
    "number": ("pearson", "spearman", "mse"),
    "tags": ("entity_f1", "tag_accuracy"),
}


def choose(names: Iterable[str], labels: tuple[str, ...] | None = None) -> tuple[Metric, ...]:
    """The metrics called `names`, those of labels built with `labels`.

    RecipeError for a name that does not exist, and for a metric of labels where the task has none or two alike.
    """
    return tuple(_build(name, labels or ()) for name in dict.fromkeys(names))


def default_metrics(labels: tuple[str, ...] | None = None, answer: Answer = "text") -> tuple[str, ...]:
    """Names for a recipe that asks for none, the first one the headline; `answer` counts where there are no labels."""
    return ("balanced_accuracy", "accuracy", "macro_f1") if labels else _DEFAULT[answer]


def describe() -> dict[str, str]:
    """One line for each metric."""
    return {name: (metric.__doc__ or "").splitlines()[0] for name, metric in METRICS.items()}


def _build(name: str, labels: tuple[str, ...]) -> Metric:
    if name in _FREE:
        return _FREE[name]()
    if name not in _OF_LABELS:
        raise RecipeError(unknown("metric", name, METRICS))
    if not labels:
        free = ", ".join(sorted(_FREE))
        raise RecipeError(f"{name} compares labels, and the task has none. Give task.labels, or measure: {free}.")
    if len({plain(label) for label in labels}) < len(labels):
        raise RecipeError(f"task.labels names a label twice: {', '.join(labels)}.")
    return _OF_LABELS[name](labels)
