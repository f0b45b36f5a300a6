"""Every row format there is: known by its columns, turned into the frozen types of examples.py."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from acclimate.data import fine_grained, tasks, turns
from acclimate.data.examples import Conversation, Document, Example, Feedback, Preference, Ranking, Row, Tagged
from acclimate.data.preferences import feedback, preference, ranking
from acclimate.data.problem import Refused
from acclimate.data.values import Raw, label, listed, near, needed, sequence, spelled, text


@dataclass(frozen=True)
class Asked:
    """What the task says about its rows."""

    labels: tuple[str, ...] = ()  # the answers there are; none: free text
    target: str = ""  # the column that holds the answer; "": found by its usual name
    numbers: bool = False  # the answers are numbers


@dataclass(frozen=True)
class Format:
    """One way to write a row: the columns that it is known by, and what it becomes."""

    kind: type
    needs: tuple[str, ...]
    build: Callable[[Raw, str, Asked], Row]
    may: tuple[str, ...] = ()  # columns whose misspelling would go unnoticed

    @property
    def name(self) -> str:
        """Its columns, as people name it."""
        return " + ".join(self.needs)


def formats(asked: Asked) -> tuple[Format, ...]:
    """The formats that a task's rows may have, the more particular first."""
    if asked.target:
        return (Format(Example, (asked.target,), _targeted),)
    scored = (_together(("text",), "score"),) if asked.numbers else ()  # running text may have a score
    return (*FORMATS[:-1], *TASKS, *scored, *FORMATS[-1:])


def recognise(row: Raw, known: Sequence[Format]) -> Format:
    """The format that has all its columns in the row; without one, an error that says which column is lacking."""
    form = _match(row, known)
    if form is not None:
        spelled(row, form.needs, form.may)
        return form
    best = max(known, key=lambda form: _likeness(row, form))
    lacks, there = _likeness(row, best)
    if len(known) == 1 or (there and (best not in TASKS or lacks == 0)):
        _lacking(row, best)
    every, columns = "; ".join(form.name for form in reversed(known)), listed(row) or "no column"
    raise Refused("format", f"has {columns}; rows are known by {every}. data.columns renames.")


def like(row: Raw, form: Format, where: str, known: Sequence[Format]) -> None:
    """Refuses a row that is not of `form`, the format of the row at `where`."""
    other = _match(row, known)
    if other is None or set(other.needs) < set(form.needs):
        _lacking(row, form)
    elif other is not form:
        raise Refused("format", f"is {other.name}, but {where} is {form.name}; a file holds one format.")
    spelled(row, form.needs, form.may)


def _match(row: Raw, known: Iterable[Format]) -> Format | None:
    return next((form for form in known if all(name in row for name in form.needs)), None)


def _lacking(row: Raw, form: Format) -> None:
    for name in form.needs:
        needed(row, name, f"{form.kind.__name__} ({form.name})")


def _likeness(row: Raw, form: Format) -> tuple[int, int]:
    there = len({name if name in row else near(name, row) for name in form.needs} - {None})
    return (there - len(form.needs) if there else -len(FORMATS), there)


def _judged(build: Callable[[Raw, str], Row]) -> Callable[[Raw, str, Asked], Row]:
    return lambda row, where, asked: build(row, where)


def _conversation(column: str) -> Callable[[Raw, str, Asked], Row]:
    return lambda row, where, asked: Conversation(turns.conversation(row[column], column), where)


def _completed(row: Raw, where: str, asked: Asked) -> Example:
    return _example(text(row["prompt"], "prompt"), row, "completion", where, asked)


def _labelled(row: Raw, where: str, asked: Asked) -> Example:
    return Example(text(row["text"], "text"), _wanted(row["label"], "label", asked), fields=row, where=where)


def _instructed(row: Raw, where: str, asked: Asked) -> Example:
    return _example(_instruction(row), row, "output", where, asked)


def _targeted(row: Raw, where: str, asked: Asked) -> Example:
    return _example(_prompt(row, asked.target), row, asked.target, where, asked)


