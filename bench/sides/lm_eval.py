"""lm-evaluation-harness's log-likelihoods, through its HFLM."""

from itertools import count
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from bench.lines import read
from bench.turns import Side


def choices(folder: Path, batch: int = 1, dtype: str = "float32") -> Side:
    """As the harness scores a multiple-choice task; `batch` is its --batch_size."""
    model = HFLM(pretrained=str(folder / "base"), dtype=dtype, batch_size=batch, device="cpu")
    pairs = [(row["context"], row["continuation"]) for row in read(folder / "pairs.jsonl")]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    for number in count():
        found = [value for value, _ in model.loglikelihood(asked, disable_tqdm=True)]
        yield {"total": sum(found), "best": _best(found)} if not number else {"units": len(pairs)}


def _best(found: list[float], endings: int = 4) -> list[int]:
    groups = [found[i : i + endings] for i in range(0, len(found), endings)]
    return [max(range(endings), key=group.__getitem__) for group in groups]


WORKS: dict[str, Any] = {"choices": choices}
