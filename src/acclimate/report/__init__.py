"""What came of a run, for people: one HTML page, a model card, and numbers sent to trackers while it goes on."""

from acclimate.report.card import card
from acclimate.report.page import page
from acclimate.report.verdict import Verdict, verdict

__all__ = ["Verdict", "card", "page", "verdict"]
