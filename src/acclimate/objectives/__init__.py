"""What is descended: one file each, one line here."""

from acclimate.objectives.baselines import PreferredFT, Unlikelihood
from acclimate.objectives.dpo import DPO
from acclimate.objectives.ipo import IPO
from acclimate.objectives.kto import KTO
from acclimate.objectives.lm import LM, SequenceLM
from acclimate.objectives.orpo import ORPO
from acclimate.objectives.reward import Reward
from acclimate.objectives.simpo import SimPO

OBJECTIVES = {
    "lm": LM,
    "sequence_lm": SequenceLM,
    "dpo": DPO,
    "ipo": IPO,
    "kto": KTO,
    "simpo": SimPO,
    "orpo": ORPO,
    "unlikelihood": Unlikelihood,
    "preferred_ft": PreferredFT,
    "reward": Reward,
}
__all__ = [
    "DPO",
    "IPO",
    "KTO",
    "LM",
    "OBJECTIVES",
    "ORPO",
    "PreferredFT",
    "Reward",
    "SequenceLM",
    "SimPO",
    "Unlikelihood",
]
