"""What a recipe will take, before it is run: steps, tokens, memory, time. Nothing is trained."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from acclimate.methods.delta import trainable
from acclimate.models.logprobs import ROWS_AT_ONCE
from acclimate.objectives import LM
from acclimate.recipe import Recipe
from acclimate.run import iterations, reference
from acclimate.run.carry import installed
from acclimate.run.imagined import ASSUMED, imagined, loss, updates
from acclimate.run.prepare import Prepared, prepare
from acclimate.run.rollouts import rolls
from acclimate.run.sampled import learns
from acclimate.run.train import collated, recompute
from acclimate.tokens.schedule import passes, plan

MB = 2**20
HOLES = 1.9  # the heap of a CPU process grows to about so many times what is kept, as steps differ in length; measured


@dataclass(frozen=True)
class Forecast:
    """Bytes unless said otherwise. memory is the peak of the whole process (of the GPU where there is one)."""

    steps: int
    tokens: int
    scored_tokens: int
    rows: dict[str, int]
    trainable_parameters: int
    total_parameters: int
    program: int
    weights: int
    optimizer: int
    paged: int  # of the optimizer, in a file
    activations: int
    logits: int
    memory: int
    seconds: float
    assumed: str = ""

    def lines(self) -> list[str]:
        """For a person."""
        parts = {
            "program": self.program,
            "weights": self.weights,
            "gradients and optimizer": self.optimizer,
            "activations": self.activations,
            "logits": self.logits,
        }
        return [
            f"rows: {', '.join(f'{name} {count:,}' for name, count in self.rows.items())}",
            f"steps: {self.steps:,}, tokens: {self.tokens:,}, of them scored: {self.scored_tokens:,}",
            f"trainable parameters: {self.trainable_parameters:,} of {self.total_parameters:,}",
            f"memory: about {self.memory / MB:,.0f} MB ({', '.join(f'{n} {b / MB:,.0f}' for n, b in parts.items())})",
            *([f"paged: {self.paged / MB:,.0f} MB of the optimizer's states, in a file"] if self.paged else []),
            f"time: about {self.seconds / 60:.1f} minutes of training on this machine, evaluation before and after besides",
            *([self.assumed] if self.assumed else []),
        ]


def predict(recipe: Recipe) -> Forecast:
    """The forecast for a recipe on this machine. The model is loaded; its step is only traced, without numbers."""
    bare = imagined(prepare(recipe))
    speed, on_cpu = _forward_rate(bare), not torch.cuda.is_available()
    program = _resident() - _bytes(bare.model) if on_cpu else 0
    prepared, model = installed(bare)
    prepared = iterations.opened(imagined(prepared), model)
    given, rows = prepared.recipe.training, prepared.train.rows
    sizes = [row.size for row in rows]
    steps = updates(prepared) if rolls(recipe) else plan(sizes, given.tokens_per_step, given.steps, given.seed)
    cut = [part for step in steps for part in passes(step, sizes, given.tokens_per_pass)]
    heaviest = max(cut, key=lambda part: (sum(sizes[i] for i in part), max(sizes[i] for i in part)))
    tokens = sum(sizes[i] for step in steps for i in step)
    opened = trainable(model)
    kept = _saved(prepared, model, heaviest)
    weights = _bytes(model) + _copied(prepared)
    counted = sum(p.numel() for p in opened.values())
    scored = max(sum(sum(rows[i].scored) for i in part) for part in cut)
    wide = prepared.head.shape.width if prepared.head else int(prepared.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    logits = 3 * 4 * min(scored, ROWS_AT_ONCE) * wide
    paged = 2 * 4 * counted if given.paged else 0
    optimizer = 3 * 4 * counted - paged
    work = 3.2 if counted > weights / 20 else 2.7
    return Forecast(
        steps=given.steps,
        tokens=tokens,
        scored_tokens=sum(sum(rows[i].scored) for step in steps for i in step),
        rows={name: len(getattr(prepared.parts, name).rows) for name in ("train", "dev", "test")},
        trainable_parameters=counted,
        total_parameters=sum(p.numel() for n, p in model.named_parameters() if ".delta." not in n),
        program=program,
        weights=weights,
        optimizer=optimizer,
        paged=paged,
        activations=kept,
        logits=logits,
        memory=int(program + weights + optimizer + logits + (HOLES if on_cpu else 1.1) * kept),
        seconds=(work * tokens + _asked(prepared, tokens)) / speed,
        assumed=ASSUMED if rolls(recipe) or learns(recipe) else "",
    )


def _copied(prepared: Prepared) -> int:
    """Bytes of the base tensors that a run on rollouts keeps as they were."""
    kept = prepared.rolled.originals if prepared.rolled else None
    return sum(tensor.nbytes for tensor in (kept or {}).values())


def _asked(prepared: Prepared, tokens: int) -> float:
    """Tokens of the completions of rollouts that policy and reference are asked about before anything is learned."""
    return 2 * tokens / prepared.recipe.rollouts.epochs if rolls(prepared.recipe) else 0.0


def _saved(prepared: Prepared, model: nn.Module, part: tuple[int, ...]) -> int:
    """Bytes that the backward pass of one pass over `part` needs kept, counted on tensors without content."""
    rows = prepared.train.rows
    model.train(not rolls(prepared.recipe))
    batch = collated(prepared, model, [rows[i] for i in part], part)
    if prepared.recipe.training.checkpointing:
        recompute(model)
    if reference.holds(prepared.train.rows):
        reference.quiet(prepared, model)
    found: dict[int, Tensor] = {}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, _mixed(prepared, model):
        own = _hollow(model, mode)
        moved: dict[str, Any] = {k: mode.from_tensor(v) for k, v in vars(batch).items() if isinstance(v, Tensor)}
        with _counting(found, own), _NothingStrange():  # type: ignore[no-untyped-call]
            hollow = replace(batch, **moved)
            if rolls(prepared.recipe):
                loss(prepared.objective, model, hollow)
            else:
                prepared.objective(model, hollow)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def _hollow(model: nn.Module, mode: FakeTensorMode) -> set[int]:
    """Take the content out of every tensor of `model`, which is of no other use then; returns their storages."""
    fakes: dict[int, Any] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in fakes:
                    fake = mode.from_tensor(tensor.detach())
                    fakes[id(tensor)] = (
                        nn.Parameter(fake, tensor.requires_grad) if table is module._parameters else fake
                    )
                table[name] = fakes[id(tensor)]
    return {tensor.untyped_storage()._cdata for tensor in fakes.values()}


class _NothingStrange(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tensors without content answer no to every question about their numbers, such as whether an id is out of place."""

    def __torch_dispatch__(self, func: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        return False if func is torch.ops.aten._local_scalar_dense.default else func(*given, **(named or {}))


@contextmanager
def _counting(found: dict[int, Tensor], own: set[int]) -> Iterator[None]:
    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            found[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield


@contextmanager
def _mixed(prepared: Prepared, model: nn.Module) -> Iterator[None]:
    wide = any(p.requires_grad and ".delta." not in n for n, p in model.named_parameters())
    on = wide and prepared.recipe.training.precision == "bfloat16"
    with torch.autocast("cpu", torch.bfloat16, enabled=on):
        yield


@torch.no_grad()
def _forward_rate(prepared: Prepared) -> float:
    """Tokens a second of the forward pass, the better of two."""
    rows = prepared.train.rows[:16]
    batch = collated(prepared, prepared.model, rows)
    best = float("inf")
    for _ in range(2):
        begun = time.perf_counter()
        (LM() if rolls(prepared.recipe) else prepared.objective)(prepared.model, batch)
        best = min(best, time.perf_counter() - begun)
    return sum(row.size for row in rows) / best


def _bytes(model: nn.Module) -> int:
    return sum(t.nbytes for t in model.parameters()) + sum(t.nbytes for t in model.buffers())


def _resident() -> int:
    """Bytes this process holds now."""
    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
