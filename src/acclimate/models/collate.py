"""The batch a model can read: a packed stream where it keeps documents apart, a padded rectangle otherwise."""

from collections.abc import Sequence
from typing import cast

from torch import nn

from acclimate.models.heads import TaskModel
from acclimate.models.outline import is_encoder_decoder, outline
from acclimate.tokens.batch import Batch, pack, pad, pad_pairs
from acclimate.tokens.codec import Encoded
from acclimate.tokens.reading import Reading, Sheet, sheet, stream
from acclimate.tokens.schedule import even_passes, passes

WORTH = 8  # ids that documents must begin with in common, for them to be read once


def collate(
    model: nn.Module, rows: Sequence[Encoded], fill: int, numbers: Sequence[int] = (), share: bool = False
) -> Batch:
    """`rows` as one batch on the model's device. share: what several of them begin with is read once, where that is the same."""
    device = next(model.parameters()).device
    if is_encoder_decoder(model):
        start = int(model.config.decoder_start_token_id)  # type: ignore[union-attr, arg-type]
        return pad_pairs(rows, fill, start, numbers).to(device)
    if not streams(model):
        return pad(rows, fill, numbers).to(device)
    return pack(rows, numbers, WORTH if share and _shares(model) else 0).to(device)


def collate_readings(
    model: TaskModel, rows: Sequence[Reading], fill: int, numbers: Sequence[int] = (), task: str = "default"
) -> Sheet:
    """`rows` as one batch for a head of the model, on its device; beginnings are shared where that changes nothing."""
    shape = model.shape(task)
    if streams(model):
        alone = (shape.pool == "mean" and shape.whole) or not _shares(model)  # a mean is over ids of its own
        made = stream(rows, shape, numbers, 0 if alone else WORTH, task)
    else:
        made = sheet(rows, shape, fill, numbers, task)
    return cast(Sheet, made.to(next(model.parameters()).device))


def divide(model: nn.Module, step: Sequence[int], sizes: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """A step as what goes through the model at once, up to `most` tokens; rows of like length where they are padded."""
    return (passes if streams(model) else even_passes)(step, sizes, most)


def streams(model: nn.Module) -> bool:
    """Whether its batches are packed streams, in which nothing is padded."""
    return not is_encoder_decoder(model) and outline(_reads(model)).packs


def _shares(model: nn.Module) -> bool:
    """Whether what documents begin with can be read once."""
    return outline(_reads(model)).shares and not _drops(model)


def _reads(model: nn.Module) -> nn.Module:
    """The part of it that reads ids."""
    return model.trunk if isinstance(model, TaskModel) else model


def _drops(model: nn.Module) -> bool:
    """Whether dropout is on: what is read once would then be dropped alike in all documents."""
    layers = any(isinstance(module, nn.Dropout) and module.training and module.p for module in model.modules())
    rates = [value for name, value in vars(model.config).items() if "drop" in name and isinstance(value, float)]
    return layers or (model.training and any(rates))
