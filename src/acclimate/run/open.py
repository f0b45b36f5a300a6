"""A model, with or without an adapter, ready to answer: for every verb that does not train."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from acclimate.data.template import Template
from acclimate.errors import ModelError, UsageError
from acclimate.interchange.adapter import load_adapter, shapes
from acclimate.methods.artifact import FACTS, read_facts
from acclimate.methods.soft import soft_of
from acclimate.models.fingerprint import check, template_hash, tokenizer_hash
from acclimate.models.heads import trunk_with_heads
from acclimate.models.load import load
from acclimate.models.outline import head_of, is_encoder_decoder
from acclimate.models.precision import Precision, choose, device
from acclimate.run.prepare import codec_of, context_of
from acclimate.tokens.codec import Codec
from acclimate.tokens.reading import Shape


@dataclass(frozen=True)
class Opened:
    """A model in evaluation mode, its codec and context; facts: what the adapter says of itself."""

    model: Any
    codec: Codec
    context: int
    facts: dict[str, Any]

    def template(self, *, plain: bool = False) -> Template:
        """The format the model is asked in: its chat format unless it has none or `plain` is asked for."""
        chat = self.codec.chat() if self.codec.has_chat and not plain else None
        return Template(chat=chat, end=self.codec.eos_text)


def open_model(name: str, adapter: Path | None = None, precision: Precision = "auto", heads: bool = False) -> Opened:
    """The model called `name`, with the adapter on it. An adapter of another base, tokenizer or chat format is refused.

    heads: whether the adapter may bring a task head; the model is then a `TaskModel`, which answers but writes nothing.
    """
    where = device()
    brought = brought_by(adapter)
    if brought and not heads:
        raise UsageError(
            f"{adapter} brings a task head, which writes and scores no text; ask it with acclimate evaluate."
        )
    loaded = load(name, dtype=choose(precision, where), task="encoder" if brought else "lm")
    model: Any = trunk_with_heads(loaded, pooled(brought)) if brought else loaded.model
    model.to(where)
    codec = codec_of(loaded)
    facts: dict[str, Any] = {}
    if adapter is not None:
        if not adapter.is_dir():
            raise UsageError(f"There is no adapter folder {adapter}; give the adapter/ folder of a run.")
        _, facts = load_adapter(model, adapter)
        _same_text(codec, facts, adapter)
        soft = soft_of(model)
        codec = replace(codec, front=soft.front, back=soft.back)
    if not brought and not is_encoder_decoder(model) and head_of(model) is None:
        raise ModelError(f"{name} has no language-model head, so it can neither write nor score text.")
    return Opened(model.eval(), codec, context_of(model), facts)


def brought_by(adapter: Path | None) -> dict[str, Shape]:
    """The task heads that an adapter brings, by task."""
    said = adapter / FACTS if adapter is not None else None
    return shapes(read_facts(said), adapter) if adapter is not None and said is not None and said.is_file() else {}


def pooled(heads: Mapping[str, Shape]) -> bool:
    """Whether one of the heads looks through the encoder's own pooler."""
    return any(shape.pool == "pooler" and shape.whole for shape in heads.values())


def _same_text(codec: Codec, facts: dict[str, Any], adapter: Path) -> None:
    if said := facts.get("tokenizer"):
        check(tokenizer_hash(codec.tokenizer), said, "tokenizer")
    if said := facts.get("chat"):
        check(template_hash(codec.chat().source), said, f"chat template of {adapter}")
