"""Prefix tuning: learn keys and values that every layer attends to, before every prompt."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from acclimate.errors import ModelError, RecipeError
from acclimate.methods.delta import attach
from acclimate.methods.soft import Rows, add_soft, observed, sampled, table_of
from acclimate.methods.targets import FUSED, find, width


@dataclass(frozen=True)
class Prefix:
    """Trained keys and values at `length` places before the prompt. Li and Liang 2021, arXiv:2101.00190, section 4.

    Training goes through P = MLP(P'), P' (length, middle), which `settle` replaces by P: Σ over layers of
    length · (d_key + d_value) parameters. They pass through what the model does to keys: rotations of the positions
    from 0, normalisation, a window of attention. An encoder-decoder gets them in its encoder and its cross-attention;
    the paper's also in the decoder's attention to itself.
    """

    length: int = 20
    middle: int = 512  # width of P' and of the hidden layer (the paper: 512 or 800); 0: keys and values train directly
    start: Literal["random", "words"] = "words"  # words: what the base model computes for them
    words: tuple[tuple[int, ...], ...] = ()  # ids of words to start from; a run fills them in; common ones without

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Follow the soft tokens to all keys and values. Raises RecipeError or ModelError where that cannot be."""
        table = table_of(model, "prefix", self.length)
        if self.middle < self.length and self.middle != 0:
            raise RecipeError(f"prefix has middle {self.middle}; it must be 0, or at least the length {self.length}.")
        places = keys_and_values(model, self._ids(table))
        first = add_soft(table, self.length, name)
        hidden = Hidden(self.length, self.middle).to(places[0].rows) if self.middle else None
        for module, columns, rows in places:
            maker = Made(hidden, rows.shape[1]).to(rows) if hidden else None
            if self.start == "random":
                rows = rows.std() * torch.randn(rows.shape, dtype=torch.float32).to(rows)
            elif maker is not None:
                maker.begin_at(rows)
            attach(module, Rows(first, rows, columns, maker), name, source=table)

    def _ids(self, table: nn.Embedding) -> Int[Tensor, " length"]:
        """The words, over again until there are enough."""
        flat = [i for word in self.words for i in word]
        return torch.tensor((flat * self.length)[: self.length]) if flat else sampled(table, self.length)


class Place(NamedTuple):
    """A module whose `columns` (all, without any) are keys or values, and what the base answers there for some ids."""

    module: nn.Module
    columns: Int[Tensor, " d"] | None
    rows: Float[Tensor, "n d"]


def keys_and_values(model: Any, ids: Int[Tensor, " n"]) -> list[Place]:
    """The layers that make keys and values out of what is read, found by reading `ids`; keys before values.

    Raises ModelError for a layout of a fused layer that is not known, and where a layer makes keys of other things too.
    """
    found = find(model, ("key", "value"))
    heard = observed(model, list(found.values()), ids)
    read = (1, len(ids))
    places = []
    for (path, module), calls in zip(found.items(), heard, strict=True):
        shapes = {tuple(y.shape[:-1]) == read for y in calls}
        if shapes == {True, False}:
            raise ModelError(f"{path} makes keys of more than the tokens (positions, as in DeBERTa); prefix cannot.")
        if shapes == {True}:
            columns = fused(path, module, model.config)
            places.append(Place(module, columns, calls[0][0] if columns is None else calls[0][0][:, columns]))
    if not places:
        raise ModelError(f"{type(model).__name__} has no layer that makes keys of the tokens it reads; prefix cannot.")
    return places


def fused(path: str, module: nn.Module, config: Any) -> Int[Tensor, " d"] | None:
    """The columns of a layer's output that are keys, then those that are values; None where all are one of them.

    Raises ModelError for a layer that makes queries, keys and values in an order that is not known.
    """
    ending = path.rpartition(".")[2]
    if ending not in FUSED:
        return None
    columns, text = torch.arange(width(module).d_out), config.get_text_config()
    heads, hidden = text.num_attention_heads, text.hidden_size
    thirds = ending == "Wqkv" or (ending == "c_attn" and not isinstance(module, nn.Linear))  # GPT-2, ModernBERT
    if thirds and len(columns) == 3 * hidden:
        return columns[hidden:]
    if ending == "query_key_value" and len(columns) == 3 * hidden:  # GPT-NeoX, Bloom: head by head
        return columns.view(heads, 3, -1)[:, 1:].transpose(0, 1).flatten()
    if ending == "qkv_proj" and path.endswith("self_attn.qkv_proj"):  # Phi-3: all queries, all keys, all values
        each = getattr(text, "head_dim", None) or hidden // heads
        return columns[heads * each :]
    raise ModelError(f"{path} makes queries, keys and values in an order that is not known; prefix cannot.")


class Hidden(nn.Module):
    """tanh(W P' + b), (length, middle): the part of the MLP that all layers share. P' and W as torch draws them."""

    def __init__(self, length: int, middle: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(length, middle, dtype=torch.float32))
        self.inner = nn.Linear(middle, middle, dtype=torch.float32)

    def forward(self) -> Float[Tensor, "length middle"]:
        return torch.tanh(self.inner(self.start))


class Made(nn.Module):
    """MLP(P'): the columns of its last layer that are the rows (length, d) of one module."""

    def __init__(self, hidden: Hidden, d: int) -> None:
        super().__init__()
        self.hidden, self.last = hidden, nn.Linear(hidden.inner.out_features, d, dtype=torch.float32)

    def forward(self) -> Float[Tensor, "length d"]:
        made: Tensor = self.last(self.hidden())
        return made

    @torch.no_grad()
    def begin_at(self, rows: Float[Tensor, "length d"]) -> None:
        """Give the last layer the smallest weight with which MLP(P') is `rows`. The paper does not say how it begins."""
        self.last.weight.copy_((torch.linalg.pinv(self.hidden()) @ rows).T)
        self.last.bias.zero_()
