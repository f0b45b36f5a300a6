"""What a recipe will take, before it is run: steps, tokens, memory, time. Nothing is trained."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from acclimate.methods.delta import trainable
from acclimate.models import buffers
from acclimate.models.allocator import return_free_pages
from acclimate.objectives import LM
from acclimate.recipe import Recipe
from acclimate.rewards.rollout import once
from acclimate.run import iterations, reference
from acclimate.run.carry import installed
from acclimate.run.imagined import ASSUMED, imagined, updates
from acclimate.run.measure import measure
from acclimate.run.prepare import Prepared, prepare
from acclimate.run.rollouts import rolls
from acclimate.run.sampled import learns
from acclimate.run.traced import Traced, traced
from acclimate.run.train import collated, parts, set_mode
from acclimate.tokens.schedule import plan
from acclimate.training.frozen import reuse

MB = 2**20
HOLES = 0.7  # of what comes and goes in an update, lost between blocks of the heap; measured: 0.60 (full), 0.76 (LoRA)
KEPT = 0.1  # the same where large tensors have memory of their own; measured: 0.14, 0.06


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
    optimizer: int  # its states
    paged: int  # of these, in a file
    activations: int  # what one pass, the heaviest, keeps for its way back
    activation_bytes_per_token: int  # of that pass
    tensors: int  # the most that live at once: weights, states, gradients, activations and what is made in passing
    memory: int
    seconds: float
    assumed: str = ""

    def lines(self) -> list[str]:
        """For a person."""
        parts = {
            "program": self.program,
            "weights": self.weights,
            "optimizer": self.optimizer,
            "updates": self.tensors - self.weights - self.optimizer,
            "holes": self.memory - self.program - self.tensors,
        }
        return [
            f"rows: {', '.join(f'{name} {count:,}' for name, count in self.rows.items())}",
            f"steps: {self.steps:,}, tokens: {self.tokens:,}, of them scored: {self.scored_tokens:,}",
            f"trainable parameters: {self.trainable_parameters:,} of {self.total_parameters:,}",
            f"memory: about {self.memory / MB:,.0f} MB ({', '.join(f'{n} {b / MB:,.0f}' for n, b in parts.items())})",
            f"activations: {self.activation_bytes_per_token / 1024:,.0f} KB a token, {self.activations / MB:,.0f} MB in one pass",
            *([f"paged: {self.paged / MB:,.0f} MB of the optimizer's states, in a file"] if self.paged else []),
            f"time: about {self.seconds / 60:.1f} minutes of training on this machine, evaluation before and after besides",
            *([self.assumed] if self.assumed else []),
        ]


def predict(recipe: Recipe) -> Forecast:
    """The forecast for a recipe on this machine. The model is loaded; its updates are only traced, without numbers."""
    bare = imagined(prepare(recipe))
    speed, program = _forward_rate(bare), _program(bare)
    prepared, model = installed(bare)
    prepared = iterations.opened(imagined(prepared), model)
    set_mode(prepared, model)
    given, rows, opened = prepared.recipe.training, prepared.train.rows, trainable(model)
    sizes = [row.size for row in rows]
    steps = updates(prepared) if rolls(recipe) else plan(sizes, given.tokens_per_step, given.steps, given.seed)
    cut = [parts(prepared, model, step, sizes) for step in steps]
    tokens = sum(sizes[i] for step in steps for i in step)
    counted, weights = sum(p.numel() for p in opened.values()), _bytes(model) + _copied(prepared)
    total = sum(p.numel() for n, p in model.named_parameters() if ".delta." not in n)
    heaviest, found = _traced(prepared, model, cut, sizes)
    states, tensors = 2 * 4 * counted, found.most + _copied(prepared)
    held = weights + (0 if given.paged else states)
    work = 3.2 if counted > weights / 20 else 2.7
    return Forecast(
        steps=given.steps,
        tokens=tokens,
        scored_tokens=sum(sum(rows[i].scored) for step in steps for i in step),
        rows={name: len(getattr(prepared.parts, name).rows) for name in ("train", "dev", "test")},
        trainable_parameters=counted,
        total_parameters=total,
        program=program,
        weights=weights,
        optimizer=0 if given.paged else states,
        paged=states if given.paged else 0,
        activations=found.kept,
        activation_bytes_per_token=found.kept // heaviest,
        tensors=tensors,
        memory=int(
            program + tensors + (HOLES if program and isinstance(buffers.kept(), str) else KEPT) * (tensors - held)
        ),
        seconds=(work * tokens + _asked(prepared, steps)) / speed,
        assumed=ASSUMED if rolls(recipe) or learns(recipe) else "",
    )


def _traced(
    prepared: Prepared, model: nn.Module, cut: Sequence[Sequence[tuple[int, ...]]], sizes: Sequence[int]
) -> tuple[int, Traced]:
    """The tokens of the heaviest pass, and what it takes, twice over where an update has several."""
    weigh = lambda part: (sum(sizes[i] for i in part), max(sizes[i] for i in part))  # noqa: E731
    step = max(cut, key=lambda parts: max(map(weigh, parts)))
    part = max(step, key=weigh)
    apart = rolls(prepared.recipe) or reference.holds(prepared.train.rows)
    stands = not apart and reuse(model, prepared.train.rows, cut).possible
    met = [row for parts in cut for part in parts for row in part] if stands else []
    if reference.holds(prepared.train.rows):
        reference.quiet(prepared, model)
    return sum(sizes[i] for i in part), traced(prepared, model, part, min(2, len(step)), met)


def _program(prepared: Prepared) -> int:
    """Bytes of this process besides the model, once it has loaded what the run will: one row is asked and judged.

    Not by rewards, which may be somebody's server. 0 where there is a GPU, whose memory is what is forecast then.
    """
    if torch.cuda.is_available():
        return 0
    found, pairs = prepared.parts, prepared.pairs
    one = replace(
        prepared,
        recipe=replace(prepared.recipe, evaluation=replace(prepared.recipe.evaluation, forgetting=False)),
        parts=replace(found, test=replace(found.test, rows=found.test.rows[:1])),
        pairs=pairs and replace(pairs, test=pairs.test[:1]),
    )
    if prepared.rolled is None:
        measure(one, prepared.model, lambda what, count: lambda done: None)
    return_free_pages()
    return _resident() - _bytes(prepared.model)


def _copied(prepared: Prepared) -> int:
    """Bytes of the base tensors that a run on rollouts keeps as they were."""
    kept = prepared.rolled.originals if prepared.rolled else None
    return sum(tensor.nbytes for tensor in (kept or {}).values())


def _asked(prepared: Prepared, steps: Sequence[Sequence[int]]) -> float:
    """Tokens that are read before they are learned from: completions of rollouts by policy and reference, comparisons once
    by the reference, those of dev besides."""
    rows, pairs = prepared.train.rows, prepared.pairs
    if rolls(prepared.recipe):
        how, asked = prepared.recipe.rollouts, 1 if once(prepared.recipe.rollouts, prepared.recipe.objective) else 2
        return asked * sum(rows[i].size for step in steps for i in step) / how.epochs
    if pairs is None or prepared.head or not prepared.recipe.objective.against:
        return 0.0
    return sum(rows[i].size for i in {i for step in steps for i in step}) + sum(row.size for row in pairs.dev)


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
