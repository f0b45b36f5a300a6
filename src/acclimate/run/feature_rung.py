"""The feature-based way: nothing of the model trains; a classifier is fitted on features that are computed once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from acclimate.data.examples import Example
from acclimate.data.vectors import Vectors, fasttext, glove, word2vec
from acclimate.errors import RecipeError
from acclimate.evaluation.classifier import Chosen, Classify, Embedded, Kind, choose_classifier
from acclimate.models.features import Pool, cached_features, encoded
from acclimate.run.measure import headline
from acclimate.run.prepare import Prepared
from acclimate.tokens.codec import Codec

Embed = Callable[[Sequence[str]], Embedded]


@dataclass(frozen=True)
class Features:
    """A classifier on frozen features: pooled hidden states of one layer, or the mean of static word vectors.

    Peters et al. 2019, arXiv:1903.05987. The regularisation is chosen on dev. It has no learning rate to search.
    """

    layer: int = -1  # 0 the embeddings, i after the i-th layer, −1 the trunk's answer
    pool: Pool = "mean"
    classifier: Kind = "logistic"
    vectors: Literal["", "glove", "word2vec", "fasttext"] = ""  # instead of hidden states

    def fit_predictor(self, prepared: Prepared, seed: int) -> Classify:
        """The predictor alone."""
        return fit_features(prepared, self, seed)[0]


def fit_features(prepared: Prepared, spec: Features, seed: int = 0) -> tuple[Classify, dict[str, Any]]:
    """Fit on the training rows, choose on dev; the predictor, and what there is to say of it.

    Texts are the questions under the task's template, outside any chat format. The word vectors that are trained see
    the training texts only. Raises RecipeError for a task without labels.
    """
    labels = prepared.recipe.task.labels
    if not labels:
        raise RecipeError("method features classifies, and this task has no labels; give task.labels.")
    train, dev = (_labelled(part.rows) for part in (prepared.parts.train, prepared.parts.dev))
    texts, targets = [prepared.template.question(row) for row in train], [row.target for row in train]
    embed = embedding(prepared, spec, texts, seed)
    asked = embed([prepared.template.question(row) for row in dev]) if dev else Embedded(embed(texts[:1]).rows[:0], ())
    chosen = choose_classifier(
        (embed(texts).rows, targets),
        (asked.rows, [row.target for row in dev]),
        labels,
        spec.classifier,
        lambda outputs: headline(prepared, outputs, dev),
    )
    return Classify(embed, prepared.template, chosen.classifier), _facts(chosen, asked)


def embedding(prepared: Prepared, spec: Features, texts: Sequence[str], seed: int) -> Embed:
    """What turns texts into vectors; static vectors that have to be trained are trained on `texts`."""
    if spec.vectors:
        return Static(_vectors(spec.vectors, texts, seed))
    return Hidden(prepared.model, prepared.codec, spec.layer, spec.pool, prepared.context)


def _vectors(kind: str, texts: Sequence[str], seed: int) -> Vectors:
    if kind == "glove":
        return glove()
    return (word2vec if kind == "word2vec" else fasttext)(texts, seed=seed)


@dataclass(frozen=True)
class Hidden:
    """Pooled hidden states of the base model, kept on disk by content. context: ids that fit."""

    model: nn.Module
    codec: Codec
    layer: int
    pool: Pool
    context: int

    def __call__(self, texts: Sequence[str]) -> Embedded:
        """A vector for each text; of a text that is too long the oldest ids are left out."""
        rows = encoded(self.codec, texts, self.context)
        found = cached_features(self.model, rows, self.codec.pad, self.layer, self.pool)
        return Embedded(found, tuple(row.truncated for row in rows))


@dataclass(frozen=True)
class Static:
    """The mean of the word vectors of each text."""

    vectors: Vectors

    def __call__(self, texts: Sequence[str]) -> Embedded:
        """A vector for each text; zeros where no word is known."""
        return Embedded(self.vectors.features(texts), (0,) * len(texts))


def _labelled(rows: Sequence[Any]) -> list[Example]:
    for row in rows:
        if not (isinstance(row, Example) and row.target):
            raise RecipeError(f"{row.where} is a {type(row).__name__} without a label; method features needs labels.")
    return list(rows)


def _facts(chosen: Chosen, dev: Embedded) -> dict[str, Any]:
    return {
        "strength": chosen.strength,
        "dev": {str(strength): value for strength, value in chosen.tried.items()},
        "dimensions": int(dev.rows.shape[1]),
        "trainable_parameters": chosen.classifier.parameters,
        "truncated_dev_texts": sum(cut > 0 for cut in dev.truncated),
    }
