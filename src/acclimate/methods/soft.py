"""Soft tokens: ids past the end of the vocabulary, with learned vectors in their places.

Masks, positions, the cache and packing then need no special case: whoever renders text puts the ids into it. A change
on any other module may follow the ids (`attach(…, source=embedding)`) and so knows where the soft tokens are.
"""

from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from acclimate.errors import ModelError, RecipeError
from acclimate.methods.delta import Delta, attach, require, switches, using
from acclimate.methods.switch import links
from acclimate.methods.targets import embedding
from acclimate.models.cache import context
from acclimate.models.modes import evaluating
from acclimate.models.outline import trunk_of

COMMON = 5000  # Lester et al. 2021 sample a start from the 5,000 most common tokens


class Soft(NamedTuple):
    """The ids of an adapter's soft tokens: those before a prompt, and those after it."""

    front: tuple[int, ...] = ()
    back: tuple[int, ...] = ()


class SoftTokens(Delta):
    """`count` ids from `first` on, the last `back` of them for after a prompt, and their vectors (count, d) at the embedding.

    Without vectors the ids only mark places: they look like id 0, and other changes say what is heard there.
    """

    def __init__(self, first: int, count: int, back: int = 0, start: Float[Tensor, "count d"] | None = None) -> None:
        super().__init__()
        self.rows: nn.Parameter | None = None if start is None else nn.Parameter(start)
        self.first, self.count, self.back = first, count, back

    @property
    def soft(self) -> Soft:
        """The ids, in the order of the rows."""
        ids = tuple(range(self.first, self.first + self.count))
        return Soft(ids[: self.count - self.back], ids[self.count - self.back :])

    def forward(self, x: Int[Tensor, "*at"], y: Float[Tensor, "*at d"]) -> Float[Tensor, "*at d"]:
        """y, with this adapter's rows at its own soft tokens. ModelError for a soft token of another."""
        size = cast(nn.Embedding, self.carrier).num_embeddings
        strange = (x >= size) & ((x < self.first) | (x >= self.first + self.count))
        if bool(strange.any()):
            raise ModelError(
                f"Id {int(x[strange][0])} is a soft token of another adapter; the one that answers knows "
                f"{self.first} to {self.first + self.count - 1}. Give each row the soft tokens of its own adapter."
            )
        return y if self.rows is None else placed(x, y, self.rows, self.first)


