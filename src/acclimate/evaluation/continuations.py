"""How probable a text is after another, and what is written after a text: what benchmarks ask of a model.

Spelled as lm-evaluation-harness spells it: white space at the end of a context belongs to the continuation; both are made
tokens together, and of these the ones past as many as the context has on its own are scored, after the context's own. A codec
spells each side on its own, which comes to the same where a continuation begins a word, but published numbers are made so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from acclimate.data.template import Segment
from acclimate.errors import DataError
from acclimate.evaluation.predictor import GREEDY, Tick, within
from acclimate.generation.decode import generate
from acclimate.generation.samplers import Beam, Sampler
from acclimate.generation.score import judge, score
from acclimate.generation.stops import Stops
from acclimate.tokens.codec import Codec, Encoded

DIGITS = 9  # of a log-probability after the point; the last bits depend on the shapes that are multiplied


@dataclass(frozen=True)
class Continuing:
    """A model and how it is asked. context: tokens that fit; what is too long loses the oldest part of its context.

    budget: tokens at once. In float64 log-probabilities do not depend on it: matrix libraries take other kernels for other
    shapes, which moves the last bits (some 1e-14), and these are rounded off.
    """

    model: nn.Module
    codec: Codec
    context: int
    budget: int = 8192

    def rows(self, pairs: Sequence[tuple[str, str]]) -> list[Encoded]:
        """The ids of each (context, continuation), those of the continuation scored."""
        return [within(spelled(self.codec, *pair), self.context, self.codec) for pair in pairs]

    def logprobs(self, rows: Sequence[Encoded], tick: Tick | None = None) -> list[float]:
        """Σ log p of what is scored in each row, natural log."""
        return [
            round(value, DIGITS) for value in score(self.model, rows, self.codec.pad, budget=self.budget, tick=tick)
        ]

    def judged(self, rows: Sequence[Encoded], tick: Tick | None = None) -> list[tuple[float, bool]]:
        """As `logprobs`, and whether greedy decoding would write what is scored."""
        found = judge(self.model, rows, self.codec.pad, budget=self.budget, tick=tick)
        return [(round(value, DIGITS), greedy) for value, greedy in found]

    def prompts(self, contexts: Sequence[str], max_new: int) -> list[Encoded]:
        """The rows that are fed to continue texts by up to `max_new` tokens."""
        room = self.context if self.codec.reads else self.context - max_new
        return [within(self.codec.dressed(_alone(self.codec, text)), room, self.codec) for text in contexts]

    def continued(
        self,
        rows: Sequence[Encoded],
        max_new: int,
        stops: Sequence[str] = (),
        sampler: Sampler | Beam = GREEDY,
        seed: int = 0,
        tick: Tick | None = None,
    ) -> list[str]:
        """The text that is written after each prompt, cut before the stop string that comes first."""
        cut = Stops(tuple(stop for stop in stops if stop), self.codec.decode)
        drafts = generate(
            self.model,
            [row.source or row.ids for row in rows],
            sampler,
            terminators=self.codec.terminators,
            max_new=max_new,
            pad=self.codec.pad,
            stops=cut,
            seed=seed,
            batch_tokens=self.budget,
            stop_check=None if tick is None else lambda: tick(0),
        )
        if tick is not None:
            tick(len(rows))
        return [cut.text(draft.ids) for draft in drafts]


def spelled(codec: Codec, context: str, continuation: str) -> Encoded:
    """The ids of a context and what follows it, whose tokens are scored. DataError where nothing is left to score.

    Without a context the continuation follows the token that begins every text, or else the one that ends them.
    """
    kept = context.rstrip()
    continuation, context = context[len(kept) :] + continuation, kept
    if codec.reads:
        source = _alone(codec, context).source if context else (begin(codec),)
        ids = codec.plain(continuation)
        row = Encoded(ids, (True,) * len(ids), source)
    elif context:
        before = _alone(codec, context).ids
        after = _alone(codec, context + continuation).ids[len(before) :]
        row = Encoded(before + after, (False,) * len(before) + (True,) * len(after))
    else:
        ids = codec.plain(continuation)
        ids = ids if ids[:1] == (begin(codec),) else (begin(codec), *ids)
        row = Encoded(ids, (False,) + (True,) * (len(ids) - 1))
    if not any(row.scored):
        raise DataError(
            f"The continuation {continuation[:40]!r} adds no token to what is before it: {context[-40:]!r}."
        )
    return codec.dressed(row)


def _alone(codec: Codec, text: str) -> Encoded:
    """One text with what the tokenizer puts before it, no soft tokens."""
    row = replace(codec, front=(), back=()).encode((Segment(text, False),))
    return row if row.ids or row.source else row._replace(ids=(begin(codec),), scored=(False,))


def begin(codec: Codec) -> int:
    """The token that a text without a context follows."""
    tokenizer: Any = codec.tokenizer
    return int(tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id)
