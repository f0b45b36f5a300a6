"""Decoding steps on CUDA: recorded once for so many rows and places, and played again for every token.

A step of a small model is hundreds of short kernels, and the time goes into starting them one by one; a recording starts
them at once. It holds the addresses of the weights, so it is for the model as it is. A model whose step asks the host about
its numbers, or computes something else in a frame, is found out before it is first recorded, and decodes plainly.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import Tensor, nn

from acclimate.models.frame import Call, Frame, Held, fitting
from acclimate.models.kernels import content
from acclimate.models.memory import RoomyLayer
from acclimate.models.recording import Recording, Running, unasked

KEPT, ROOM = 8, 1 << 31  # recordings of a model that nobody uses, and bytes of their frames, before the oldest go
KNOWN = ("acclimate.", "transformers.", "torch.")  # whose hooks compute, and count nothing
NEAR = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest logit; 3e-2 for others

_recorded: WeakKeyDictionary[nn.Module, list[Recording]] = WeakKeyDictionary()
_refused: WeakKeyDictionary[nn.Module, set[Any]] = WeakKeyDictionary()  # the states in which a model is not recorded
_plain: WeakSet[Any] = WeakSet()  # memories of batches that are written plainly to their end


def describe() -> str:
    """What is decided for every model, in a line."""
    return "recorded where a trial finds the same logits"


def serves(ids: Tensor, past: Any) -> bool:
    """Whether the next step of these rows may be recorded: a decoder's on CUDA, told its positions."""
    there = ids.is_cuda and content(ids) and ids.device.index == torch.cuda.current_device()
    return there and past.encoded is None and "position_ids" in past.reader.accepted


def extend(model: nn.Module, ids: Tensor, past: Any, call: Call, plain: Callable[[], Any]) -> Any:
    """As `cache.extend`, for a `past` whose mask has the new token already: logits (rows, vocab), and the memory with it.

    plain: does the same without a recording. It is asked where there can be none, and once beside a batch's new one.
    """
    running = past.cache
    if not isinstance(running, Running):
        state = None if running in _plain else _state(past)
        if state is None or state in _refused.get(model, ()):
            _plain.add(running)
            return plain()
        return _begin(model, ids, past, state, call, plain)
    if not running.fits(past.mask.shape[1]):
        _, new = _enter(model, running.recording.state, ids, past, running.leave(), running)
        if new:
            _keep(model, running.recording, call, past.reader)
    return _stepped(running, ids, past, call)


def _begin(model: nn.Module, ids: Tensor, past: Any, state: Any, call: Call, plain: Callable[[], Any]) -> Any:
    """The first step of a batch, whose memory has grown plainly until now."""
    held = [(layer.keys, layer.values) for layer in past.cache.layers]
    running, new = _enter(model, state, ids, past, held, None)
    if new:
        wanted, after = plain()
        if not _same(running.recording, call, past.reader, wanted):
            _refused.setdefault(model, set()).add(state)
            return wanted, after
        _keep(model, running.recording, call, past.reader)
    return _stepped(running, ids, past, call)


def _enter(
    model: nn.Module, state: Any, ids: Tensor, past: Any, held: Held, running: Running | None
) -> tuple[Running, bool]:
    """A batch goes on in a frame that has room for it; whether that one is new."""
    (rows, time), (wide, places) = past.mask.shape, fitting(*past.mask.shape)
    free = [r for r in _recorded.get(model, []) if r.free and r.state == state]
    fits = [r for r in free if rows <= r.frame.size[0] <= 2 * wide and time <= r.frame.size[1] <= 2 * places]
    recording = min(fits, key=lambda r: r.frame.nbytes) if fits else Recording(state, Frame.of(held, wide, places))
    running = running or Running(recording)
    running.enter(recording, held)
    recording.frame.give(ids, past.mask)
    return running, not fits


def _stepped(running: Running, ids: Tensor, past: Any, call: Call) -> Any:
    running.recording.frame.give(ids, past.mask)
    logits = running.recording.step(call, past.reader)[: len(ids)].clone()
    running.rows, running.time = past.mask.shape
    return logits, replace(past, cache=running)


def _same(recording: Recording, call: Call, known: Any, wanted: Tensor) -> bool:
    """Whether the frame's step computes `wanted` (rows, vocab), and does not ask the host."""
    try:
        with unasked(wanted.device):
            found = recording.step(call, known)[: len(wanted)]
    except (RuntimeError, ValueError, TypeError):
        return False
    return bool((found - wanted).abs().amax() <= NEAR.get(found.dtype, 3e-2) * wanted.abs().amax().clamp(min=1))


def _state(past: Any) -> tuple[Any, ...] | None:
    """What a recording of the model holds for; None where there can be none.

    It can be where memory grows plainly, all rows have one adapter, no stranger's hook counts on being called, and weights
    are not rounded on their way, into copies that a recording would hold the addresses of.
    """
    modules = past.reader.modules
    hooks = [hook for m in modules for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    active = [getattr(module, "active", None) for module in modules]
    known = all(str(getattr(hook, "__module__", "")).startswith(KNOWN) for hook in hooks)
    if not known or not all(isinstance(name, str | None) for name in active):
        return None
    if not all(type(layer) is RoomyLayer for layer in past.cache.layers):
        return None
    if torch.is_autocast_enabled(past.mask.device.type):
        return None
    tensors = (t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None)
    return (*map(ref, modules), *active, *(t.data_ptr() for t in tensors))


def _keep(model: nn.Module, recording: Recording, call: Call, known: Any) -> None:
    """Record the step, and know it; of those that nobody uses, the oldest go while they are too many or too large."""
    recording.record(call, known)
    kept = _recorded.setdefault(model, [])
    free = [r for r in kept if r.free]
    while free and (len(free) > KEPT or sum(r.frame.nbytes for r in free) > ROOM):
        kept.remove(free.pop(0))
    kept.append(recording)
