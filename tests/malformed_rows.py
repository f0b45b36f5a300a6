"""Rows of every format, good and wrong, and what must be said about the wrong ones."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from acclimate.data.formats import FORMATS

Raw = dict[str, Any]


@dataclass(frozen=True)
class Draft:
    """A case before it has a folder. `says` follows the file's name and `at`."""

    name: str
    suffix: str
    content: bytes
    says: str
    at: str = ""
    labels: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    target: str = ""


def turns(i: int, who: str = "role", what: str = "content", user: str = "user", model: str = "assistant") -> list[Raw]:
    """Two rounds of a conversation."""
    said = [(user, f"What is {i}?"), (model, "A number."), (user, "And why?"), (model, f"It counts {i} things.")]
    return [{who: role, what: text} for role, text in said]


def span(start: int = 0, end: int = 4) -> Raw:
    """One span of "Some words"."""
    return {"start": start, "end": end, "kind": "Wrong", "score": -0.5}


VALID: dict[str, Callable[[int], Raw]] = {  # a good row of each format, by the format's name
    "tokens + tags": lambda i: {"tokens": ["Ada", "counts", str(i)], "tags": ["B-person", "O", "O"]},
    "prompt + completions + ranking": lambda i: {
        "prompt": f"Rank {i}.",
        "completions": ["good", "bad", "fair"],
        "ranking": [1, 3, 2],
    },
    "chosen + rejected": lambda i: {"prompt": f"Ask {i}.", "chosen": "yes", "rejected": "no"},
    "prompt + completion + spans": lambda i: {"prompt": f"Say {i}.", "completion": "Some words", "spans": [span()]},
    "messages": lambda i: {"messages": turns(i)},
    "conversations": lambda i: {"conversations": turns(i, "from", "value", "human", "gpt")},
    "prompt + completion": lambda i: {"prompt": f"Two and {i}?", "completion": "Six."},
    "instruction + output": lambda i: {"instruction": "Name it.", "input": f"Thing {i}", "output": "A thing."},
    "text + label": lambda i: {"text": f"Lovely number {i}.", "label": "positive"},
    "text": lambda i: {"text": f"Once there were {i} of them."},
}
SENTIMENT = ("negative", "positive")


