"""A decoding step recorded as a CUDA graph, and the memory of a batch that is written by it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from acclimate.models.frame import Call, Frame, Held


class Recording:
    """A frame, and the graph that fills it; without one the frame's step is run. state: of the model it was made for."""

    def __init__(self, state: Any, frame: Frame) -> None:
        self.state, self.frame = state, frame
        self.graph: torch.cuda.CUDAGraph | None = None
        self.user: ref[Running] | None = None

    @property
    def free(self) -> bool:
        """Whether no batch is written in it."""
        return self.user is None or self.user() is None

    def step(self, call: Call, known: Any) -> Tensor:
        """The frame's logits, made anew. known: the model's `Reader`."""
        if self.graph is None:
            self.frame.run(call, known.memory, known.accepted)
        else:
            self.graph.replay()
        assert self.frame.logits is not None
        return self.frame.logits

    def record(self, call: Call, known: Any) -> None:
        """From now on the step is played. On a CPU, and where PyTorch cannot record it, it goes on to be run."""
        if not self.frame.ids.is_cuda:
            return
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                self.step(call, known)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                self.step(call, known)
        except RuntimeError:
            return
        self.graph = graph


class Running:
    """The memory of rows that are written in a recording's frame; a `Past` has it for its cache.

    rows, time: of what was read. chosen: keys and values of rows named since the last step, which lie in no frame.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.rows = self.time = 0
        self.chosen: Held = ()

    def enter(self, recording: Recording, held: Held) -> None:
        """Go on in that recording's frame, from these keys and values."""
        recording.frame.load(held)
        recording.user = ref(self)
        self.rows, self.time = held[0][0].shape[0], held[0][0].shape[2]
        self.recording, self.chosen = recording, ()

    def leave(self) -> Held:
        """The keys and values of what was read; the frame is another's to use, who may overwrite them."""
        self.recording.user = None
        return self.chosen or self.recording.frame.held(self.rows, self.time)

    def fits(self, time: int) -> bool:
        """Whether the rows lie in the frame, and it has places for `time` tokens."""
        return not self.chosen and time <= self.recording.frame.size[1]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows named, in this order."""
        held = self.chosen or self.recording.frame.held(self.rows, self.time)
        self.chosen = [(keys.index_select(0, beam_idx), values.index_select(0, beam_idx)) for keys, values in held]


@contextmanager
def unasked(device: torch.device) -> Iterator[None]:
    """Inside the `with`, what makes the host wait for the GPU is a RuntimeError."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it does not see everything; recording sees the rest
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
