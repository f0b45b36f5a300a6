"""What scores a completion: one file each, one line here; and the rollouts that are scored."""

from acclimate.rewards.fine import Segments
from acclimate.rewards.lexicon import Lexicon
from acclimate.rewards.model import Model
from acclimate.rewards.outside import Endpoint, Function
from acclimate.rewards.rules import Answer, Length, Pattern
from acclimate.rewards.toxic import Harmless

REWARDS = {
    "answer": Answer,
    "pattern": Pattern,
    "length": Length,
    "lexicon": Lexicon,
    "harmless": Harmless,
    "function": Function,
    "endpoint": Endpoint,
    "model": Model,
    "segments": Segments,
}
__all__ = ["REWARDS", "Answer", "Endpoint", "Function", "Harmless", "Length", "Lexicon", "Model", "Pattern", "Segments"]