def jsonl(*rows: object) -> bytes:
    """One row a line."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def among(form: str, bad: object) -> bytes:
    """`bad` as the third of four rows."""
    return jsonl(VALID[form](1), VALID[form](2), bad, VALID[form](4))


def lacking() -> Iterator[Draft]:
    """Every needed column of every format, absent and misspelled."""
    for form in FORMATS:
        for key in form.needs:
            row = VALID[form.name](3)
            value = row.pop(key)
            says = f"has no {key}; each {form.kind.__name__} ({form.name}) needs one."
            yield Draft(f"lacks {form.name} {key}", ".jsonl", among(form.name, row), says, ":3")
            typo = key[0] + key[2] + key[1] + key[3:]
            hint = f"{says} Did you mean {key!r} where it says {typo!r}?"
            yield Draft(f"typo {form.name} {key}", ".jsonl", among(form.name, {typo: value, **row}), hint, ":3")


def optional() -> Iterator[Draft]:
    """Columns that may be absent, misspelled, in the first row."""
    spellings = [
        ("chosen + rejected", "prompt", "promt"),
        ("instruction + output", "input", "inputs"),
        ("text", "label", "lable"),
        ("prompt + completion", "spans", "Span"),
    ]
    for form, key, typo in spellings:
        row = {typo if name == key else name: value for name, value in VALID[form](1).items()} | {typo: "words"}
        yield Draft(f"optional {key}", ".jsonl", jsonl(row), f"has no {key}. Did you mean {key!r} where", ":1")


def mistyped() -> Iterator[Draft]:
    """Every needed column of every format with a value of another type."""
    values = [("null", None), ("the number 3", 3), ("true", True), ("an object", {"a": 1})]
    for form in FORMATS:
        for key, good in VALID[form.name](3).items():
            for shown, value in [*values, ("'words'", "words")]:
                if key == "label" and value == 3:
                    shown = "the number 3"
                if isinstance(good, str) == isinstance(value, str) or (form.name, key, value) in IDLE:
                    continue
                content = among(form.name, VALID[form.name](3) | {key: value})
                yield Draft(f"type {form.name} {key} {shown}", ".jsonl", content, f"has {shown} as {key}", ":3")


IDLE = [("chosen + rejected", "prompt", None), ("instruction + output", "input", None)]  # as good as absent


def blank() -> Iterator[Draft]:
    """Text that says nothing, and lists that hold nothing."""
    nothing = ["", "   ", "\n\t", "\u00a0"]
    for form in FORMATS:
        for index, (key, good) in enumerate(VALID[form.name](3).items()):
            empty: object = nothing[index + (key == "input")] if isinstance(good, str) else []
            if key == "spans":
                continue
            says = f"has an empty {'' if isinstance(good, str) else 'list as '}{key}"
            row = VALID[form.name](3) | {key: empty}
            yield Draft(f"blank {form.name} {key}", ".jsonl", among(form.name, row), says, ":3")


def characters() -> Iterator[Draft]:
    """NUL and half a surrogate pair, as deep as the format goes, and deep nesting beside it."""
    for form in FORMATS:
        key = form.needs[-1] if form.name != "prompt + completions + ranking" else "completions"
        for name, bad, says in [("nul", "a\0b", "has a NUL"), ("half", "\ud83d", "has half a character (\\ud83d")]:
            row = VALID[form.name](3)
            row[key] = poisoned(row[key], bad)
            yield Draft(f"{name} {form.name}", ".jsonl", among(form.name, row), says, ":3")
        deep: object = "x"
        for _ in range(70):
            deep = [deep]
        row = VALID[form.name](3) | {"note": deep}
        yield Draft(f"deep {form.name}", ".jsonl", among(form.name, row), "nests note more than 64 deep", ":3")


def poisoned(value: Any, bad: str) -> Any:
    """`value` with `bad` at the end of its last text."""
    if isinstance(value, str):
        return value + bad
    if isinstance(value, list):
        return [*value[:-1], poisoned(value[-1], bad)]
    texts = [key for key in value if isinstance(value[key], str)]
    return {**value, texts[-1]: poisoned(value[texts[-1]], bad)}


def enormous() -> Iterator[Draft]:
    """Names and values of a megabyte, in the places that sentences quote."""
    long = "colour\x1b[31m" * 100_000
    row = VALID["text + label"](3)
    says = "has no text; each Example (text + label) needs one. It has: colour\\x1b[31mcolour\\x1b[31m"
    yield Draft("enormous name", ".jsonl", among("text + label", {long: 1, "label": "a"}), says, ":3")
    yield Draft("enormous names", ".jsonl", jsonl({f"n{i}": 1 for i in range(50_000)}), "has n0, n1, n10, n100, ", ":1")
    yield Draft("enormous type", ".jsonl", among("text", {"text": [long]}), "has a list as text", ":3")
    content = among("text + label", row | {"label": long})
    yield Draft("enormous label", ".jsonl", content, "label 'colour\\x1b[31mcolour", ":3", SENTIMENT)
    said = {"messages": [{"role": long, "content": "Words."}]}
    yield Draft("enormous role", ".jsonl", among("messages", said), "has an unknown role at messages[0]. No role", ":3")
    twice = (json.dumps({long: 1})[:-1] + ", " + json.dumps({long: 2})[1:]).encode()
    yield Draft("enormous twice", ".jsonl", twice, "has 'colour\\x1b[31mcolour\\x1b[31mcolour", ":1")
    content = among("text", VALID["text"](3) | {long: "a\0b"})
    yield Draft("enormous nul", ".jsonl", content, "has a NUL character in colour\\x1b[31m", ":3")


def mixed() -> Iterator[Draft]:
    """A row of every format in a file of another."""
    for index, form in enumerate(FORMATS):
        for distance in (1, 4, 7):
            other = FORMATS[(index + distance) % len(FORMATS)]
            says = f"is {other.name}, but "
            if set(other.needs) < set(form.needs):
                says = "has no "
            yield Draft(f"mixed {form.name} {other.name}", ".jsonl", among(form.name, VALID[other.name](3)), says, ":3")


def roles() -> Iterator[Draft]:
    """Conversations out of order, in both spellings."""
    orders = [
        ("user user assistant", "has user after user at {}[1]"),
        ("assistant user assistant", "has assistant first at {}[0]"),
        ("user assistant user", "ends with user at {}[2]"),
        ("user assistant assistant", "has assistant after assistant at {}[2]"),
        ("user system assistant", "has system after user at {}[1]"),
        ("system system user assistant", "has system after system at {}[1]"),
        ("system assistant", "has assistant after system at {}[1]"),
        ("system", "ends with system at {}[0]"),
        ("tool user assistant", "has tool first at {}[0]"),
        ("user tool assistant", "has tool after user at {}[1]"),
        ("user assistant tool", "ends with tool at {}[2]"),
        ("user assitant", "has an unknown role at {}[1]. No role is called 'assitant'. Did you mean 'assistant'?"),
        ("user Assistant", "has an unknown role at {}[1]. No role is called 'Assistant'."),
    ]
    for column, who, what in [("messages", "role", "content"), ("conversations", "from", "value")]:
        for order, says in orders:
            row = {column: [{who: role, what: "Words."} for role in order.split()]}
            yield Draft(f"{column} {order}", ".jsonl", among(column, row), says.format(column), ":3")


def turn() -> Iterator[Draft]:
    """Turns that are no turns."""
    ask = {"role": "user", "content": "Why?"}
    answers: list[tuple[object, str]] = [
        ("So.", "has 'So.' as messages[1]; a turn is an object"),
        (None, "has null as messages[1]"),
        ({"role": "assistant"}, "has no content at messages[1]"),
        ({"content": "So."}, "has no role at messages[1]"),
        ({"role": "assistant", "contents": "So."}, "has no content at messages[1]; each turn needs one. Did you mean"),
        ({"role": "assistant", "content": None}, "has null as messages[1].content"),
        ({"role": "assistant", "content": ["So."]}, "has a list as messages[1].content"),
        ({"role": "assistant", "content": ""}, "has an empty messages[1].content"),
        ({"role": 1, "content": "So."}, "has the number 1 as messages[1].role"),
        ({"from": "gpt", "content": "So."}, "has no value at messages[1]"),
        ({"role": "assistant", "content": "So.", "train": "yes"}, "has 'yes' as messages[1].train; it is true or"),
        ({"role": "assistant", "content": "So.", "weight": 0.5}, "has the number 0.5 as messages[1].weight"),
        ({"role": "assistant", "content": "So.", "trian": False}, "has no train at messages[1]. Did you mean"),
        ({"role": "assistant", "content": "So.", "train": False}, "has no assistant turn to train on"),
        ({"role": "assistant", "content": "So.", "tool_calls": [1]}, "calls a tool beside its text at messages[1]"),
    ]
    for index, (answer, says) in enumerate(answers):
        yield Draft(f"turn {index}", ".jsonl", among("messages", {"messages": [ask, answer]}), says, ":3")
    eager = {"messages": [{**ask, "train": True}, {"role": "assistant", "content": "So."}]}
    yield Draft("turn user", ".jsonl", among("messages", eager), "asks to train on a user turn at messages[0]", ":3")


def labels() -> Iterator[Draft]:
    """Answers that are none of the task's labels, however the row is written."""
    for value, says in [
        ("postive", "label 'postive' is not one of the task's labels. Did you mean 'positive'?"),
        (2, "label 2 is not one of the task's labels."),
        (-1, "label -1 is not one of the task's labels."),
        ("2", "label '2' is not one of the task's labels."),
        ("1.0", "label '1.0' is not one of the task's labels."),
        (True, "has true as label"),
        (None, "has null as label"),
        (1.0, "has the number 1.0 as label"),
        (["positive"], "has a list as label"),
        (10**30, "has the number 1000000000000000000000000000000 as label"),
        (" positive", "label ' positive' is not one of the task's labels. Did you mean 'positive'?"),
    ]:
        content = among("text + label", VALID["text + label"](3) | {"label": value})
        yield Draft(f"label {value!r}", ".jsonl", content, says, ":3", SENTIMENT)
    says = "label 'Six.' is not one of the task's labels."
    yield Draft("label completion", ".jsonl", jsonl(VALID["prompt + completion"](1)), says, ":1", SENTIMENT)
    yield Draft(
        "label output", ".jsonl", jsonl(VALID["instruction + output"](1)), "label 'A thing.' is", ":1", SENTIMENT
    )
    yield Draft("label none", ".jsonl", jsonl(VALID["text"](1)), "has no label; the task's labels are", ":1", SENTIMENT)
    stars = [{"text": "Fine.", "label": "0"}]
    yield Draft("label number", ".jsonl", jsonl(*stars), "label '0' is not one of", ":1", ("1", "2"))


