"""d90 by hand, from the rows of a comparison, and what is said of it."""

from typing import Any

import pytest

from acclimate.report.dimension import d90, found_among, sentences


def row(method: str, mean: float, dimension: int = 0, failed: str = "") -> dict[str, Any]:
    return {
        "method": method,
        "options": {"dimension": dimension},
        "failed": failed,
        "spread": {"accuracy": {"mean": mean}},
    }


DID = [row("did", 0.60, 16), row("did", 0.73, 256), row("did", 0.71, 64), row("did", 0.70, 1024)]
SAID = [row("said", 0.72, 64), row("said", 0.75, 256)]
FULL = row("full", 0.80)  # nine tenths of it are 0.72


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({1: 0.7, 2: 0.7201, 4: 0.9}, 2),
        ({4: 0.9, 2: 0.73, 1: 0.7}, 2),  # in any order
        ({1: 0.73, 2: 0.6}, 1),  # noise: a larger one may fall short
        ({1: 0.1, 2: 0.7199}, None),
        ({}, None),
    ],
)
def test_the_smallest_that_reaches_nine_tenths(scores: dict[int, float], expected: int | None) -> None:
    assert d90(0.8, scores) == expected


def test_the_rungs_of_a_study_by_hand() -> None:
    found = found_among([FULL, *DID, *SAID, row("lora", 0.9)], "accuracy", True)
    assert found is not None
    assert found["reach"] == pytest.approx(0.72)
    assert found["ways"] == {
        "did": {"d90": 256, "tried": [16, 64, 256, 1024]},
        "said": {"d90": 64, "tried": [64, 256]},
    }


@pytest.mark.parametrize(
    "rows",
    [
        [*DID, *SAID],
        [FULL, FULL, *DID],
        [FULL, row("did", 0.9, 16), row("said", 0.9, 64)],
        [row("full", 0.8, failed="ill"), *DID],
        [FULL, row("did", 0.9, 16), row("did", 0.9, 64, failed="ill")],
    ],
)
def test_without_full_fine_tuning_or_several_sizes_there_is_none(rows: list[dict[str, Any]]) -> None:
    assert found_among(rows, "accuracy", True) is None


def test_where_less_is_better_there_is_none() -> None:
    assert found_among([FULL, *DID], "accuracy", False) is None


def test_what_is_said_of_it() -> None:
    base = {"scores": {"accuracy": {"value": 0.5}}}
    more = found_among([FULL, *DID, *SAID], "accuracy", True)
    assert sentences({"d90": more, "base": base}) == [
        "d90 by DID is above 64 and at most 256: 256 numbers reach accuracy 0.720, 90 % of full fine-tuning's.",
        "d90 by SAID is at most 64, the smallest tried: 64 numbers reach accuracy 0.720, 90 % of full fine-tuning's.",
    ]
    none = found_among([row("full", 0.9), *DID], "accuracy", True)
    assert sentences({"d90": none, "base": base}) == [
        "d90 by DID is above 1,024: no size tried reaches accuracy 0.810, 90 % of full fine-tuning's."
    ]
    base = {"scores": {"accuracy": {"value": 0.73}}}
    (said,) = sentences({"d90": more, "base": base})
    assert said == "The base model reaches nine tenths of full fine-tuning's accuracy (0.720) as it is; d90 is 0."
    assert sentences({"base": base}) == sentences({"d90": None, "base": base}) == []
