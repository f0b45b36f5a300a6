"""merge and export."""

from pathlib import Path

from acclimate.data.archive import atomically
from acclimate.errors import UsageError, unknown
from acclimate.interchange import peft
from acclimate.interchange.adapter import load_adapter
from acclimate.methods import LoRA
from acclimate.methods.delta import merge, names
from acclimate.run.open import open_model

FORMATS = ("peft", "merged")


def export_adapter(model: str, adapter: Path, out: Path, format: str) -> None:
    """The verbs `merge` and `export`: a new folder, whole or absent. Merging is done in float32."""
    if format not in FORMATS:
        raise UsageError(unknown("format", format, FORMATS))
    if out.exists():
        raise UsageError(f"{out} exists already; give a new folder.")
    opened = open_model(model, None, "float32")
    method, _ = load_adapter(opened.model, adapter)
    if format == "peft" and not isinstance(method, LoRA):
        raise UsageError(f"PEFT's format cannot express {type(method).__name__}; export it as merged.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomically(out) as folder:
        folder.mkdir(exist_ok=True)
        if isinstance(method, LoRA) and format == "peft":
            peft.write(opened.model, method, folder, model)
        else:
            if names(opened.model):
                merge(opened.model)
            opened.model.generation_config.eos_token_id = sorted(opened.codec.terminators)
            opened.model.save_pretrained(folder)
            opened.codec.tokenizer.save_pretrained(folder)
    print(f"{format}: {out}")
