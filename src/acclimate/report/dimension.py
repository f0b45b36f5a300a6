"""How many numbers a task needs: the smallest dimension that does nine tenths of what full fine-tuning does."""

from collections.abc import Mapping, Sequence
from typing import Any

from acclimate.report.figures import fixed, spoken

SHARE = 0.9
ROUNDING = 1e-9  # 0.72 is nine tenths of 0.8, though not in binary
WAYS = ("did", "said")


def d90(full: float, scores: Mapping[int, float], share: float = SHARE) -> int | None:
    """The smallest dimension whose score reaches `share` of full fine-tuning's; None if none of those tried does.

    Li et al. 2018, arXiv:1804.08838, section 2; Aghajanyan et al. 2020, arXiv:2012.13255, section 3.

    >>> d90(0.90, {16: 0.70, 64: 0.80, 256: 0.82, 1024: 0.85})
    256
    """
    reach = share * full - ROUNDING
    return min((size for size, score in scores.items() if score >= reach), default=None)


def found_among(rows: Sequence[Mapping[str, Any]], metric: str, higher_is_better: bool) -> dict[str, Any] | None:
    """d90 of DID and of SAID from the rows of a comparison, by the mean of `metric` over seeds.

    None without exactly one rung of full fine-tuning, without two dimensions of either, and where less is better.
    """
    well = [row for row in rows if not row["failed"]]
    full = [row["spread"][metric]["mean"] for row in well if row["method"] == "full"]
    sizes = {way: {_size(row): row["spread"][metric]["mean"] for row in well if row["method"] == way} for way in WAYS}
    tried = {way: scores for way, scores in sizes.items() if len(scores) > 1}
    if len(full) != 1 or not tried or not higher_is_better:
        return None
    ways = {way: {"d90": d90(full[0], scores), "tried": sorted(scores)} for way, scores in tried.items()}
    return {"metric": metric, "full": full[0], "reach": SHARE * full[0], "ways": ways}


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What compare.json's entry d90 says, in prose; none without it."""
    given = found.get("d90")
    if not given:
        return []
    reach, metric = fixed(given["reach"], 3), spoken(given["metric"])
    if found["base"]["scores"][given["metric"]]["value"] >= given["reach"] - ROUNDING:
        return [f"The base model reaches nine tenths of full fine-tuning's {metric} ({reach}) as it is; d90 is 0."]
    return [_told(way, given["ways"][way], f"{metric} {reach}") for way in given["ways"]]


def _told(way: str, given: Mapping[str, Any], goal: str) -> str:
    found, tried = given["d90"], given["tried"]
    if found is None:
        return f"d90 by {spoken(way)} is above {tried[-1]:,}: no size tried reaches {goal}, 90 % of full fine-tuning's."
    below = [size for size in tried if size < found]
    least = f"above {below[-1]:,} and at most {found:,}" if below else f"at most {found:,}, the smallest tried"
    return f"d90 by {spoken(way)} is {least}: {found:,} numbers reach {goal}, 90 % of full fine-tuning's."


def _size(row: Mapping[str, Any]) -> int:
    return int(row["options"]["dimension"])
