"""QLoRA: LoRA on a base held in four bits."""

from dataclasses import dataclass

from torch import nn

from acclimate.errors import ModelError, RecipeError
from acclimate.methods.delta import names
from acclimate.methods.lora import LoRA
from acclimate.methods.nf4 import NF4Linear
from acclimate.methods.targets import find, width


@dataclass(frozen=True)
class QLoRA:
    """LoRA on every linear layer of a base in NF4. Dettmers et al. 2023, arXiv:2305.14314, eq. 5.

    Training starts at the quantised base, and that is what `detach` and `disabled` give back: the numbers of before are
    gone, so open the model again for them. The adapter is a plain LoRA, which goes on the unquantised base as well.
    The paper's paged optimizer, which any method can have, is the recipe's `training.paged`.
    """

    rank: int = 8  # rows of A, columns of B
    alpha: float = 16.0  # the change is scaled by alpha / rank
    dropout: float = 0.0  # on the input of A, while training
    targets: tuple[str, ...] = ("linear",)  # where the adapters go; all linear layers are quantised
    double: bool = True  # quantise the constants too: 4.127 bits a number instead of 4.5

    def __post_init__(self) -> None:
        """RecipeError for numbers that make no sense."""
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise RecipeError(
                f"qlora has rank {self.rank} and dropout {self.dropout}; the rank is at least 1, "
                "the dropout at least 0 and below 1."
            )

    @property
    def plain(self) -> LoRA:
        """The LoRA that this is on the unquantised base."""
        return LoRA(self.rank, self.alpha, self.dropout, self.targets)

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Quantise the layers unless they are, and attach one `LowRank` to every target.

        Raises RecipeError or ModelError where that cannot be, and then quantises nothing.
        """
        find(model, self.targets)
        quantise_layers(model, self.double)
        self.plain.install(model, name)


def quantise_layers(model: nn.Module, double: bool = True) -> None:
    """Hold every linear module inside the layers in NF4, in its place; embeddings and output layer stay as they are.

    Layers that are in NF4 already are left alone. There is no way back. Raises ModelError where adapters ride on the
    model, which were made for it as it is, and where its layers are in the other kind of NF4.
    """
    layers = find(model, ("linear",)).values()
    plain = {id(module): module for module in layers if not isinstance(module, NF4Linear)}
    if any(isinstance(module, NF4Linear) and (module.scales is not None) != double for module in layers):
        raise ModelError(f"The layers of this model were quantised with double: {not double}; open the model again.")
    if plain and names(model):
        raise ModelError(
            f"This model carries the adapter {names(model)[0]!r}, made for the base as it is; quantising would change "
            "the base under it. Detach it first."
        )
    made = {key: _quantised(module, double) for key, module in plain.items()}
    for parent in [*model.modules()]:
        for place, child in parent.named_children():
            if id(child) in made:
                setattr(parent, place, made[id(child)])


def _quantised(module: nn.Module, double: bool) -> NF4Linear:
    transposed = width(module).transposed
    weight, bias = module.get_parameter("weight"), module._parameters.get("bias")
    made = NF4Linear(weight.T if transposed else weight, bias, double=double, transposed=transposed)
    return made.train(module.training)
