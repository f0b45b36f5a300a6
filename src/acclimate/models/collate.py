"""The batch a model can read: a packed stream where it keeps documents apart, a padded rectangle otherwise."""

from collections.abc import Sequence

from torch import nn

from acclimate.models.outline import is_encoder_decoder, outline
from acclimate.tokens.batch import Batch, common, pack, pad, pad_pairs
from acclimate.tokens.codec import Encoded

WORTH = 8  # ids that documents must have in common, for that to be read once


def collate(
    model: nn.Module, rows: Sequence[Encoded], fill: int, numbers: Sequence[int] = (), share: bool = False
) -> Batch:
    """`rows` as one batch on the model's device. share: what all of them begin with is read once, where that is the same."""
    device = next(model.parameters()).device
    if is_encoder_decoder(model):
        start = int(model.config.decoder_start_token_id)  # type: ignore[union-attr, arg-type]
        return pad_pairs(rows, fill, start, numbers).to(device)
    if not streams(model):
        return pad(rows, fill, numbers).to(device)
    shared = common(rows) if share and len(rows) > 1 and outline(model).shares and not _drops(model) else 0
    return pack(rows, numbers, shared if shared >= WORTH else 0).to(device)


def streams(model: nn.Module) -> bool:
    """Whether its batches are packed streams, in which nothing is padded."""
    return not is_encoder_decoder(model) and outline(model).packs


def _drops(model: nn.Module) -> bool:
    """Whether dropout is on: what is read once would then be dropped alike in all documents."""
    layers = any(isinstance(module, nn.Dropout) and module.training and module.p for module in model.modules())
    rates = [value for name, value in vars(model.config).items() if "drop" in name and isinstance(value, float)]
    return layers or (model.training and any(rates))
