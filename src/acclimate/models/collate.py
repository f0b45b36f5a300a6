"""The batch a model can read: a packed stream where it keeps documents apart, a padded rectangle otherwise."""

from collections.abc import Sequence

from torch import nn

from acclimate.models.outline import is_encoder_decoder, outline
from acclimate.tokens.batch import Batch, pack, pad, pad_pairs
from acclimate.tokens.codec import Encoded


def collate(model: nn.Module, rows: Sequence[Encoded], fill: int, numbers: Sequence[int] = ()) -> Batch:
    """`rows` as one batch on the model's device."""
    device = next(model.parameters()).device
    if is_encoder_decoder(model):
        start = int(model.config.decoder_start_token_id)  # type: ignore[union-attr, arg-type]
        return pad_pairs(rows, fill, start, numbers).to(device)
    return (pack(rows, numbers) if outline(model).packs else pad(rows, fill, numbers)).to(device)
