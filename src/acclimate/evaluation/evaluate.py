"""Ask a predictor, keep a row of numbers for every example and metric, and say how sure the scores are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from acclimate.data.examples import Example, Output
from acclimate.metrics.intervals import Difference, Score, paired, score
from acclimate.metrics.metric import Metric, fitted


@dataclass(frozen=True)
class Measured:
    """outputs: by what was asked ("labels", "text", "number", …), one an example. rows: by metric, one an example."""

    outputs: Mapping[str, tuple[Output, ...]]
    rows: Mapping[str, tuple[tuple[float, ...], ...]]

    @property
    def answers(self) -> tuple[Output, ...]:
        """What to show of each example: the answer where there is one."""
        return next(
            self.outputs[kind] for kind in ("labels", "text", "number", "tags", "likelihood") if kind in self.outputs
        )


def rows_of(
    metrics: Sequence[Metric], outputs: Mapping[str, Sequence[Output]], examples: Sequence[Example]
) -> Measured:
    """Each metric's rows, from the outputs of the kind it measures."""
    rows = {
        m.name: tuple(m.row(o, e) for o, e in zip(outputs[kind_of(m, outputs)], examples, strict=True))
        for m in (fitted(metric, examples) for metric in metrics)
    }
    return Measured({kind: tuple(given) for kind, given in outputs.items()}, rows)


def kind_of(metric: Metric, asked: Mapping[str, object]) -> str:
    """Which outputs a metric reads; text metrics read a chosen label as text where nothing was written."""
    return "labels" if metric.kind == "text" and "text" not in asked and "labels" in asked else metric.kind


def kinds(metrics: Sequence[Metric], labels: Sequence[str]) -> tuple[str, ...]:
    """What must be asked of a predictor for these metrics."""
    wanted = {m.kind for m in metrics}
    if labels and "text" in wanted:
        wanted = (wanted - {"text"}) | {"labels"}
    return tuple(sorted(wanted))


def scores(metrics: Sequence[Metric], measured: Measured, draws: int, seed: int) -> dict[str, Score]:
    """Every metric with its 95 % interval."""
    return {m.name: score(m, measured.rows[m.name], draws=draws, seed=seed) for m in metrics}


def differences(
    metrics: Sequence[Metric], base: Measured, result: Measured, draws: int, seed: int
) -> dict[str, Difference]:
    """Result minus base for every metric, on the same examples; p needs more draws than an interval does."""
    most = max(9999, draws)
    return {m.name: paired(m, base.rows[m.name], result.rows[m.name], draws=most, seed=seed) for m in metrics}
