"""lm-evaluation-harness's log-likelihoods, through its HFLM."""

from itertools import count
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from bench.lines import read
from bench.shared import DEVICE, best
from bench.turns import Side


def choices(folder: Path, batch: int = 1, dtype: str = "float32", pairs: str = "pairs.jsonl", endings: int = 4) -> Side:
    """As the harness scores a multiple-choice task; `batch` is its --batch_size."""
    model = HFLM(pretrained=str(folder / "base"), dtype=dtype, batch_size=batch, device=DEVICE)
    given = [(row["context"], row["continuation"]) for row in read(folder / pairs)]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(given)]
    for number in count():
        found = [value for value, _ in model.loglikelihood(asked, disable_tqdm=True)]
        yield {"total": sum(found), "best": best(found, endings)} if not number else {"units": len(given)}


WORKS: dict[str, Any] = {"choices": choices}
