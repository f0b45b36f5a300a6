"""A decoding step of fixed shapes: all that it reads and writes lies where it lay at the step before.

The memory has places for tokens to come and rows to spare; a mask says which places exist. So one step is like the next
but for the numbers in its tensors, and may be recorded once and played again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

Held = Sequence[tuple[Tensor, Tensor]]  # of each layer keys and values, (rows, heads, time, d)
Call = Callable[[Mapping[str, Any]], Any]  # the model's forward, without dropout or a way back
LEAST, SPARE = 256, 64  # places that a frame has at least; places for tokens to come, when it is chosen


class FixedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer of transformers' cache that has all its places from the start. `at` (1,) says where a token goes."""

    keys: Tensor
    values: Tensor

    def __init__(self, like: tuple[Tensor, Tensor], rows: int, places: int, at: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values = (x.new_zeros(rows, x.shape[1], places, x.shape[3]) for x in like)
        self.at, self.is_initialized = at, True

    def update(self, key_states: Tensor, value_states: Tensor, *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """All keys and values (rows, heads, places, d), those of one token (rows, heads, 1, d) put in their place."""
        return self.keys.index_copy_(2, self.at, key_states), self.values.index_copy_(2, self.at, value_states)


@dataclass(eq=False)
class Frame:
    """The tensors of a step.

    at: where the token goes. mask: True = exists. logits: what the step last run has written, in the model's dtype.
    """

    ids: Int[Tensor, "rows 1"]
    positions: Int[Tensor, "rows 1"]
    mask: Bool[Tensor, "rows 1 1 places"]
    at: Int[Tensor, " 1"]
    layers: tuple[FixedLayer, ...]
    logits: Float[Tensor, "rows vocab"] | None = None

    @classmethod
    def of(cls, like: Held, rows: int, places: int) -> "Frame":
        """Empty, for keys and values like those."""
        device = like[0][0].device
        ids, positions, at = (
            torch.zeros(shape, dtype=torch.long, device=device) for shape in ((rows, 1), (rows, 1), (1,))
        )
        mask = torch.zeros(rows, 1, 1, places, dtype=torch.bool, device=device)
        return cls(ids, positions, mask, at, tuple(FixedLayer(pair, rows, places, at) for pair in like))

    @property
    def size(self) -> tuple[int, int]:
        """Rows and places."""
        return self.mask.shape[0], self.mask.shape[3]

    @property
    def nbytes(self) -> int:
        """Of keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    def load(self, held: Held) -> None:
        """Take over keys and values; beyond them all is 0, so that what the mask hides is a number."""
        for layer, pair in zip(self.layers, held, strict=True):
            for space, x in zip((layer.keys, layer.values), pair, strict=True):
                space.zero_()[: x.shape[0], :, : x.shape[2]] = x

    def held(self, rows: int, time: int) -> Held:
        """The keys and values of the first rows, up to `time`: views."""
        return [(layer.keys[:rows, :, :time], layer.values[:rows, :, :time]) for layer in self.layers]

    def give(self, ids: Int[Tensor, " rows"], mask: Int[Tensor, "rows read"]) -> None:
        """The tokens of the next step, and what exists with them (1 = real). Rows to spare see one place, whatever it holds."""
        rows, read = mask.shape
        self.ids[:rows, 0] = ids
        self.positions[:rows, 0] = mask.sum(-1) - 1
        self.at.fill_(read - 1)
        self.mask.zero_()[rows:, ..., 0] = True
        self.mask[:rows, 0, 0, :read] = mask.bool()

    def run(self, call: Call, memory: str, accepted: frozenset[str]) -> None:
        """One step; again with the same tokens it writes the same. memory, accepted: as a `Reader` has them."""
        inputs = {"input_ids": self.ids, "position_ids": self.positions, "attention_mask": self.mask, "use_cache": True}
        few = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.logits = call({**inputs, **few, memory: Cache(layers=[*self.layers])}).logits[:, -1]


def fitting(rows: int, time: int) -> tuple[int, int]:
    """Rows and places of a frame to make for `rows` that are `time` long: few sizes, which recur.

    >>> fitting(1, 10), fitting(3, 250), fitting(19, 1000)
    ((1, 256), (4, 512), (24, 2048))
    """
    wide = 1 << (rows - 1).bit_length() if rows < 8 else rows + -rows % 8
    return wide, max(LEAST, 1 << (time + SPARE - 1).bit_length())