class Rows(Delta):
    """What a module answers at the soft tokens from `first` on: row i at the i-th, in `columns` of its output or in all.

    maker: computes the rows while they train, if they are no parameters of their own; `settle` writes them down.
    """

    columns: Tensor | None

    def __init__(
        self,
        first: int,
        start: Float[Tensor, "n d"],
        columns: Int[Tensor, " d"] | None = None,
        maker: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.rows: nn.Parameter | None = None if maker is not None else nn.Parameter(start)
        self.maker, self.first = maker, first
        self.register_buffer("columns", columns, persistent=False)

    def values(self) -> Float[Tensor, "n d"]:
        """The rows, however they are made."""
        return cast(Tensor, self.rows if self.maker is None else self.maker())

    def settle(self) -> None:
        """From now on the rows are what their maker computed last; it is dropped."""
        if self.maker is not None:
            trains = next(self.maker.parameters()).requires_grad
            self.rows = nn.Parameter(self.values().detach().clone(), requires_grad=trains)
            self.maker = None

    def forward(self, x: Int[Tensor, "*at"], y: Float[Tensor, "*at d"]) -> Float[Tensor, "*at d"]:
        return placed(x, y, self.values(), self.first, self.columns)


def placed(
    ids: Int[Tensor, "*at"],
    y: Float[Tensor, "*at d"],
    rows: Float[Tensor, "n c"],
    first: int,
    columns: Int[Tensor, " c"] | None = None,
) -> Float[Tensor, "*at d"]:
    """`y`, with row i where the id is `first` + i: in these columns, or in all of them."""
    place = ids - first
    ours = (place >= 0) & (place < len(rows))
    new = rows[place.clamp(0, len(rows) - 1)].to(y.dtype)
    return torch.where(ours[..., None], new if columns is None else y.index_copy(-1, columns, new), y)


def add_soft(table: nn.Embedding, start: Float[Tensor, "n d"] | int, name: str, back: int = 0) -> int:
    """Put soft tokens with these vectors, or so many without, on an input embedding; returns the first of their ids."""
    taken = [link.first + link.count for link in _links(table) if isinstance(link, SoftTokens)]
    first = max([table.num_embeddings, *taken])
    vectors = None if isinstance(start, int) else start
    attach(table, SoftTokens(first, start if isinstance(start, int) else len(start), back, vectors), name, source=table)
    return first


def _links(model: nn.Module, name: str | None = None) -> Iterator[Delta]:
    for switch in switches(model):
        for key, delta in switch.items():
            if name in (None, key):
                yield from links(delta)


def soft_of(model: nn.Module, name: str | None = None) -> Soft:
    """The soft tokens that must be fed when the adapter `name` (without one: whichever answers) is to be heard."""
    for switch in switches(model):
        wanted = name if name is not None else switch.active
        if isinstance(wanted, str) and wanted in switch:
            for link in links(switch[wanted]):
                if isinstance(link, SoftTokens):
                    return link.soft
    return Soft()


def vectors_of(model: nn.Module, name: str = "default") -> Float[Tensor, "n d"]:
    """The vectors that the adapter `name` learned for its soft tokens. Raises ModelError where it learned none."""
    require(model, name)
    for link in _links(model, name):
        if isinstance(link, SoftTokens) and link.rows is not None:
            return link.rows
    raise ModelError(f"The adapter {name!r} learned no vectors of soft tokens.")


def settle(model: nn.Module, name: str = "default") -> None:
    """After training: replace what the adapter `name` computes from other parameters by the result, and drop these.

    Nothing else of an artifact changes, and most adapters have nothing to settle.
    """
    for link in list(_links(model, name)):
        if isinstance(link, Rows):
            link.settle()


def sampled(table: nn.Embedding, count: int) -> Int[Tensor, " count"]:
    """`count` ids of common words: drawn from the 5,000 lowest, which tokenizers give to what is frequent."""
    return torch.randint(min(COMMON, table.num_embeddings), (count,))


def looked_up(table: nn.Embedding, ids: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """What the table alone answers for `ids`, with the factor that some models put into it, in at least float32."""
    y = table.forward(ids.to(table.weight.device)).detach()
    return y.to(torch.promote_types(y.dtype, torch.float32))


@torch.no_grad()
def observed(model: Any, modules: Sequence[nn.Module], ids: Int[Tensor, " n"]) -> list[list[Tensor]]:
    """What each module answers, call by call, while the base model reads `ids`: (1, n, d) of a layer of tokens.

    An encoder-decoder writes n + 1 ids meanwhile, so that its own tokens are told from those it reads.
    """
    heard: list[list[Tensor]] = [[] for _ in modules]
    hooks = [m.register_forward_hook(_listener(to)) for m, to in zip(modules, heard, strict=True)]
    reader = trunk_of(model) or model
    fed = {"input_ids": ids[None].to(next(model.parameters()).device)}
    if "decoder_input_ids" in signature(reader.forward).parameters:
        fed["decoder_input_ids"] = fed["input_ids"].new_zeros(1, len(ids) + 1)
    try:
        with evaluating(model), using(model, None):
            reader(**fed)
    finally:
        for hook in hooks:
            hook.remove()
    return heard


def _listener(to: list[Tensor]) -> Any:
    """A hook that keeps what a module answers. Layers may answer with a tuple, the hidden states first."""

    def hear(module: nn.Module, inputs: Any, output: Any) -> None:
        y: Tensor = output[0] if isinstance(output, tuple) else output
        to.append(y.to(torch.promote_types(y.dtype, torch.float32)))

    return hear


def table_of(model: nn.Module, method: str, *counts: int) -> nn.Embedding:
    """The input embedding (an encoder's) for a method with so many soft tokens in all.

    RecipeError for a number that leaves no room for text, ModelError for an embedding that is no table of vectors.
    """
    room, table = context(model), embedding(model)
    if min(counts) < 0 or sum(counts) < 1 or (room is not None and sum(counts) >= room):
        limit = "" if room is None else f", below the {room} tokens that this model reads"
        raise RecipeError(f"{method} has {' + '.join(map(str, counts))} soft tokens; it needs at least 1{limit}.")
    if not isinstance(table, nn.Embedding):
        raise ModelError(f"The input embedding is a {type(table).__name__}; soft tokens need a table of vectors.")
    return table