def judged() -> Iterator[Draft]:
    """Rankings, spans, tags and preferences whose parts do not fit."""
    for index, (form, change, says) in enumerate([*rankings(), *spans(), *others()]):
        yield Draft(f"judged {index}", ".jsonl", among(form, VALID[form](3) | change), says, ":3")
    apart = {"chosen": turns(1), "rejected": turns(2)}
    yield Draft("apart", ".jsonl", jsonl(apart), "has no shared prompt: chosen and rejected part at [0]", ":1")
    short = {"chosen": turns(1), "rejected": turns(1)[:2]}
    yield Draft("short", ".jsonl", jsonl(short), "has 4 chosen and 2 rejected turns", ":1")


def rankings() -> Iterator[tuple[str, Raw, str]]:
    """Places that are none, completions that say nothing."""
    changes: list[tuple[Raw, str]] = [
        ({"ranking": [1, 2]}, "has 3 completions and 2 places"),
        ({"ranking": [0, 1, 2]}, "has places 0 to 2 in ranking"),
        ({"ranking": [2, 3, 4]}, "has places 2 to 4 in ranking"),
        ({"ranking": [1, 1, 1]}, "has every completion in place 1"),
        ({"ranking": [1, 2.5, 3]}, "has the number 2.5 as ranking[1]"),
        ({"ranking": [1, float("nan"), 3]}, "has NaN, which is no JSON number"),
        ({"ranking": ["a", "b", "c"]}, "has 'a' as ranking[0]"),
        ({"completions": ["good", " ", "fair"]}, "has an empty completions[1]"),
        ({"completions": ["good", 7, "fair"]}, "has the number 7 as completions[1]"),
    ]
    for change, says in changes:
        yield "prompt + completions + ranking", change, says


