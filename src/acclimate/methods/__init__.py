"""What trains: one file each, one line here."""

from acclimate.methods.adapters import Houlsby, Pfeiffer
from acclimate.methods.bitfit import BitFit
from acclimate.methods.dora import DoRA
from acclimate.methods.full import Full
from acclimate.methods.head import Head
from acclimate.methods.ia3 import IA3
from acclimate.methods.intrinsic import DID, SAID
from acclimate.methods.lora import LoRA
from acclimate.methods.mam import MAM
from acclimate.methods.parallel import Parallel, ScaledParallel
from acclimate.methods.preembed import PreEmbed
from acclimate.methods.prefix import Prefix
from acclimate.methods.prelayer import PreLayer
from acclimate.methods.prompt import PromptTuning
from acclimate.methods.qlora import QLoRA
from acclimate.methods.rslora import RsLoRA
from acclimate.methods.unipelt import UniPELT
from acclimate.methods.vera import VeRA

METHODS = {
    "bitfit": BitFit,
    "did": DID,
    "dora": DoRA,
    "full": Full,
    "head": Head,
    "houlsby": Houlsby,
    "ia3": IA3,
    "lora": LoRA,
    "mam": MAM,
    "parallel": Parallel,
    "pfeiffer": Pfeiffer,
    "preembed": PreEmbed,
    "prefix": Prefix,
    "prelayer": PreLayer,
    "prompt": PromptTuning,
    "qlora": QLoRA,
    "rslora": RsLoRA,
    "said": SAID,
    "scaled_parallel": ScaledParallel,
    "unipelt": UniPELT,
    "vera": VeRA,
}
__all__ = [
    "DID",
    "IA3",
    "MAM",
    "METHODS",
    "SAID",
    "BitFit",
    "DoRA",
    "Full",
    "Head",
    "Houlsby",
    "LoRA",
    "Parallel",
    "Pfeiffer",
    "PreEmbed",
    "PreLayer",
    "Prefix",
    "PromptTuning",
    "QLoRA",
    "RsLoRA",
    "ScaledParallel",
    "UniPELT",
    "VeRA",
]
