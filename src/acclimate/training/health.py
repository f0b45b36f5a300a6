"""When a run is sick, and what to say about it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from acclimate.errors import ModelError, TrainingError

PATIENCE = 5  # steps in a row that a loss may be far above its start
SILENT = ("k_proj.bias", "key.bias", "k_lin.bias", "key_proj.bias", "k.bias")  # softmax cancels a key's bias


class Watch:
    """Looks at every step of one run; raises when it should not go on."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        if not parameters:
            raise ModelError("Nothing trains: the method opened no parameter of this model.")
        self.parameters = parameters
        self.idle = set(parameters)
        self.first: float | None = None
        self.high = 0
        self.moved = 0

    def gradients(self, index: int, rate: float) -> None:
        """Every tensor that should train must receive a gradient at once, and one that is not zero within three steps."""
        absent = [n for n, p in self.parameters.items() if p.grad is None]
        if absent:
            raise ModelError(
                f"Step {index}: {len(absent)} trainable tensors received no gradient, first {absent[0]}: the model computes "
                "around it (a fused kernel, a cache, or a layer that this data never uses). Choose other targets."
            )
        self.idle -= {n for n in self.idle if _moves(self.parameters[n].grad)}
        self.moved += rate > 0
        loud = [n for n in self.parameters if n in self.idle and not n.endswith(SILENT)]
        if self.moved >= 4 and loud:
            raise ModelError(
                f"Step {index}: {len(loud)} trainable tensors only ever received zero gradients, first {loud[0]}."
            )

    def loss(self, index: int, value: float) -> None:
        """A loss that stays far above where it began is exploding."""
        if self.first is None:
            self.first = abs(value)
        self.high = self.high + 1 if value > 3 * self.first + 1 else 0
        if self.high >= PATIENCE:
            raise TrainingError(
                f"Step {index}: the loss is {value:.3g} after {self.first:.3g} at the start, for {PATIENCE} steps in a row. "
                "Lower training.rate; the last checkpoint is from before."
            )


def _moves(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(torch.count_nonzero(gradient))


def diagnose(model: nn.Module, group: Sequence[Any], objective: Any, index: int, what: str) -> TrainingError:
    """A sentence with the step, the rows, and the first weight or module that is not finite."""
    rows = [row for batch in group for row in getattr(batch, "rows", ())]
    shown = (
        f" Rows {', '.join(map(str, rows[:10]))}{' …' if len(rows) > 10 else ''} of the training data." if rows else ""
    )
    weights = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if weights:
        cause = f"{len(weights)} weights are not finite, first {weights[0]}."
    else:
        cause = _first_bad_module(model, group, objective)
    return TrainingError(f"Step {index}: {what}. {cause}{shown} Lower training.rate, or look at these rows.")


@torch.no_grad()
def _first_bad_module(model: nn.Module, group: Sequence[Any], objective: Any) -> str:
    names = {module: name for name, module in model.named_modules()}
    bad: list[str] = []

    def look(module: nn.Module, _: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor) and first.is_floating_point() and not bool(torch.isfinite(first).all()):
            bad.append(names[module])

    hooks = [module.register_forward_hook(look) for module in model.modules()]
    try:
        for batch in group:
            objective(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return (
        f"The first module with a result that is not finite is {bad[0] or 'the model'}."
        if bad
        else "Every module's result is finite."
    )
