"""Rows of the usual tasks: texts read together, numbers, multiple choice, spans of a text, tagged words."""

from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase

from acclimate.data.examples import Tagged
from acclimate.data.problem import Refused
from acclimate.data.values import Raw, finite, found, items, needed, text, texts, whole

PAIRS = (  # columns whose texts are judged together
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "passage"),
)
OPENINGS = ("passage", "context", "premise", "question")  # columns that may go before a choice, in this order
OUTSIDE = "O"  # the tag of a word that no entity has


def together(row: Raw, columns: Sequence[str]) -> str:
    """The texts of some columns as one prompt, a line each."""
    return "\n".join(text(row[name], name) for name in columns)


def number(value: object, name: str) -> str:
    """`value` as text that reads as a number, whether the row has a number or, as a table does, its text.

    >>> number(3.8, "score"), number(5.0, "score"), number(" 2e1", "score")
    ('3.8', '5', '20')
    """
    try:
        read = finite(float(value) if isinstance(value, str) else value, name)
    except ValueError:
        raise Refused("number", f"has {found(value)} as {name}; {name} must be a number.") from None
    return repr(read).removesuffix(".0")


def choices(row: Raw, columns: Sequence[str]) -> tuple[str, ...]:
    """The answers to choose from: one column that lists them, or a column each. Empty ones at the end are none."""
    listed = items(row[columns[0]], columns[0]) if len(columns) == 1 else [row[name] for name in columns]
    names = columns if len(columns) > 1 else [f"{columns[0]}[{i}]" for i in range(len(listed))]
    last = max((i for i, one in enumerate(listed) if one not in (None, "")), default=-1)
    if last < 1:
        raise Refused("choices", f"has fewer than two choices in {' and '.join(columns)}; one chooses among several.")
    return tuple(text(one, name) for one, name in zip(listed[: last + 1], names))


def opening(row: Raw, needs: Sequence[str]) -> str:
    """What goes before the choices: the passage, the premise, the question, as far as the row needs or has them."""
    return together(row, [name for name in OPENINGS if name in needs or row.get(name) not in (None, "")])


def chosen(value: object, offered: Sequence[str], name: str) -> str:
    """The choice that `value` names: by its place from 0, its letter (A is the first) or its text.

    A place may be written as text where no choice is a number.

    >>> chosen(1, ["3", "4"], "answer"), chosen("B", ["3", "4"], "answer"), chosen("4", ["3", "4"], "answer")
    ('4', '4', '4')
    """
    named = _named(value, offered)
    if len(named) == 1:
        return named.pop()
    why = "which is a choice and the letter of another" if named else f"which names none of the {len(offered)} choices"
    raise Refused("choices", f"has {found(value)} as {name}, {why}; a choice is named by place (0…), letter or text.")


def _named(value: object, offered: Sequence[str]) -> set[str]:
    if isinstance(value, int) and not isinstance(value, bool):
        return {offered[value]} if 0 <= value < len(offered) else set()
    if not isinstance(value, str):
        return set()
    letters, places = dict(zip(ascii_uppercase, offered)), {str(place): one for place, one in enumerate(offered)}
    named = {one for one in offered if one in (value, letters.get(value))}
    counts = value in places and not any(map(str.isdigit, offered))
    return named or ({places[value]} if counts else set())


def spans(row: Raw) -> tuple[tuple[int, str], ...]:
    """Where the answers stand in the context: (first character, text) each; none where there is no answer.

    `answers` is {text: […], answer_start: […]} or a list of {text, answer_start}, as SQuAD is spread in both ways.
    """
    context, answers = text(row["context"], "context"), row["answers"]
    if isinstance(answers, Mapping):
        words, starts = (items(needed(answers, key, "answer", " in answers"), f"answers.{key}") for key in SPAN)
        if len(words) != len(starts):
            raise Refused("spans", f"has {len(words)} texts and {len(starts)} places in answers; one each.")
        pairs = list(zip(words, starts))
    else:
        pairs = [_span(answer, f"answers[{i}]") for i, answer in enumerate(items(answers, "answers"))]
    return tuple(_placed(context, words, start, f"answers[{i}]") for i, (words, start) in enumerate(pairs))


SPAN = ("text", "answer_start")


def _span(answer: object, name: str) -> tuple[object, object]:
    if not isinstance(answer, Mapping):
        raise Refused("type", f"has {found(answer)} as {name}; an answer is an object with text and answer_start.")
    words, start = (needed(answer, key, "answer", f" at {name}") for key in SPAN)
    return words, start


def _placed(context: str, words: object, start: object, name: str) -> tuple[int, str]:
    answer, place = text(words, f"{name}.text"), whole(start, f"{name}.answer_start")
    there = context[place : place + len(answer)] if place >= 0 else ""
    if there != answer:
        raise Refused(
            "spans", f"has {found(answer)} as {name}, but at character {place} its context has {found(there)}."
        )
    return place, answer


def articles(where: str, row: object) -> Iterator[tuple[str, object]]:
    """A row as it is, or the questions of a SQuAD article (`paragraphs` of `context` and `qas`), a row each."""
    paragraphs = row.get("paragraphs") if isinstance(row, dict) else None
    if not isinstance(paragraphs, list) or not any(isinstance(each, dict) and "qas" in each for each in paragraphs):
        yield where, row
        return
    for i, paragraph in enumerate(paragraphs):
        questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if isinstance(questions, list):
            yield from _questions(f"{where}.paragraphs[{i}]", paragraph, questions)
        else:
            yield f"{where}.paragraphs[{i}]", Refused("type", "has no list qas; it needs a context and qas.")


def _questions(where: str, paragraph: Raw, questions: list[object]) -> Iterator[tuple[str, object]]:
    shared = {name: value for name, value in paragraph.items() if name != "qas"}
    for i, question in enumerate(questions):
        yield f"{where}.qas[{i}]", {**shared, **question} if isinstance(question, dict) else question


def tagged(row: Raw, where: str) -> Tagged:
    """Words with a tag each. Tags that have O, B- or I- among them are BIO and must be in order."""
    tokens, tags = texts(row["tokens"], "tokens"), texts(row["tags"], "tags")
    if len(tokens) != len(tags):
        raise Refused("tags", f"has {len(tokens)} tokens and {len(tags)} tags; each token needs one.")
    if any(tag == OUTSIDE or tag.startswith(("B-", "I-")) for tag in tags):
        _ordered(tags)
    return Tagged(tokens, tags, where)


def _ordered(tags: Sequence[str]) -> None:
    """Refuses tags that are not O, B-x or I-x, and an I-x that goes on with nothing."""
    before = OUTSIDE
    for i, tag in enumerate(tags):
        place, _, kind = tag.partition("-")
        if tag != OUTSIDE and not (place in ("B", "I") and kind):
            raise Refused("tags", f"has {found(tag)} as tags[{i}]; a tag is O, B-type or I-type.")
        if place == "I" and before[2:] != kind:
            said = f"has {found(tag)} as tags[{i}] after {found(before)}" if i else f"begins with {found(tag)}"
            raise Refused("tags", f"{said}; an entity begins with {found('B-' + kind)}.")
        before = tag
