"""Training with everything around it: log, checkpoints, losses on dev, trackers, signals; resumed where it stopped."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from acclimate.errors import ModelError
from acclimate.generation.score import score
from acclimate.methods.artifact import fill, tensors
from acclimate.methods.delta import trainable
from acclimate.models import buffers
from acclimate.models.allocator import forget_peak, peak, return_free_pages
from acclimate.models.collate import collate, divide
from acclimate.models.outline import trunk_of
from acclimate.models.policy import VALUE, drop_value_head
from acclimate.recipe import Training
from acclimate.report.trackers import Tracker
from acclimate.run import iterations, reference, tasks
from acclimate.run.prepare import Prepared
from acclimate.run.rollouts import rolls
from acclimate.tokens.batch import Batch
from acclimate.tokens.codec import Encoded
from acclimate.tokens.schedule import plan
from acclimate.training import optim
from acclimate.training.checkpoint import append_line, clean, load, newest, save, sync, truncate_log
from acclimate.training.fit import Step, fit
from acclimate.training.folder import RunFolder
from acclimate.training.frozen import cached_groups, reuse
from acclimate.training.signals import Stop

Heard = Callable[[Step], None]
TIDY_EVERY = 4  # steps, where pages are not kept; at every step it would cost 15 % of the time, so seldom about 4 %


@dataclass
class Spent:
    """What training took so far, over all resumptions."""

    seconds: float = 0.0
    tokens: int = 0
    scored: int = 0
    peak: int = 0  # bytes

    def after(self, step: Step, seconds: float) -> "Spent":
        """What it is after one more step."""
        return Spent(seconds, self.tokens + step.tokens, self.scored + step.scored, max(self.peak, peak()))


def train(
    prepared: Prepared,
    model: Any,
    run: RunFolder,
    stop: Stop,
    trackers: Sequence[Tracker],
    heard: Heard,
    said: Callable[[str], None],
    resumable: bool = True,  # False: no checkpoints; what is killed begins again
) -> Spent:
    """Train `model`, whose method is installed, to the recipe's last step; from the newest checkpoint if there is one."""
    given, prepared = prepared.recipe.training, iterations.opened(prepared, model)
    pages = run.path if given.paged else None
    optimizer = optim.adamw(trainable(model), given.rate, decay=given.decay, pages=pages)
    torch.manual_seed(given.seed)
    start, spent = _begin(model, optimizer, run, said)
    _set_off(prepared, model)
    begun = time.perf_counter() - spent.seconds
    reached, told = start, dict[str, float]()

    def heed() -> None:  # while completions are sampled
        if stop.requested and resumable and reached:
            _keep(run, reached, model, optimizer, spent)
        stop.check(f"sampling, after step {reached}")

    rolled = iterations.groups(prepared, model, run, start, heed, told, autocast(model, given))
    found = rolled if rolls(prepared.recipe) else groups(prepared, model, start, said)
    for step in _steps(prepared, model, optimizer, start, found):
        step, reached = replace(step, metrics={**step.metrics, **told}), step.index
        spent = spent.after(step, time.perf_counter() - begun)
        append_line(run.log, _row(step))
        _watch_dev(prepared, model, run, step.index, trackers)
        asked_to_stop = stop.requested is not None
        if resumable and (step.index % given.checkpoint_every == 0 or step.index == given.steps or asked_to_stop):
            _keep(run, step.index, model, optimizer, spent)
        _tell(trackers, heard, step)
        if asked_to_stop:
            stop.check(f"training, after step {step.index}")
    _close(model, given)
    return spent


def _tell(trackers: Sequence[Tracker], heard: Heard, step: Step) -> None:
    for tracker in trackers:
        tracker.log(step.index, {"loss": step.loss, "norm": step.norm, "rate": step.rate, **step.metrics})
    heard(step)
    if step.index % TIDY_EVERY == 0 and isinstance(buffers.kept(), str):
        return_free_pages()


def _close(model: nn.Module, given: Training) -> None:
    """The model as it answers: without what only training needed."""
    if given.checkpointing:
        _remember(model)
    drop_value_head(model)
    model.eval()


def _keep(run: RunFolder, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, spent: Spent) -> None:
    """A checkpoint, and the log up to it, on the disk itself."""
    sync(run.log)
    save(run.checkpoints, step, state(model, optimizer), vars(spent))


def _set_off(prepared: Prepared, model: Any) -> None:
    """The peak is that of training alone: what came before has given its pages back."""
    set_mode(prepared, model)
    return_free_pages()
    forget_peak()


def set_mode(prepared: Prepared, model: Any) -> None:
    """Dropout as the run has it: none where the probabilities of completions are compared with those they were drawn by."""
    model.train(not rolls(prepared.recipe))
    _quiet(model)
    if prepared.recipe.training.checkpointing:
        recompute(model)


def _quiet(model: Any) -> None:
    """No dropout in a trunk of which nothing trains: what it answers to a row is then always the same."""
    trunk = trunk_of(model)
    if isinstance(trunk, nn.Module) and not any(p.requires_grad for p in trunk.parameters()):
        trunk.eval()


def _steps(
    prepared: Prepared, model: nn.Module, optimizer: torch.optim.Optimizer, start: int, found: Iterator[Sequence[Any]]
) -> Iterator[Step]:
    """The loop, as the recipe sets it."""
    given = prepared.recipe.training
    return fit(
        model,
        found,
        prepared.objective,
        optimizer,
        rate=lambda i: given.rate * given.schedule.share(i, given.steps),
        start=start,
        max_norm=given.max_norm,
        autocast=autocast(model, given),
    )


