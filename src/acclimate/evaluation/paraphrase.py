"""The same question in other words, by a language model itself. Liang et al. 2022, arXiv:2211.09110, on robustness.

Nothing is drawn, so what comes out depends on the model and the text alone; it is kept on disk. Nobody checks that the
meaning stays: a small model leaves out and makes up, so a score that falls may be the paraphrase's doing. `told` says how
far the texts were moved, and a text whose paraphrase is plainly none stays as it is.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from acclimate.data.examples import Example
from acclimate.data.template import Template
from acclimate.evaluation.predictor import Generate, Tick
from acclimate.generation.samplers import Sample
from acclimate.models.fingerprint import template_hash
from acclimate.tokens.codec import control_token
from acclimate.training.checkpoint import atomic_write

REQUESTS: Mapping[str, str] = {
    "paraphrase: other words": "Say this in other words, with the same meaning.\nText: {{ text }}\nIn other words:",
    "paraphrase: simple words": "Say this in simple words, with the same meaning.\nText: {{ text }}\nIn simple words:",
}
LIKELIEST = Sample(top_k=1, repetition_penalty=1.2)  # words that stand in the text already are a little less likely
LONGEST = 128  # tokens of a paraphrase
FEWEST = 3  # words that a text must have to be said otherwise
LENGTHS = (0.5, 2.0)  # words of a paraphrase, to those of its text

Reworded = dict[str, str]  # text → its paraphrase; texts that stay as they are do not occur


def reworded(
    texts: Sequence[str], ask: Generate, request: str, kept: Path, stamp: str, tick: Tick | None = None
) -> Reworded:
    """The paraphrases of texts. kept: the folder where answers lie. stamp: what tells the model from others."""
    asked = [
        text for text in dict.fromkeys(texts) if len(text.split()) >= FEWEST and not control_token(ask.codec, text)
    ]
    places = {text: kept / f"{sha256(json.dumps([stamp, request, text]).encode()).hexdigest()}.json" for text in asked}
    known = {text: answer for text in asked if (answer := _known(places[text])) is not None}
    new = [text for text in asked if text not in known]
    rows = [Example(text, fields={"text": text}, where=f"text {i}") for i, text in enumerate(new, start=1)]
    for text, output in zip(new, ask(rows, tick), strict=True):
        whole = output.finish == "stop" and not output.truncated
        known[text] = paraphrase(text, output.text) if whole else ""
        places[text].parent.mkdir(parents=True, exist_ok=True)
        atomic_write(places[text], json.dumps({"answer": known[text]}, ensure_ascii=False) + "\n")
    return {text: answer for text, answer in known.items() if answer}


def asking(ask: Generate, request: str) -> Generate:
    """The writer of one request. `ask` brings the model, the codec and the context."""
    template = Template(request, "", ask.template.chat, ask.template.end)
    return Generate(ask.model, ask.codec, template, ask.context, LONGEST, LIKELIEST)


def stamped(weights: str, ask: Generate) -> str:
    """What tells a model and its chat format from others."""
    return f"{weights} {template_hash(ask.template.chat.source) if ask.template.chat else ''}"


def paraphrase(text: str, written: str) -> str:
    """The first paragraph of what was written, without quotes; "" where it is the text again, or far shorter or longer.

    >>> paraphrase("It is very cold outside", '"Outside it is freezing."\\n\\nI hope this helps!')
    'Outside it is freezing.'
    >>> paraphrase("It is very cold outside", "it is very cold outside."), paraphrase("It is very cold outside", "Yes.")
    ('', '')
    """
    said = written.strip().split("\n\n")[0].strip().strip('"“”').strip()
    ratio = len(said.split()) / max(1, len(text.split()))
    same = _words(said) == _words(text)
    return said if LENGTHS[0] <= ratio <= LENGTHS[1] and not same else ""


def told(texts: Sequence[str], found: Reworded) -> dict[str, float]:
    """How many texts there are, how many were reworded, and the words that the latter share with their paraphrase (F1).

    >>> told(["it is cold", "no"], {"it is cold": "cold it was"})
    {'texts': 2, 'reworded': 1, 'shared': 0.6666666666666666}
    """
    pairs = [(Counter(_words(text)), Counter(_words(other))) for text, other in found.items()]
    shared = [2 * (one & other).total() / (one.total() + other.total()) for one, other in pairs]
    return {
        "texts": len(set(texts)),
        "reworded": len(found),
        "shared": sum(shared) / len(shared) if shared else 1.0,
    }


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def _known(place: Path) -> str | None:
    """The paraphrase that is kept; None where there is none, or a damaged one."""
    try:
        answer = json.loads(place.read_text(encoding="utf-8"))["answer"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return answer if isinstance(answer, str) else None
