"""The numbers behind the pictures that rest on single answers, as report.json has them."""

from collections.abc import Mapping
from typing import Any

from acclimate.report.answers import Rows
from acclimate.report.calibration import calibration
from acclimate.report.figures import at
from acclimate.report.groups import groups
from acclimate.report.matrices import confusion


def numbers(report: Mapping[str, Any], rows: Rows) -> dict[str, Any]:
    """What report.json holds besides the scores; an entry that the run has nothing for is left out.

    calibration: see `calibration.calibration`. confusion, where there are labels: see `matrices.confusion`. groups, where
    rows name their task or template: see `groups.groups`. report: the other entries. rows: those of predictions.jsonl.
    """
    labels = [str(label) for label in at(report, "task", "labels") or ()]
    found = {
        "calibration": calibration(rows),
        "confusion": confusion(rows, labels) if labels and rows else {},
        "groups": groups(report, rows),
    }
    return {name: entry for name, entry in found.items() if entry}
