"""Rows of known benchmarks to examples: as their authors publish the files, as the hub has them, and as plain JSONL.

An example's `fields` hold what a prompt may name. Where a row brings answers to choose from, `choices` are their texts and
`weights` what each is worth: 1 a right one, 0 a wrong one, and what a task says in between.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from acclimate.data.examples import Example
from acclimate.data.lines import lines
from acclimate.data.problem import Refused
from acclimate.data.records import records
from acclimate.data.strict import decode
from acclimate.data.values import Raw, found, label, needed
from acclimate.errors import DataError

Fields = dict[str, Any]
Read = Callable[[Raw, str], Iterable[Fields]]  # (row, the file's name without its ending) → the fields of its examples
MMLU = ("question", "A", "B", "C", "D", "answer")  # columns of its files, which have no header
SPLIT = re.compile(r"_(dev|val|test|train)$")
LOOSE = re.compile(r" (?=n't|[).,'\"])|(?<=[(\"]) ")  # a space that a tokenizer put between what belongs together
LAST = re.compile(r"[Ss]o the answer is (.*?)\.?\s*$", re.DOTALL)  # how the chains of BBH end


def examples(paths: Sequence[Path], read: Read) -> tuple[Example, ...]:
    """Every row of the files. DataError for one that cannot be read: a benchmark is asked whole, or not at all."""
    made = []
    for path in paths:
        for where, row in _rows(path):
            try:
                if isinstance(row, Refused):
                    raise row
                made += [Example("", fields=fields, where=where) for fields in read(row, path.stem)]
            except Refused as refusal:
                raise DataError(refusal.at(where).message) from None
    return tuple(made)


def _rows(path: Path) -> Iterator[tuple[str, Raw | Refused]]:
    """Raw rows with their places. Files of BIG-bench and BBH, of GLUE (tabs, quotes are text) and of MMLU (no header)."""
    if path.suffix == ".json":
        text = path.read_text(encoding="utf-8-sig")
        table = decode(text) if text.lstrip().startswith("{") else None
        if isinstance(table, dict) and "examples" in table:
            told = {name: value for name, value in table.items() if name not in ("examples", "canary")}
            yield from ((f"{path.name}[{i}]", {**told, **row}) for i, row in enumerate(table["examples"]))
            return
    if path.suffix == ".txt":
        yield path.name, {"prompt": path.read_text(encoding="utf-8")}
    elif path.suffix in (".tsv", ".csv") and (named := _header(path)) is not None:
        yield from _cells(path, named)
    else:
        yield from records(path)


def _header(path: Path) -> Sequence[str] | None:
    """The columns of a file that is not a common table, or nothing: () are those of its first line."""
    if path.suffix == ".tsv":
        return ()
    with path.open(newline="", encoding="utf-8-sig") as stream:
        first = next(csv.reader(stream), [])
    return MMLU if len(first) == len(MMLU) and first[-1].strip() in ("A", "B", "C", "D") else None


def _cells(path: Path, names: Sequence[str]) -> Iterator[tuple[str, Raw | Refused]]:
    tabs = path.suffix == ".tsv"
    with path.open("rb") as stream:
        told = (line for _, line in lines(stream))
        texts = (line if isinstance(line, str) else "" for line in told)
        cells = csv.reader(texts, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(texts)
        names = names or next(cells, [])
        for row in cells:
            good = len(row) == len(names)
            yield (
                f"{path.name}:{cells.line_num}",
                dict(zip(names, row))
                if good
                else Refused("csv", f"has {len(row)} fields; there should be {len(names)}: {', '.join(names)}."),
            )


def table(columns: Mapping[str, Sequence[str]], labels: Sequence[str]) -> Read:
    """Rows as they are, `columns` renamed (ours: theirs, the first that a row has).

    With `labels` the row's `label`, a number that counts into them, true or false, or one of them, becomes that number;
    a label may have several names, with | between.
    """

    def read(row: Raw, stem: str) -> Iterable[Fields]:
        fields = dict(row)
        for ours, theirs in columns.items():
            here = next((name for name in (ours, *theirs) if name in row), theirs[0])
            fields[ours] = needed(row, here, "row")
        if labels:
            fields["label"] = number(needed(fields, "label", "row"), labels)
            fields["weights"] = one_of(len(labels), fields["label"])
        return [fields]

    return read


def number(value: Any, labels: Sequence[str]) -> int:
    """Which of the labels is meant. Refused where none is.

    >>> number(True, ("no", "yes")), number("0", ("no", "yes")), number("aye", ("no", "yes|aye"))
    (1, 0, 1)
    """
    known = [names.split("|") for names in labels]
    if isinstance(value, bool) or value in ("T", "F", "True", "False", "true", "false"):
        value = int(value in (True, "T", "True", "true"))
    value = next((names[0] for names in known if value in names), value)
    return [names[0] for names in known].index(label(value, [names[0] for names in known], "label"))


def one_of(count: int, right: int) -> tuple[float, ...]:
    """Weights of `count` choices of which one is right.

    >>> one_of(3, 1)
    (0.0, 1.0, 0.0)
    """
    return tuple(float(i == right) for i in range(count))


def _chosen(row: Raw, choices: Sequence[str], key: Any, names: Sequence[Any] = ascii_uppercase) -> Fields:
    """The row with its choices and the right one, which `key` names by `names`, or by its place."""
    named = {str(name): i for i, name in enumerate(names[: len(choices)])}
    place = key if isinstance(key, int) else named.get(str(key).strip(), -1)
    if not 0 <= place < len(choices):
        raise Refused("choices", f"has {found(key)} as its answer; it names none of the {len(choices)} choices.")
    return {**row, "choices": tuple(choices), "weights": one_of(len(choices), place), "answer": place}


def mmlu(row: Raw, stem: str) -> Iterable[Fields]:
    """question, four choices, answer; the subject is the file's name where no column says it. Hendrycks et al. 2021."""
    choices = row["choices"] if "choices" in row else [needed(row, name, "row") for name in "ABCD"]
    subject = str(row.get("subject") or SPLIT.sub("", stem))
    return [{**_chosen(row, choices, needed(row, "answer", "row")), "subject": subject}]


