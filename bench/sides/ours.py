"""acclimate's side of every work."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, islice, repeat
from pathlib import Path
from typing import Any

import torch

from acclimate.evaluation.continuations import Continuing
from acclimate.generation.decode import generate
from acclimate.generation.samplers import Greedy
from acclimate.interchange.adapter import load_adapter
from acclimate.methods import Full, LoRA
from acclimate.methods.delta import activate, adapt, trainable
from acclimate.methods.nf4 import NF4Linear
from acclimate.models.collate import collate
from acclimate.models.load import load, terminators
from acclimate.objectives import LM
from acclimate.recipe import parse
from acclimate.run.carry import installed
from acclimate.run.prepare import codec_of, context_of, prepare
from acclimate.run.train import collated
from acclimate.tokens.batch import Batch
from acclimate.tokens.codec import Encoded
from acclimate.training import optim
from acclimate.training.fit import Course, Step, fit
from acclimate.training.frozen import cached_groups
from acclimate.training.together import fit_together, own
from bench.lines import read
from bench.shared import DEVICE, DTYPES, around, best
from bench.turns import Side

RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
REVIEWS = """
model: {base}
data: {{train: reviews, limit: {{train: 256, dev: 8, test: 8}}}}
task: {{template: "{{{{ text }}}}", labels: [negative, positive], head: true, chat: false}}
method: head
training: {{precision: float32}}
"""


def sft(folder: Path, adapter: str = "adapter", batch: int = 4, dtype: str = "float32") -> Side:
    """One update on `batch` rows, with the LoRA of that folder or, without, in full.

    Units are tokens; parity is the first loss and gradient norm.
    """
    loaded = load(str(folder / "base"), dtype=DTYPES[dtype] if adapter else torch.float32)
    if adapter:
        load_adapter(loaded.model, folder / adapter, "default")
        for name, parameter in loaded.model.named_parameters():
            parameter.requires_grad_(".delta." in name)
    else:
        Full().install(loaded.model)
    loaded.model.to(DEVICE)
    fill = codec_of(loaded).pad
    rows = _rows(folder)
    made = (collate(loaded.model, [rows[i] for i in part], fill, share=True) for part in around(len(rows), batch))
    seen: list[Batch] = []
    optimizer = optim.adamw(trainable(loaded.model), 2e-4)
    mixed = DTYPES[dtype] if dtype != "float32" else None
    steps = fit(loaded.model.train(), _noted(made, seen), LM(), optimizer, rate=lambda _: 2e-4, autocast=mixed)
    first = next(steps)
    yield {"loss": first.loss, "norm": first.norm}
    for step in steps:
        yield {"units": step.tokens, "flops": _flops(loaded.model, seen.pop(), 4 if adapter else 6)}


def _noted(batches: Iterable[Batch], seen: list[Batch]) -> Iterator[list[Batch]]:
    for batch in batches:
        seen[:] = [batch]
        yield [batch]


def _flops(model: Any, batch: Batch, each: int) -> float:
    """Of an update: `each` for a weight and a token, 6 for a weight that trains; of the head at scored tokens only.

    Attention: 4 for a number of a head's query and a token that it sees, and twice that on the way back.
    """
    own = {name: p.numel() for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name}
    own |= {n: m.in_features * m.out_features for n, m in model.named_modules() if isinstance(m, NF4Linear)}
    trained = sum(count for name, count in own.items() if ".delta." in name)
    head = model.get_output_embeddings().weight.numel()
    tokens, config = batch.streamed, model.config
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    before: list[int] = []
    for piece in batch.pieces:
        before.append(0 if piece.parent < 0 else before[piece.parent] + batch.pieces[piece.parent].length)
    seen = sum(p.length * (b + (p.length + 1) / 2) for p, b in zip(batch.pieces, before, strict=True))
    attention = 3 * 4 * width * config.num_hidden_layers * seen
    return (each * (sum(own.values()) - trained) + 6 * trained) * tokens + each * head * len(batch.targets) + attention


def sweep(folder: Path, together: bool = True, rows: int = 1, length: int = 32, dtype: str = "float32") -> Side:
    """An update of eight LoRAs of rank 1 to 128 on the same short rows: in one pass, or one after the other.

    Units are tokens of all; parity is the losses of the third update, when every adapter has moved.
    """
    model = load(str(folder / "base"), dtype=DTYPES[dtype]).model.train().to(DEVICE)
    names = [f"r{rank}" for rank in RANKS]
    for rank, name in zip(RANKS, names, strict=True):
        adapt(model, LoRA(rank, alpha=float(2 * rank)), name=name, seed=0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".delta." in name)
    ids = [tuple(row["input_ids"][:length]) for row in read(folder / "prompts.jsonl")[:rows]]
    encoded = [Encoded(row, (False,) * (len(row) // 2) + (True,) * (len(row) - len(row) // 2)) for row in ids]
    each = {name: own(model, name) for name in names}
    optimizers = {name: optim.adamw(each[name], 2e-4) for name in names}
    if together:
        courses = {name: Course(each[name], optimizers[name], lambda _: 2e-4) for name in names}
        updates = fit_together(model, courses, repeat([encoded]), LM(), 0)
        steps = ([told[name] for name in names] for told in updates)
    else:
        steps = _one_by_one(model, each, optimizers, encoded)
    *_, third = islice(steps, 3)
    yield {f"loss of {name}": step.loss for name, step in zip(names, third, strict=True)}
    for done in steps:
        yield {"units": sum(step.tokens for step in done)}


def _one_by_one(model: Any, each: Any, optimizers: Any, rows: Sequence[Encoded]) -> Iterator[list[Step]]:
    def alone(name: str) -> str:
        for path, parameter in model.named_parameters():
            parameter.requires_grad_(path in each[name])
        activate(model, name)
        return name

    batches = repeat([collate(model, rows, 0)])
    runs = {name: fit(model, batches, LM(), optimizers[name], rate=lambda _: 2e-4) for name in each}
    while True:  # a run looks at what trains where it is asked first
        yield [next(runs[alone(name)]) for name in runs]


def head(folder: Path, cached: bool = True, rows: int = 256) -> Side:
    """An epoch of training an output layer on a frozen trunk. Units are rows; parity is the losses of the first epoch."""
    prepared, model = installed(prepare(parse(REVIEWS.format(base=folder / "base"))))
    step = 16
    cut = [[tuple(range(i, i + step))] for i in range(0, rows, step)]
    plan = [cut[i % len(cut)] for i in range(1 << 16)]

    def made(part: Sequence[int]) -> Any:
        return collated(prepared, model, [prepared.train.rows[i] for i in part], part)

    groups = cached_groups(model, plan, made) if cached else ([made(part) for part in parts] for parts in plan)
    optimizer = optim.adamw(trainable(model), 1e-3)
    steps = fit(model, groups, prepared.objective, optimizer, rate=lambda _: 1e-3)
    yield {"loss": sum(next(steps).loss for _ in cut)}
    while True:
        for _ in cut:
            next(steps)
        yield {"units": rows}


def decode(folder: Path, batch: int = 32, new: int = 64, adapter: str = "", dtype: str = "float32") -> Side:
    """Greedy continuations of `batch` prompts. Units are new tokens; parity is all of their ids."""
    loaded = load(str(folder / "base"), dtype=DTYPES[dtype])
    if adapter:
        load_adapter(loaded.model, folder / adapter, "default")
    loaded.model.to(DEVICE)
    prompts = [row["input_ids"] for row in read(folder / "prompts.jsonl")[:batch]]
    for number in count():
        found = generate(
            loaded.model, prompts, Greedy(), terminators=terminators(loaded.model, loaded.tokenizer), max_new=new, pad=0
        )
        ids = [row.ids for row in found]
        if not number:
            yield {"ids": [token for row in ids for token in row]}
            continue
        steps = max(map(len, ids)) + 1
        yield {"units": sum(map(len, ids)), "bytes": steps * sum(p.nbytes for p in loaded.model.parameters())}


def choices(folder: Path, dtype: str = "float32", pairs: str = "pairs.jsonl", endings: int = 4) -> Side:
    """Log-likelihoods of all endings. Units are endings; parity is which ending of each row is the likeliest."""
    loaded = load(str(folder / "base"), dtype=DTYPES[dtype])
    loaded.model.to(DEVICE)
    asked = Continuing(loaded.model, codec_of(loaded), context_of(loaded.model))
    given = [(row["context"], row["continuation"]) for row in read(folder / pairs)]
    for number in count():
        found = asked.logprobs(asked.rows(given))
        yield {"total": sum(found), "best": best(found, endings)} if not number else {"units": len(given)}


def _rows(folder: Path) -> list[Encoded]:
    return [
        Encoded(tuple(row["input_ids"]), tuple(bool(m) for m in row["completion_mask"]))
        for row in read(folder / "rows.jsonl")
    ]


WORKS: Mapping[str, Any] = {"sft": sft, "head": head, "sweep": sweep, "decode": decode, "choices": choices}