def _begin(
    model: nn.Module, optimizer: torch.optim.Optimizer, run: RunFolder, said: Callable[[str], None]
) -> tuple[int, Spent]:
    """How many steps are done already, and what they took: none, or those of the newest whole checkpoint."""
    for folder in (run.path, run.checkpoints):
        if folder.exists():
            clean(folder)
    start, spent = 0, Spent()
    if found := newest(run.checkpoints):
        for broken in found.skipped:
            said(broken)
        start, spent = _resume(load(found), model, optimizer)
    truncate_log(run.log, start)
    return start, spent


def groups(prepared: Prepared, model: nn.Module, start: int, said: Callable[[str], None]) -> Iterator[Sequence[Batch]]:
    """The batches of every step after `start`: a pure function of the data, the seed and the step.

    Where the trunk stands still, its hidden states are computed once for each row.
    """
    given, rows = prepared.recipe.training, prepared.train.rows
    sizes = [row.size for row in rows]
    planned = plan(sizes, given.tokens_per_step, given.steps, given.seed)
    cut = [parts(prepared, model, chosen, sizes) for chosen in planned]
    if reference.holds(rows):
        yield from (reference.batches(prepared, model, rows, parts, autocast(model, given)) for parts in cut[start:])
        return

    def made(part: tuple[int, ...]) -> Batch:
        return collated(prepared, model, [rows[i] for i in part], part)

    found = reuse(model, rows, cut)
    if found.note:
        said(found.note)
    if found.possible:
        yield from cached_groups(model, cut, made, start)
    else:
        yield from ([made(part) for part in parts] for parts in cut[start:])


def parts(prepared: Prepared, model: nn.Module, step: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """The rows of a step as what goes through the model at once."""
    return divide(model, step, sizes, prepared.recipe.training.tokens_per_pass)


def collated(prepared: Prepared, model: nn.Module, rows: Sequence[Encoded], numbers: Sequence[int] = ()) -> Batch:
    """Rows as one batch for what answers: the model's text, or its task head."""
    if prepared.head:
        return tasks.collated(prepared.head, model, rows, numbers)
    if reference.holds(rows):
        return reference.batch(prepared, model, cast(Any, rows), numbers)
    return collate(model, rows, prepared.codec.pad, numbers, share=True)


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that the next step depends on: weights, optimizer, random numbers."""
    parameters = trainable(model)
    kept = {f"model/{name}": tensor.cpu() for name, tensor in tensors(model).items()}
    kept |= {f"optimizer/{name}": tensor.cpu() for name, tensor in optim.state(optimizer, parameters).items()}
    kept["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        kept["random/cuda"] = torch.cuda.get_rng_state()
    return kept


def _resume(
    loaded: tuple[int, dict[str, Tensor], Mapping[str, Any]], model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, Spent]:
    step, kept, spent = loaded
    fill(model, _below("model/", kept), where="the checkpoint")
    optim.restore(optimizer, trainable(model), _below("optimizer/", kept))
    torch.set_rng_state(kept["random/cpu"])
    if "random/cuda" in kept and torch.cuda.is_available():
        torch.cuda.set_rng_state(kept["random/cuda"])
    return step, Spent(**spent)


def _below(prefix: str, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in kept.items() if name.startswith(prefix)}


def _row(step: Step) -> dict[str, Any]:
    return {
        "step": step.index,
        "loss": step.loss,
        "norm": step.norm,
        "rate": step.rate,
        "tokens": step.tokens,
        "scored_tokens": step.scored,
        "metrics": dict(step.metrics),
    }


def _watch_dev(prepared: Prepared, model: nn.Module, run: RunFolder, step: int, trackers: Sequence[Tracker]) -> None:
    given = prepared.recipe.training
    every = given.dev_every or max(1, given.steps // 4)
    if not prepared.dev.rows or (step % every and step != given.steps):
        return
    loss = dev_loss(prepared, model)
    append_line(run.log, {"step": step, "dev": {"loss": loss}})
    for tracker in trackers:
        tracker.log(step, {"dev/loss": loss})


def dev_loss(prepared: Prepared, model: nn.Module) -> float:
    """Mean negative log-likelihood in nats per scored token of the dev part; of a head or of comparisons the mean objective."""
    rows = prepared.dev.rows
    if prepared.head:
        return tasks.loss(prepared.head, model, rows)
    if reference.holds(rows):
        return reference.dev_loss(prepared, model, autocast(model, prepared.recipe.training))
    count = sum(sum(row.scored if row.source else row.scored[1:]) for row in rows)
    return -sum(score(model, rows, prepared.codec.pad)) / count


def autocast(model: nn.Module, given: Training) -> torch.dtype | None:
    """bfloat16 products for weights that train in float32 on a machine that multiplies bfloat16 well."""
    own = [(n, p) for n, p in model.named_parameters() if ".delta." not in n and not n.startswith(VALUE)]
    wide = any(p.requires_grad and p.dtype == torch.float32 for _, p in own)
    return torch.bfloat16 if wide and given.precision == "bfloat16" else None


def recompute(model: Any) -> None:
    """Keep no activations for the backward pass but those between layers."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ModelError(
            f"{type(model).__name__} cannot recompute its activations; set training.checkpointing to false."
        )
    # Older releases of transformers 5 have the second name only; newer ones warn of it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _remember(model: Any) -> None:
    """The opposite of `recompute`."""
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    disable()
