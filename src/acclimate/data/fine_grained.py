"""Long answers with their errors marked: rows as Wu et al. 2023 (arXiv:2306.01693, section 4) published them.

question, passages [{title, sentences}], predictions (four answers), feedback {errors: [{start, end, error type}],
missing-info: [{error type}]}, whose places are in the first answer, and preference: who of answers 1v2, 1v3, 1v4, 2v3, 2v4,
3v4 is better (1, 2; 0: a tie).
A row says two things; it becomes Feedback on the first answer where it has `feedback`, otherwise a Ranking of all.
What is said to be missing is said of no part of the answer; it becomes spans over the whole of it.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from acclimate.data.examples import Feedback, Message, Ranking, Span
from acclimate.data.problem import Refused
from acclimate.data.values import Raw, found, items, needed, sequence, text, texts, whole


def feedback(row: Raw, where: str) -> Feedback:
    """The first answer with its errors, and with what it lacks: a kind that several things missing share is one span."""
    completion, said = texts(row["predictions"], "predictions")[0], _table(row["feedback"], "feedback")
    errors = items(needed(said, "errors", "feedback", " in feedback"), "feedback.errors")
    spans = [_span(error, f"feedback.errors[{i}]", len(completion)) for i, error in enumerate(errors)]
    lacking = items(said.get("missing-info") or [], "feedback.missing-info")
    kinds = dict.fromkeys(_kind(each, f"feedback.missing-info[{i}]") for i, each in enumerate(lacking))
    return Feedback(_prompt(row), completion, (*spans, *(Span(0, len(completion), kind) for kind in kinds)), where)


def ranking(row: Raw, where: str) -> Ranking:
    """The answers by comparisons won minus lost, equal ones tied: people's choices may go round in a circle."""
    answers = texts(row["predictions"], "predictions")
    said = [whole(v, f"preference[{i}]") for i, v in enumerate(sequence(row["preference"], "preference"))]
    pairs = list(combinations(range(len(answers)), 2))
    if len(said) != len(pairs) or not {0, 1, 2}.issuperset(said):
        raise Refused(
            "ranking", f"has {said} as preference; {len(answers)} predictions need {len(pairs)} of 0, 1 and 2."
        )
    won = [0] * len(answers)
    for (one, other), better in zip(pairs, said, strict=True):
        won[one] += (0, 1, -1)[better]
        won[other] -= (0, 1, -1)[better]
    ranks = tuple(1 + sum(each > mine for each in won) for mine in won)
    if max(ranks) == 1:
        raise Refused("ranking", "has no prediction that is better than another one.")
    return Ranking(_prompt(row), answers, ranks, where)


def _prompt(row: Raw) -> tuple[Message, ...]:
    """The passages, then the question: where a prompt is too long its beginning goes."""
    passages = [_passage(passage, f"passages[{i}]") for i, passage in enumerate(items(row["passages"], "passages"))]
    return (Message("user", "\n\n".join([*passages, f"Question: {text(row['question'], 'question')}\nAnswer:"])),)


def _passage(passage: object, name: str) -> str:
    table = _table(passage, name)
    title, sentences = (needed(table, key, "passage", f" at {name}") for key in ("title", "sentences"))
    return f"{text(title, f'{name}.title')}: {' '.join(texts(sentences, f'{name}.sentences'))}"


def _span(error: object, name: str, length: int) -> Span:
    table = _table(error, name)
    start, end, kind = (needed(table, key, "error", f" at {name}") for key in ("start", "end", "error type"))
    if not 0 <= whole(start, f"{name}.start") < whole(end, f"{name}.end") <= length:
        raise Refused("spans", f"has {name} from {start} to {end}; it must hold something of the answer's {length}.")
    return Span(start, end, text(kind, f"{name}.error type"))


def _kind(lacking: object, name: str) -> str:
    return text(needed(_table(lacking, name), "error type", "missing piece", f" at {name}"), f"{name}.error type")


def _table(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Refused("type", f"has {found(value)} as {name}; {name} must be an object.")
    return value
