"""Prefix-layer tuning: learn what every layer is given at tokens before and after every prompt."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from acclimate.errors import ModelError
from acclimate.methods.delta import attach
from acclimate.methods.soft import Rows, add_soft, looked_up, observed, sampled, table_of
from acclimate.methods.targets import layers


@dataclass(frozen=True)
class PreLayer:
    """As PreEmbed, and what a layer computes there is replaced as well. Hu et al. 2021, arXiv:2106.09685, section 5.1.

    L d (l_p + l_i) parameters, so: after the embedding and after each of the L layers but the last. What the last one
    computes at the end of the infix predicts the first token of the answer, so it is left alone.
    The paper does not say how they start: here with what the base model computes for common words.
    Of an encoder-decoder, the encoder's layers.
    """

    prefix: int = 8  # l_p
    infix: int = 8  # l_i

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Follow the soft tokens through the layers. Raises RecipeError or ModelError where that cannot be."""
        table = table_of(model, "prelayer", self.prefix, self.infix)
        ids = sampled(table, self.prefix + self.infix)
        inner = _read(model)[:-1]
        heard = observed(model, inner, ids)
        if any(len(calls) != 1 for calls in heard):
            raise ModelError(f"{type(model).__name__} runs a layer more than once; prelayer needs a vector for each.")
        first = add_soft(table, looked_up(table, ids), name, back=self.infix)
        for layer, (after,) in zip(inner, heard, strict=True):
            attach(layer, Rows(first, after[0]), name, source=table)


def _read(model: Any) -> list[nn.Module]:
    """The layers through which the prompt goes."""
    return layers(model.get_encoder() if model.config.is_encoder_decoder else model)
