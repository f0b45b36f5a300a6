"""One trunk with task heads on it: g_j(f(x)), each head a linear layer on the trunk's hidden states.

The trunk is the model without its language-model head: an encoder, a decoder, or the encoder of an encoder-decoder.
"""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acclimate.errors import ModelError, unknown
from acclimate.models.gated import quick
from acclimate.models.load import Loaded
from acclimate.models.outline import is_encoder_decoder
from acclimate.tokens.reading import Pool, Shape, Sheet

DROPOUTS = (
    "classifier_dropout",
    "seq_classif_dropout",
    "hidden_dropout_prob",
    "pooler_dropout",
)  # the first that is set


class TaskHead(nn.Module):
    """W dropout(x) + b, W from a normal distribution of the model's own standard deviation, b zero."""

    def __init__(self, shape: Shape, features: int, dropout: float, std: float, seed: int) -> None:
        super().__init__()
        self.shape = shape
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(features, shape.width)
        nn.init.normal_(self.out.weight, std=std, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        answer: Tensor = self.out(self.dropout(x))
        return answer.to(torch.promote_types(answer.dtype, torch.float32))


class TaskModel(nn.Module):
    """A trunk and its task heads by name. What it is asked of a language model it hands on to the trunk."""

    base_model_prefix = "trunk"

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk: Any = trunk
        self.heads = nn.ModuleDict()
        known = signature(trunk.forward).parameters
        self.typed = "token_type_ids" in known and getattr(trunk.config, "type_vocab_size", 0) > 1
        self.cached = "use_cache" in known

    @property
    def config(self) -> Any:
        """The trunk's."""
        return self.trunk.config

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether the trunk can recompute its activations."""
        return bool(self.trunk.supports_gradient_checkpointing)

    def gradient_checkpointing_enable(self, how: Mapping[str, Any]) -> None:
        """Recompute the trunk's activations in the backward pass."""
        trunk = self.trunk  # older releases of transformers 5 have the second name only
        (getattr(trunk, "activation_checkpointing_enable", None) or trunk.gradient_checkpointing_enable)(how)

    def gradient_checkpointing_disable(self) -> None:
        """The opposite."""
        trunk = self.trunk
        (getattr(trunk, "activation_checkpointing_disable", None) or trunk.gradient_checkpointing_disable)()

    def get_input_embeddings(self) -> nn.Module:
        """Where the trunk looks up its tokens."""
        return cast(nn.Module, self.trunk.get_input_embeddings())

    def get_encoder(self) -> nn.Module:
        """The trunk: of an encoder-decoder it is the encoder."""
        return cast(nn.Module, self.trunk)

    def get_output_embeddings(self) -> None:
        """It writes nothing."""

    def can_generate(self) -> bool:
        """It writes nothing."""
        return False

    def add(self, shape: Shape, task: str = "default", seed: int = 0) -> None:
        """Give it one more head, drawn from `seed`, on the trunk's device and in its precision."""
        if task in self.heads:
            raise ModelError(f"This model has a head called {task!r} already; give the new one another name.")
        if shape.pool == "pooler" and getattr(self.trunk, "pooler", None) is None:
            raise ModelError(
                f"{type(self.trunk).__name__} has no pooler with weights; pool the first token or the mean."
            )
        config, like = self.config, next(p for p in self.trunk.parameters() if p.is_floating_point())
        dropout = next((d for d in (getattr(config, name, None) for name in DROPOUTS) if d is not None), 0.0)
        std = getattr(config, "initializer_range", None) or 0.02
        head = TaskHead(shape, int(config.hidden_size), float(dropout), std, seed)
        self.heads[task] = head.to(like.device, like.dtype).train(self.training)

    def shape(self, task: str = "default") -> Shape:
        """The shape of one of its heads."""
        if task not in self.heads:
            raise ModelError(unknown("task head of this model", task, self.heads))
        return cast(TaskHead, self.heads[task]).shape

    def forward(self, batch: Sheet) -> Float[Tensor, "n k"]:
        """What the batch's head answers, in at least float32: for each text, or for each token that it looks at."""
        shape = self.shape(batch.task)
        return cast(Tensor, self.heads[batch.task](vectors(self, batch, shape)))


def vectors(model: TaskModel, batch: Sheet, shape: Shape) -> Float[Tensor, "n d"]:
    """(n, d): the pooled text or the token at each place of the batch, or what the batch knows of them already."""
    if batch.hidden is not None:
        return batch.hidden
    given: dict[str, Any] = {"input_ids": batch.ids}
    if batch.packed:
        given |= {"position_ids": batch.positions, "document_pieces": batch.pieces}
    else:
        given |= {"attention_mask": batch.mask}
    given |= {"token_type_ids": batch.types} if model.typed else {}
    given |= {"use_cache": False} if model.cached else {}
    with quick(model):
        states: Tensor = model.trunk(**given).last_hidden_state
    if shape.pool == "mean" and shape.whole:
        return mean(states, batch.mask) if batch.mask is not None else _means(states[0], batch.lengths)
    chosen = states.flatten(0, 1)[batch.predict]
    return cast(Tensor, model.trunk.pooler(chosen[:, None])) if shape.pool == "pooler" and shape.whole else chosen


def mean(states: Float[Tensor, "rows time d"], mask: Tensor) -> Float[Tensor, "rows d"]:
    """The mean over the real tokens, special ones included. Reimers & Gurevych 2019, section 3."""
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def _means(states: Float[Tensor, "tokens d"], lengths: Sequence[int]) -> Float[Tensor, "rows d"]:
    """As `mean`, of documents that stand one behind the other."""
    parts = torch.split(states[: sum(lengths)], list(lengths))
    return torch.stack([part.mean(0) for part in parts])


def trunk_with_heads(loaded: Loaded, pooler: bool) -> TaskModel:
    """The loaded trunk (`load(…, task="encoder")`) ready for heads; the encoder alone of an encoder-decoder.

    pooler: keep the dense layer that some encoders bring for their first token; unused it could not train.
    """
    trunk: Any = loaded.model.get_encoder() if is_encoder_decoder(loaded.model) else loaded.model
    if not pooler and getattr(trunk, "pooler", None) is not None:
        trunk.pooler = None
    return TaskModel(trunk)


def best_pool(loaded: Loaded) -> Pool:
    """How a text becomes one vector where the recipe leaves it open.

    The mean for encoders of sentences (saved bare, or by sentence-transformers) and of encoder-decoders; the last token
    of a decoder, which alone has seen all; otherwise the first, through the pooler if its weights are there.
    """
    model, config = loaded.model, loaded.model.config
    bare = any(name.endswith("Model") for name in config.architectures or ())
    if is_encoder_decoder(model):
        return "mean"
    if is_causal(model):
        return "last"
    if bare or (loaded.place / "modules.json").exists():
        return "mean"
    return first(loaded)


def first(loaded: Loaded) -> Pool:
    """The first token, through the pooler where the checkpoint has one."""
    return "pooler" if getattr(loaded.model, "pooler", None) is not None else "first"


@torch.no_grad()
def is_causal(trunk: nn.Module) -> bool:
    """Whether each token sees only those before it: tried on two texts that differ in their last token."""
    ids = torch.tensor([[3, 4, 5], [3, 4, 6]], device=next(trunk.parameters()).device)
    one, other = trunk(input_ids=ids).last_hidden_state[:, 0]
    return bool(torch.allclose(one, other, rtol=1e-3, atol=1e-3))
