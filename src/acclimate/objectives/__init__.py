"""What is descended: one file each, one line here."""

from acclimate.objectives.lm import LM, SequenceLM

OBJECTIVES = {"lm": LM, "sequence_lm": SequenceLM}
__all__ = ["LM", "OBJECTIVES", "SequenceLM"]