def hellaswag(row: Raw, stem: str) -> Iterable[Fields]:
    """query and endings without the brackets of WikiHow. Zellers et al. 2019.

    Where the two halves of the context stand as one, the second is what follows the last sentence that is complete.
    """
    if "ctx_a" in row:
        first, second = row["ctx_a"], row["ctx_b"]
    else:
        first, second = _halves(needed(row, "context", "row"))
    activity = row.get("activity_label") or needed(row, "activity", "row")
    query = _unbracketed(f"{activity}: {first} {second.capitalize()}")
    endings = [_unbracketed(ending) for ending in needed(row, "endings", "row")]
    right = needed(row, "label", "row")
    return [{**_chosen(row, endings, right if isinstance(right, int) else str(right), "0123"), "query": query}]


def _halves(context: str) -> tuple[str, str]:
    cut = context.rfind(". ") + 1
    return (context[:cut], context[cut:].strip()) if cut and context[-1:] not in ".!?\"'" else (context, "")


def _unbracketed(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def arc(row: Raw, stem: str) -> Iterable[Fields]:
    """question, choices, and the key of the right one: its letter or number. Clark et al. 2018, arXiv:1803.05457."""
    asked, listed = row["question"], row.get("choices")
    if isinstance(asked, Mapping):  # AI2's own files
        asked, listed = asked["stem"], asked["choices"]
    if isinstance(listed, Mapping):  # the hub's
        listed = [{"text": text, "label": label} for text, label in zip(listed["text"], listed["label"], strict=True)]
    key = row["answerKey"] if "answerKey" in row else needed(row, "answer", "row")
    if listed and isinstance(listed[0], Mapping):
        names: Sequence[Any] = [one["label"] for one in listed]
        texts = [one["text"] for one in listed]
    else:
        names, texts = ascii_uppercase, list(listed or ())
    return [{**_chosen(row, texts, key, names), "question": asked}]


def truthfulqa(kind: str) -> Read:
    """question and its targets of one kind, mc1 (one is true) or mc2 (several are). Lin et al. 2022, arXiv:2109.07958."""

    def read(row: Raw, stem: str) -> Iterable[Fields]:
        targets = row.get(f"{kind}_targets")
        if targets is None:
            targets = _targets(row, kind)
        elif "choices" in targets and "labels" in targets:  # the hub's
            targets = list(zip(targets["choices"], targets["labels"], strict=True))
        else:
            targets = list(targets.items())
        texts, weights = zip(*targets)
        asked = row["question"] if "question" in row else needed(row, "Question", "row")
        return [{**row, "question": asked, "choices": texts, "weights": tuple(map(float, weights))}]

    return read


def _targets(row: Raw, kind: str) -> list[tuple[str, float]]:
    """From the table of answers: columns as in TruthfulQA.csv, where `; ` parts answers, or lists under small names."""

    def listed(name: str) -> list[str]:
        given = row[name] if name in row else needed(row, name.lower().replace(" ", "_"), "row")
        return [one.strip() for one in given.split(";") if one.strip()] if isinstance(given, str) else list(given)

    best = row["Best Answer"] if "Best Answer" in row else needed(row, "best_answer", "row")
    right = [str(best).strip()] if kind == "mc1" else listed("Correct Answers")
    return [(text, 1.0) for text in right] + [(text, 0.0) for text in listed("Incorrect Answers")]


def wic(row: Raw, stem: str) -> Iterable[Fields]:
    """Two sentences, and the word as the first one has it. Pilehvar & Camacho-Collados 2019, arXiv:1808.09121.

    Where no column says at which characters it stands, it is the first word that begins as the dictionary's form does.
    """
    fields = dict(next(iter(table({}, ("no", "yes"))(row, stem))))
    sentence = needed(row, "sentence1", "row")
    if "start1" in row:
        return [{**fields, "surface": sentence[int(row["start1"]) : int(row["end1"])]}]
    word = needed(row, "word", "row")
    stems = [word[:length] for length in range(len(word), max(1, len(word) // 2), -1)]
    spots = (re.search(rf"\b{re.escape(stem)}\w*", sentence, re.IGNORECASE) for stem in stems)
    spot = next((spot for spot in spots if spot), None)
    return [{**fields, "surface": spot.group() if spot else word}]


def bigbench(row: Raw, stem: str) -> Iterable[Fields]:
    """input, and what each choice scores, in the order of the alphabet: in the file the right one often comes first.

    Srivastava et al. 2022, arXiv:2206.04615; of its prefixes those that task.json gives.
    """
    scores = needed(row, "target_scores", "row")
    texts = sorted(scores)
    before, after = row.get("example_input_prefix", "\nQ: "), row.get("example_output_prefix", "\nA: ")
    weights = tuple(float(scores[text]) for text in texts)
    offered = "".join(row.get("choice_prefix", "\n  choice: ") + text for text in texts)
    shown = offered if row.get("append_choices_to_input", True) else ""
    asked = f"{row.get('task_prefix', '')}{before}{needed(row, 'input', 'row')}{shown}{after}".strip()
    return [{**row, "task": row.get("name", stem), "prompt": asked, "choices": tuple(texts), "weights": weights}]


def bbh(row: Raw, stem: str) -> Iterable[Fields]:
    """input and target of one of the tasks, whose name the file has where no column says it. Suzgun et al. 2022."""
    return [{**row, "task": row.get("task", stem), "input": needed(row, "input", "row")}]


def chains(row: Raw, stem: str) -> Iterable[Fields]:
    """The worked examples of one of BBH's chain-of-thought prompts: description, input, chain, and target."""
    text = needed(row, "prompt", "row").split("-----\n", 1)[-1].strip("\n")
    description, *asked = re.split(r"\n\nQ: ", text)
    for one in asked:
        question, _, chain = one.partition("\nA: Let's think step by step.\n")
        answer = LAST.search(chain)
        yield {
            "task": row.get("task", stem),
            "description": description,
            "input": question,
            "chain": chain.rstrip(),
            "target": answer.group(1) if answer else "",
        }


def multirc(row: Raw, stem: str) -> Iterable[Fields]:
    """One answer of one question about a paragraph, and whether it is right. Khashabi et al. 2018; SuperGLUE.

    `of` is a number that all answers of a question share.
    """
    told = row.get("passage")
    if not isinstance(told, Mapping):  # the hub's: an answer a row
        yield _offered(row, needed(row, "paragraph", "row"), row, row)
        return
    for asked in needed(told, "questions", "passage"):
        for answer in needed(asked, "answers", "question"):
            text = needed(told, "text", "passage")
            yield _offered(row, text, asked, {**answer, "answer": needed(answer, "text", "answer")})


def _offered(row: Raw, paragraph: str, asked: Raw, answer: Raw) -> Fields:
    question = needed(asked, "question", "row")
    named = sha256(f"{paragraph}\n{question}".encode("utf-8", "surrogatepass")).hexdigest()
    right = number(needed(answer, "label", "answer"), ("no", "yes"))
    told = {"paragraph": paragraph, "question": question, "answer": needed(answer, "answer", "answer"), "label": right}
    return {**row, **told, "of": int(named[:12], 16), "weights": one_of(2, right)}


def record(row: Raw, stem: str) -> Iterable[Fields]:
    """A query with a gap, and what each entity of the passage makes of it. Zhang et al. 2018, arXiv:1810.12885; SuperGLUE.

    text, highlights: of the passage. names: the entities; answers: those that fill the gap.
    """
    if "qas" in row:  # its authors': entities by their first and last character
        passage = needed(row, "passage", "row")
        told = needed(passage, "text", "passage")
        named = [told[span["start"] : span["end"] + 1] for span in needed(passage, "entities", "passage")]
        queries = [
            (needed(asked, "query", "question"), [needed(answer, "text", "answer") for answer in asked["answers"]])
            for asked in row["qas"]
        ]
    else:
        told, named = needed(row, "passage", "row"), needed(row, "entities", "row")
        queries = [(needed(row, "query", "row"), needed(row, "answers", "row"))]
    text, *highlights = told.strip().split("\n@highlight\n")
    names = sorted(set(named))
    for query, answers in queries:
        yield {
            "text": text,
            "highlights": highlights,
            "names": tuple(names),
            "answers": tuple(sorted(set(answers))),
            "choices": tuple(f"  - {query}".replace("@placeholder", name) for name in names),
            "weights": tuple(float(name in answers) for name in names),
        }


def wsc(row: Raw, stem: str) -> Iterable[Fields]:
    """A passage whose pronoun stands between stars, and whether it means the noun. Levesque et al. 2012; SuperGLUE.

    Places are counted in words. Spaces that a tokenizer put before punctuation are taken out.
    """
    spans, text = row.get("target", row), needed(row, "text", "row")
    noun, pronoun = needed(spans, "span1_text", "row"), needed(spans, "span2_text", "row")
    before = " ".join(text.split()[: int(needed(spans, "span2_index", "row"))])
    passage = LOOSE.sub("", f"{before} *{pronoun}*{text[len(before) + len(pronoun) + 1 :]}")
    right = number(needed(row, "label", "row"), ("no", "yes"))
    return [{**row, "passage": passage, "noun": noun, "pronoun": pronoun, "label": right, "weights": one_of(2, right)}]


def stsb(row: Raw, stem: str) -> Iterable[Fields]:
    """Two sentences and how alike they are, 0 to 5. Cer et al. 2017, arXiv:1708.00055; GLUE."""
    alike = row["score"] if "score" in row else needed(row, "label", "row")
    try:
        return [{**row, "score": float(alike), "weights": (0.0,) * 6}]
    except (TypeError, ValueError):
        raise Refused("score", f"has {found(alike)} as its score; it is a number from 0 to 5.") from None


READERS: Mapping[str, Read] = {
    "mmlu": mmlu,
    "hellaswag": hellaswag,
    "arc": arc,
    "truthfulqa_mc1": truthfulqa("mc1"),
    "truthfulqa_mc2": truthfulqa("mc2"),
    "wic": wic,
    "multirc": multirc,
    "record": record,
    "wsc": wsc,
    "stsb": stsb,
    "bigbench": bigbench,
    "bbh": bbh,
    "bbh_chains": chains,
}
