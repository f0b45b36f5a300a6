"""A model of acclimate as lm-evaluation-harness sees one; import it where the extra `harness` is installed (see `harness`)."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from acclimate.errors import UsageError
from acclimate.evaluation.continuations import Continuing, begin
from acclimate.generation.samplers import Beam, Greedy, Sample, Sampler
from acclimate.tokens.codec import Encoded

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is given counts
MOST = 256  # tokens written where a task does not say, as lm-evaluation-harness has it
KNOWN = {*LENGTHS, "until", "do_sample", "temperature", "top_p", "top_k", "num_beams"}


class AcclimateLM(LM):  # type: ignore[misc]
    """Any model, with any adapter, as `model` of `lm_eval.simple_evaluate`.

    Log-likelihoods are those of lm-evaluation-harness's own HFLM. A text that does not fit loses the oldest part of its
    context but keeps its first token; HFLM drops that as well, and fits one token more.
    """

    def __init__(self, asked: Continuing) -> None:
        super().__init__()
        self.asked = asked

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """(Σ log p of the continuation in nats, whether greedy decoding writes it) of each request."""
        return self.asked.judged(self.asked.rows([request.args for request in requests]))

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Σ log p of each whole text, in windows that do not overlap in what they score."""
        windows = [(i, row) for i, request in enumerate(requests) for row in self._windows(request.args[0])]
        sums = [0.0] * len(requests)
        for (i, _), value in zip(windows, self.asked.logprobs([row for _, row in windows]), strict=True):
            sums[i] += value
        return sums

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The text that is written after each context, up to a stop string. UsageError for a setting that is not known."""
        alike: dict[str, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            alike[json.dumps(request.args[1], sort_keys=True)].append(i)
        texts: dict[int, str] = {}
        for settings, places in alike.items():
            written = self._written([requests[i].args[0] for i in places], json.loads(settings))
            texts |= dict(zip(places, written, strict=True))
        return [texts[i] for i in range(len(requests))]

    def _written(self, contexts: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
        if odd := settings.keys() - KNOWN:
            raise UsageError(f"The task asks to generate with {', '.join(sorted(odd))}, which is not known here.")
        most = next((int(settings[name]) for name in LENGTHS if settings.get(name)), MOST)
        stops = settings.get("until") or []
        prompts = self.asked.prompts(contexts, most)
        return self.asked.continued(prompts, most, [stops] if isinstance(stops, str) else stops, sampler_of(settings))

    def _windows(self, text: str) -> list[Encoded]:
        ids = list(self.asked.codec.prefix + self.asked.codec.plain(text))
        first, room = begin(self.asked.codec), self.asked.context - 1
        parts = get_rolling_token_windows(token_list=ids, prefix_token=first, max_seq_len=room, context_len=1)
        pairs = map(make_disjoint_window, parts)
        rows = [Encoded((*seen, *new), (False,) * len(seen) + (True,) * len(new)) for seen, new in pairs]
        return [self.asked.codec.dressed(row) for row in rows]


def sampler_of(settings: Mapping[str, Any]) -> Sampler | Beam:
    """How a task wants its texts drawn: greedily, unless it says do_sample or a temperature above 0.

    >>> sampler_of({"temperature": 0.0}), sampler_of({"do_sample": True, "temperature": 0.7}).temperature
    (Greedy(), 0.7)
    """
    if settings.get("num_beams", 1) > 1:
        return Beam(int(settings["num_beams"]))
    warm = float(settings.get("temperature") or 0.0)
    if settings.get("do_sample") is False or not (warm or settings.get("do_sample")):
        return Greedy()
    return Sample(warm or 1.0, top_k=int(settings.get("top_k") or 0), top_p=float(settings.get("top_p") or 1.0))
