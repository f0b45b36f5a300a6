"""What trains: one file each, one line here."""

from acclimate.methods.full import Full
from acclimate.methods.head import Head
from acclimate.methods.lora import LoRA

METHODS = {"full": Full, "head": Head, "lora": LoRA}
__all__ = ["METHODS", "Full", "Head", "LoRA"]
