"""Prompt tuning: learn the vectors of a few tokens before every prompt."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acclimate.errors import RecipeError
from acclimate.methods.soft import add_soft, looked_up, sampled, table_of, vectors_of
from acclimate.methods.targets import embedding

WIDE = 0.5  # a random start is uniform between minus and plus this


@dataclass(frozen=True)
class PromptTuning:
    """[P; X] → Y with a frozen model, P (length, d) trained. Lester et al. 2021, arXiv:2104.08691, sections 2 and 3.2.

    It starts at no base model: the soft tokens are read from the first step on. length · d parameters.
    """

    length: int = 20  # soft tokens; the paper's default is 100, and finds little above 20
    start: Literal["random", "vocabulary", "labels"] = "vocabulary"
    words: tuple[tuple[int, ...], ...] = ()  # ids of each label, for a start from labels; a run fills them in

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Put the soft tokens on the input embedding (an encoder's). Raises RecipeError where that cannot be."""
        table = table_of(model, "prompt", self.length)
        if self.start == "labels" and not all([self.words, *self.words]):
            raise RecipeError("prompt starts from labels, but it was given none; start from vocabulary or random.")
        add_soft(table, self._drawn(table), name)

    def learned(
        self, model: nn.Module, read: Callable[[], None], spell: Callable[[int], str], name: str = "default"
    ) -> dict[str, dict[str, dict[str, float]]]:
        """The words nearest to each soft token, with their cosine; section 7 of the paper."""
        rows: dict[str, dict[str, float]] = {}
        for place, near in enumerate(nearest(model, name), start=1):
            row = rows.setdefault(str(place), {})
            for word, cosine in near:
                text = spell(word)
                row[f"{text} ({word})" if text in row else text] = cosine  # bytes of several ids may look the same
        return {"Words nearest to each learned vector, with their cosine": rows}

    def _drawn(self, table: nn.Embedding) -> Float[Tensor, "length d"]:
        if self.start == "random":
            return (2 * torch.rand(self.length, table.embedding_dim, dtype=torch.float32) - 1) * WIDE
        rows = looked_up(table, sampled(table, self.length))
        if self.start == "labels":  # of several tokens the mean; what labels do not fill is drawn from the vocabulary
            named = [looked_up(table, torch.tensor(word)).mean(0) for word in self.words[: self.length]]
            rows[: len(named)] = torch.stack(named)
        return rows


def nearest(model: nn.Module, name: str = "default", count: int = 5) -> list[list[tuple[int, float]]]:
    """For each soft token of the adapter `name`, the `count` ids with the most alike vectors, and their cosine.

    Lester et al. 2021, section 7. Raises ModelError for an adapter that learned no such vectors.
    """
    rows = vectors_of(model, name).detach()
    words = cast(nn.Embedding, embedding(model)).weight.detach().to(rows.dtype)
    cosine = nn.functional.normalize(rows, dim=-1) @ nn.functional.normalize(words, dim=-1).T
    best = cosine.topk(min(count, len(words)), dim=-1)
    return [list(zip(i, c, strict=True)) for i, c in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
