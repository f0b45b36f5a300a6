"""What all sides of a work are given: the same weights, the same ids and the same starting adapter, written once by us.

base/           the model as a transformers folder, float32
rows.jsonl      {"input_ids", "completion_mask"}: prompts and completions, spelled once
adapter/        LoRA as it starts, in PEFT's format
prompts.jsonl   {"input_ids"}: what is continued
pairs.jsonl     {"row", "context", "continuation"}: what is asked about, four endings a row
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from acclimate.interchange.adapter import save_adapter
from acclimate.models.fingerprint import fingerprint
from acclimate.recipe import parse
from acclimate.run.carry import facts_of
from acclimate.run.prepare import prepare
from bench.lines import read

MODEL = "smollm2-135m-instruct"
RECIPE = f"""
model: {MODEL}
data: {{train: summaries, columns: {{document: [document], summary: [summary]}}, target: summary, truncation: drop,
  max_tokens: 512, limit: {{train: 400, dev: 8, test: 64}}}}
task: {{template: "Summarise in one or two sentences:\\n\\n{{{{ document }}}}", metrics: [rougeL]}}
method: {{name: lora, rank: 8, alpha: 16, targets: [query, value]}}
training: {{rate: 2.0e-4, precision: float32, seed: 0}}
"""
HELLASWAG = Path(__file__).parents[1].parent / "shared" / "data" / "hellaswag" / "dev.jsonl"


def write(folder: Path) -> None:
    """Make everything above in `folder`, unless it is there already."""
    if (folder / "whole").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    prepared = prepare(parse(RECIPE))
    model, rows = prepared.model, prepared.train.rows
    torch.manual_seed(0)
    model.save_pretrained(folder / "base")  # type: ignore[operator]
    prepared.codec.tokenizer.save_pretrained(folder / "base")
    _lines(folder / "rows.jsonl", ({"input_ids": r.ids, "completion_mask": [int(s) for s in r.scored]} for r in rows))
    _lines(
        folder / "prompts.jsonl",
        ({"input_ids": [t for t, s in zip(r.ids, r.scored, strict=True) if not s][:64]} for r in rows[:32]),
    )
    _lines(folder / "pairs.jsonl", _pairs())
    base = fingerprint(model)
    prepared.recipe.method.install(model)
    save_adapter(model, prepared.recipe.method, folder / "adapter", facts_of(prepared, base))
    (folder / "whole").touch()


def _pairs(rows: int = 100) -> Iterable[Mapping[str, Any]]:
    """HellaSwag's first rows, where they lie beside the project; else none, and the work is left out."""
    if HELLASWAG.exists():
        for number, row in enumerate(read(HELLASWAG)[:rows]):
            context = f"{row['activity']}: {row['context']}"
            for ending in row["endings"]:
                yield {"row": number, "context": context, "continuation": f" {ending}"}


def _lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