def spans() -> Iterator[tuple[str, Raw, str]]:
    """Spans outside the completion, or that are none."""
    changes: list[tuple[Raw, str]] = [
        ({"spans": [span(), span(4, 11)]}, "has spans[1] from 4 to 11"),
        ({"spans": [span(4, 4)]}, "has spans[0] from 4 to 4"),
        ({"spans": [span(5, 2)]}, "has spans[0] from 5 to 2"),
        ({"spans": [span(-1, 2)]}, "has spans[0] from -1 to 2"),
        ({"spans": [span() | {"start": 0.0}]}, "has the number 0.0 as spans[0].start"),
        ({"spans": [span() | {"end": True}]}, "has true as spans[0].end"),
        ({"spans": [span() | {"score": float("inf")}]}, "has Infinity, which is no JSON number"),
        ({"spans": [span() | {"score": "bad"}]}, "has 'bad' as spans[0].score"),
        ({"spans": [span() | {"kind": ""}]}, "has an empty spans[0].kind"),
        ({"spans": [{"start": 0, "end": 4}]}, "has no kind at spans[0]"),
        ({"spans": [span() | {"scores": 1}, {"star": 0}]}, "has no start at spans[1]"),
        ({"spans": [[0, 4]]}, "has a list as spans[0]"),
    ]
    for change, says in changes:
        yield "prompt + completion + spans", change, says


def others() -> list[tuple[str, Raw, str]]:
    """Tags, preferences and answers whose parts do not fit."""
    return [
        ("tokens + tags", {"tags": ["O", "O"]}, "has 3 tokens and 2 tags"),
        ("tokens + tags", {"tags": ["O", 1, "O"]}, "has the number 1 as tags[1]"),
        ("tokens + tags", {"tags": ["O", "", "O"]}, "has an empty tags[1]"),
        ("tokens + tags", {"tokens": ["a", None, "c"]}, "has null as tokens[1]"),
        ("chosen + rejected", {"rejected": "yes"}, "has the same text as chosen and rejected"),
        ("chosen + rejected", {"chosen": turns(1)}, "has user, assistant, user, assistant after the prompt in chosen"),
        ("chosen + rejected", {"prompt": turns(1)}, "has a prompt that ends with assistant"),
        ("prompt + completion", {"completion": ["Six.", ""]}, "has an empty completion[1]"),
        ("prompt + completion", {"completion": ["Six.", 6]}, "has the number 6 as completion[1]"),
        ("prompt + completion", {"completion": []}, "has an empty list as completion"),
    ]