def _example(prompt: str, row: Raw, column: str, where: str, asked: Asked) -> Example:
    value = row[column]
    if not isinstance(value, list):
        return Example(prompt, _answer(value, column, asked), fields=row, where=where)
    answers = tuple(_answer(item, f"{column}[{i}]", asked) for i, item in enumerate(sequence(value, column)))
    return Example(prompt, answers[0], answers, row, where)


def _answer(value: object, name: str, asked: Asked) -> str:
    return _wanted(value, name, asked) if asked.labels or asked.numbers else text(value, name)


def _wanted(value: object, name: str, asked: Asked) -> str:
    return tasks.number(value, name) if asked.numbers else label(value, asked.labels, name)


def _instruction(row: Raw) -> str:
    instruction, about = text(row["instruction"], "instruction"), row.get("input")
    return f"{instruction}\n\n{text(about, 'input')}" if about not in (None, "") else instruction


def _prompt(row: Raw, target: str) -> str:
    """The prompt beside an answer that the task named: by its usual name, or the only other text."""
    if "instruction" in row and target != "instruction":
        return _instruction(row)
    if len(row) == 1:
        raise Refused("missing", f"has nothing beside {target!r} that could be the prompt.")
    others = [name for name, value in row.items() if isinstance(value, str) and name != target]
    usual = [name for name in ("prompt", "text") if name in row and name != target] or others
    return text(row[usual[0]], usual[0]) if usual is not others or len(others) == 1 else ""


def _document(row: Raw, where: str, asked: Asked) -> Document:
    if asked.labels:
        raise Refused("missing", f"has no label; the task's labels are: {listed(asked.labels)}.")
    if asked.numbers:
        raise Refused("missing", "has no score; the task's answers are numbers.")
    return Document(text(row["text"], "text"), where)


def _together(columns: tuple[str, ...], answer: str = "label") -> Format:
    def build(row: Raw, where: str, asked: Asked) -> Example:
        said = tasks.number(row[answer], answer) if answer == "score" else _wanted(row[answer], answer, asked)
        return Example(tasks.together(row, columns), said, fields=row, where=where)

    return Format(Example, (*columns, answer), build)


def _choice(needs: tuple[str, ...], columns: tuple[str, ...]) -> Format:
    def build(row: Raw, where: str, asked: Asked) -> Example:
        offered, said = tasks.choices(row, columns), row[needs[-1]]
        target = label(said, asked.labels, needs[-1]) if asked.labels else tasks.chosen(said, offered, needs[-1])
        return Example(tasks.opening(row, needs), target, fields={**row, "choices": offered}, where=where)

    return Format(Example, needs, build)


def _extracted(row: Raw, where: str, asked: Asked) -> Example:
    spans = tasks.spans(row)
    answers = tuple(dict.fromkeys(answer for _, answer in spans))
    target = answers[0] if answers else ""
    return Example(text(row["question"], "question"), target, answers, {**row, "answers": spans}, where)


FORMATS = (
    Format(Tagged, ("tokens", "tags"), _judged(tasks.tagged)),
    Format(Ranking, ("prompt", "completions", "ranking"), _judged(ranking)),
    Format(Preference, ("chosen", "rejected"), _judged(preference), ("prompt",)),
    Format(Feedback, ("prompt", "completion", "spans"), _judged(feedback)),
    Format(Conversation, ("messages",), _conversation("messages")),
    Format(Conversation, ("conversations",), _conversation("conversations")),
    Format(Example, ("prompt", "completion"), _completed, ("spans",)),
    Format(Example, ("instruction", "output"), _instructed, ("input",)),
    Format(Example, ("text", "label"), _labelled),
    Format(Document, ("text",), _document, ("label",)),
)
TASKS = (
    Format(Feedback, ("question", "passages", "predictions", "feedback"), _judged(fine_grained.feedback)),
    Format(
        Ranking, ("question", "passages", "predictions", "preference"), _judged(fine_grained.ranking), ("feedback",)
    ),
    Format(Example, ("context", "question", "answers"), _extracted),
    _choice(("question", "choices", "answer"), ("choices",)),
    _choice(("choice1", "choice2", "label"), ("choice1", "choice2")),
    _choice(("context", "endings", "label"), ("endings",)),
    *map(_together, tasks.PAIRS),
    _together(("sentence1", "sentence2"), "score"),
    _together(("sentence",)),
)
