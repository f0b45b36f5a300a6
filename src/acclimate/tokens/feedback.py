"""Completions in parts, and the token that each part ends with: where a reward model of spans looks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from acclimate.data.examples import Feedback, Span
from acclimate.data.template import Segment, Template
from acclimate.errors import DataError, ModelError
from acclimate.tokens.codec import Codec, Encoded, refuse_control_tokens
from acclimate.tokens.pairs import answered
from acclimate.tokens.reading import Reader, Reading, spelled
from acclimate.tokens.truncate import fit_rows

Level = Literal["token", "sub-sentence", "sentence", "text"]
Place = tuple[int, int]  # the first character, and the one behind the last

SENTENCE = r"[.!?]+[\"'”’)\]]*(?=\s|\Z)|[。！？]+|\n"
ENDS = {
    "sub-sentence": re.compile(SENTENCE + r"|[,;:]+(?=\s)|[，；：、]+|\s[-–—]+(?=\s)"),
    "sentence": re.compile(SENTENCE),
    "text": re.compile(r"\Z"),
}
# A full stop after these ends no sentence; after the latter it does before a capital letter.
TITLES = re.compile(r"\W*([A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Mt|Gen|Sen|Rev|Lt|Col|Capt|Sgt|vs)\.")
SHORTENED = re.compile(r"\W*((\w\.)+\w|No|Jr|Sr|Bros|Co|Inc|etc|approx|Jan|Feb|Aug|Sept|Oct|Nov|Dec)\.")


def parts(text: str, level: Literal["sub-sentence", "sentence", "text"]) -> list[Place]:
    """The parts of a text, without the spaces around them: every other character is in exactly one.

    Deviation from Wu et al. 2023, who let spaCy find sentences: they end at marks with a space after them, but not after
    initials and the usual short forms.

    >>> [text[a:b] for text in ["One, 2.5 two. Three?"] for a, b in parts(text, "sub-sentence")]
    ['One,', '2.5 two.', 'Three?']
    >>> [text[a:b] for text in ["It is J. R. Ewing. He left the U.S. in May."] for a, b in parts(text, "sentence")]
    ['It is J. R. Ewing.', 'He left the U.S. in May.']
    """
    cuts = [0, *(m.end() for m in ENDS[level].finditer(text) if not _shortened(text, m)), len(text)]
    found = []
    for start, end in pairwise(cuts):
        piece = text[start:end]
        if piece.strip():
            found.append((start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())))
    return found


def _shortened(text: str, mark: re.Match[str]) -> bool:
    """Whether a full stop belongs to a shortened word within a sentence."""
    if mark.group() != ".":
        return False
    word, after = text[: mark.end()].rsplit(None, 1)[-1], text[mark.end() :].lstrip()[:1]
    return bool(TITLES.fullmatch(word) or (SHORTENED.fullmatch(word) and not after.isupper()))


def holds(spans: Sequence[Span], kinds: Sequence[str], place: Place) -> bool:
    """Whether a part holds something of a span of one of the kinds."""
    return any(span.kind in kinds and span.start < place[1] and span.end > place[0] for span in spans)


@dataclass(frozen=True)
class SegmentReader(Reader):
    """Feedback to what a head of `shape` reads: the completion after its prompt, and the last token of each part.

    groups: for each label of the shape the kinds of error that it stands for. Targets: 0 or 1 for each part and label, 1
    where the part holds such an error. `Reading.spans`: the characters of each part. Parts that end with one token are one.
    """

    level: Level = "sentence"
    groups: tuple[tuple[str, ...], ...] = ()

    def __call__(self, row: Feedback, answered: bool = True) -> list[Reading]:  # type: ignore[override]
        """One reading, of a completion that says nothing none; of a long prompt the oldest part is left out.

        DataError for a completion that does not fit even so.
        """
        for text in (*(message.content for message in row.prompt), row.completion):
            refuse_control_tokens(self.codec, text, row.where)
        full, offsets = written(self.codec, row, self.template)
        segments = by_token(row.completion, offsets, self.level)
        if not segments:
            return []
        fitting = fit_rows([full], self.limit, "truncate-prompt", self.codec.kept).rows
        if not fitting:
            raise DataError(f"{row.where} has a completion that does not fit into {self.limit:,} tokens.")
        ids = fitting[0].ids
        at = tuple(len(ids) - len(offsets) + token for token in segments)
        said = (
            [holds(row.spans, kinds, place) for place in segments.values() for kinds in self.groups] if answered else []
        )
        return [
            Reading(
                (ids,), ((0,) * len(ids),), (at,), tuple(map(float, said)), row.where, fitting[0].truncated,
                tuple(segments.values()),
            )
        ]  # fmt: skip


def written(codec: Codec, row: Feedback, template: Template) -> tuple[Encoded, list[Place]]:
    """A row up to the end of its answer, and for each of the answer's ids the characters of the completion that it covers.

    ModelError for a tokenizer that does not say which they are.
    """
    pieces = answered(row.prompt, row.completion, template, row.where)
    whole = codec.encode(pieces, row.where)
    run = _answer(pieces)
    ids, offsets = _continued(codec, run, row.where)
    end = len(whole.ids) - next((i for i, scored in enumerate(reversed(whole.scored)) if scored), 0)
    if whole.ids[end - len(ids) : end] != ids:
        raise ModelError(
            f"{row.where}: the tokenizer spells the completion otherwise when it is asked for its characters."
        )
    first = run.find(row.completion.strip()) - (len(row.completion) - len(row.completion.lstrip()))
    return whole._replace(ids=whole.ids[:end], scored=whole.scored[:end]), [(a - first, b - first) for a, b in offsets]


def _answer(pieces: Sequence[Segment]) -> str:
    """What is spelled as one text: the scored pieces, with the spaces that the prompt ends with."""
    first = next(i for i, piece in enumerate(pieces) if piece.scored)
    before = "".join(piece.text for piece in pieces[:first])
    kept = before.rstrip(" ")
    return (before[len(kept) :] if kept else "") + "".join(piece.text for piece in pieces if piece.scored)


def _continued(codec: Codec, text: str, where: str) -> tuple[tuple[int, ...], tuple[Place, ...]]:
    """`codec.continuation` with the characters of each id."""
    ids, offsets = spelled(codec, codec.anchor + text, where)
    lead, after = codec.plain(codec.anchor), len(codec.anchor)
    if ids[: len(lead)] != lead:
        return spelled(codec, text, where)
    return ids[len(lead) :], tuple((a - after, b - after) for a, b in offsets[len(lead) :])


def by_token(text: str, offsets: Sequence[Place], level: Level) -> dict[int, Place]:
    """The token that writes the last character of each part → the part. offsets: the characters of each token.

    >>> by_token("Hi. Oh no", [(0, 2), (2, 3), (3, 6), (6, 9), (9, 13)], "sentence")
    {1: (0, 3), 3: (4, 9)}
    """
    covering = [(t, a, b) for t, (a, b) in enumerate(offsets) if a < b and a < len(text) and b > 0]
    places = [(max(a, 0), min(b, len(text))) for _, a, b in covering] if level == "token" else parts(text, level)
    found: dict[int, Place] = {}
    for start, end in places:
        token = next((t for t, a, _ in reversed(covering) if a < end), None)
        if token is not None:
            found[token] = (min(start, found.get(token, (start, end))[0]), end)
    return found
