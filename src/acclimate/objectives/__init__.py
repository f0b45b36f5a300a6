"""What is descended: one file each, one line here."""

from acclimate.objectives.baselines import PreferredFT, Unlikelihood
from acclimate.objectives.dpo import DPO
from acclimate.objectives.feedback import Spans
from acclimate.objectives.ipo import IPO
from acclimate.objectives.kto import KTO
from acclimate.objectives.lm import LM, SequenceLM
from acclimate.objectives.orpo import ORPO
from acclimate.objectives.ppo import GRPO, PPO, RLOO
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
    "spans": Spans,
    "ppo": PPO,
    "grpo": GRPO,
    "rloo": RLOO,
}


def name_of(objective: object) -> str:
    """What a recipe calls this objective.

    >>> name_of(DPO(beta=0.3))
    'dpo'
    """
    return next(name for name, kind in OBJECTIVES.items() if type(objective) is kind)


__all__ = [
    "DPO",
    "GRPO",
    "IPO",
    "KTO",
    "LM",
    "OBJECTIVES",
    "ORPO",
    "PPO",
    "RLOO",
    "PreferredFT",
    "Reward",
    "SequenceLM",
    "SimPO",
    "Spans",
    "Unlikelihood",
    "name_of",
]
