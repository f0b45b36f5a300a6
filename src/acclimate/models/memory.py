"""Keys and values with room for those to come: a decoding step writes its own into place and copies nothing else.

transformers' cache is concatenated anew at every step, which copies all it holds.
"""

import inspect
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

SPARE = 64  # positions that are added at least when the room is used up


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer of transformers' cache whose keys and values are views of spaces that are half as long again."""

    keys: Tensor
    values: Tensor

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        vars(self).update(vars(layer))
        self._spaces: dict[str, Tensor] = {"keys": self.keys, "values": self.values}

    def update(self, key_states: Tensor, value_states: Tensor, *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """All keys and values (rows, heads, time, d), the new ones last: views, whose places no later step changes."""
        self.keys = self._add("keys", self.keys, key_states)
        self.values = self._add("values", self.values, value_states)
        return self.keys, self.values

    def one_more(self) -> tuple[Tensor, Tensor]:
        """Keys and values with a place behind them for one token more, which the caller fills."""
        self.keys, self.values = self._longer("keys", self.keys, 1), self._longer("values", self.values, 1)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows named, in this order; those that keep their place stay where they are."""
        order = beam_idx.tolist()
        same = next((place for place, row in enumerate(order) if place != row), len(order))
        rows = beam_idx.to(self.keys.device)
        self.keys = self._select("keys", self.keys, rows, same)
        self.values = self._select("values", self.values, rows, same)

    def _add(self, name: str, held: Tensor, new: Tensor) -> Float[Tensor, "rows heads time d"]:
        longer = self._longer(name, held, new.shape[2])
        longer[:, :, held.shape[2] :] = new
        return longer

    def _longer(self, name: str, held: Tensor, more: int) -> Float[Tensor, "rows heads time d"]:
        begin, end = held.shape[2], held.shape[2] + more
        space = self._spaces[name][: held.shape[0]]
        if space.data_ptr() != held.data_ptr() or end > space.shape[2] or space.shape[0] < held.shape[0]:
            rows, heads, _, width = held.shape
            space = held.new_empty(rows, heads, end + max(SPARE, end // 2), width)
            space[:, :, :begin] = held
            self._spaces[name] = space
        return space[:, :, :end]

    def _select(self, name: str, held: Tensor, rows: Tensor, same: int) -> Float[Tensor, "rows heads time d"]:
        space = self._spaces[name]
        if len(rows) > len(space) or space.data_ptr() != held.data_ptr():
            return held.index_select(0, rows)
        kept = space[: len(rows), :, : held.shape[2]]
        kept[same:] = held.index_select(0, rows[same:])
        return kept


def memory_name(model: nn.Module) -> str:
    """What this model's forward calls a Cache: transformers renamed it in 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def make_room(cache: Any) -> Any:
    """`cache`, the prompts read: its plain growing layers get room; sliding windows and other kinds stay as they are.

    Of an encoder-decoder's cache that is the part that grows.
    """
    growing = getattr(cache, "self_attention_cache", cache)
    growing.layers = [RoomyLayer(layer) if _grows(layer) else layer for layer in growing.layers]
    return cache


def _grows(layer: Any) -> bool:
    return type(layer) is DynamicLayer and layer.is_initialized
