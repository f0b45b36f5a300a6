"""Reward models of spans: parts of a text, the token each ends with, what is learned and what it earns (G18, G19)."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from acclimate.data import fine_grained
from acclimate.data.examples import Feedback, Message, Output, Span
from acclimate.data.problem import Refused
from acclimate.data.read import read
from acclimate.data.template import Segment, Template
from acclimate.errors import ModelError, RecipeError
from acclimate.evaluation.feedback import choose
from acclimate.evaluation.predictor import bare
from acclimate.methods import LoRA
from acclimate.methods.delta import adapt
from acclimate.models.load import load
from acclimate.models.policy import add_value_head
from acclimate.objectives import PPO
from acclimate.objectives.feedback import segmented
from acclimate.rewards.fine import Segments
from acclimate.rewards.model import Model
from acclimate.rewards.reward import Completion, Mark, Weighted, checked, total, whole
from acclimate.rewards.rollout import Prompt, Rollouts, collect, place_of, settled
from acclimate.run.beside import bound, lent
from acclimate.run.prepare import codec_of
from acclimate.tokens.codec import codec
from acclimate.tokens.feedback import SegmentReader, by_token, holds, parts
from acclimate.tokens.reading import Shape
from tests import spelling, tiny
from tests.runs import verb

TOKENIZERS = {
    "byte_level": spelling.byte_level,
    "metaspace": spelling.metaspace,
    "unigram": spelling.unigram,
    "wordpiece": spelling.wordpiece,
}
SHAPE = Shape("tag", ("Bad", "Off"))


def reader_of(name="byte_level", level="token", limit=512, chat=False):
    made = codec(TOKENIZERS[name]())
    template = Template(chat=made.chat() if chat else None, end=made.eos_text)
    return SegmentReader(made, template, SHAPE, (), limit, level, (("Bad",), ("Off", "Odd")))


def row_of(text, *spans, prompt="why is it so?"):
    return Feedback((Message("user", prompt),), text, tuple(Span(*span) for span in spans), "f:1")


# Parts of a text


@pytest.mark.parametrize(
    ("text", "level", "expected"),
    [
        ("It is so. Is it? Yes!", "sentence", ["It is so.", "Is it?", "Yes!"]),
        ('He said "no." Then 2.5 of the U.S', "sentence", ['He said "no."', "Then 2.5 of the U.S"]),
        ("One\n\n two ", "sentence", ["One", "two"]),
        ("By J. K. Rowling. Dr. No and Mrs. Hall.", "sentence", ["By J. K. Rowling.", "Dr. No and Mrs. Hall."]),
        (
            "In the U.S. it is No. 1. In the U.S. He won.",
            "sentence",
            ["In the U.S. it is No. 1.", "In the U.S.", "He won."],
        ),
        ("At 5 p.m. (St. Ives) no. No. Yes!", "sentence", ["At 5 p.m. (St. Ives) no.", "No.", "Yes!"]),
        ("It is so (J.). We. They", "sentence", ["It is so (J.).", "We.", "They"]),
        ("好。不好！", "sentence", ["好。", "不好！"]),
        ("Well, 1,000: so; and - yes.", "sub-sentence", ["Well,", "1,000:", "so;", "and -", "yes."]),
        (" All. Of it ", "text", ["All. Of it"]),
        ("  ", "sentence", []),
    ],
)
def test_where_parts_end(text, level, expected):
    assert [text[a:b] for a, b in parts(text, level)] == expected


@given(st.text(max_size=60), st.sampled_from(["sub-sentence", "sentence", "text"]))
def test_every_character_is_in_one_part(text, level):
    found = parts(text, level)
    inside = [i for a, b in found for i in range(a, b)]
    assert inside == sorted(set(inside))
    assert all(text[i].isspace() for i in set(range(len(text))) - set(inside))
    assert all(text[a:b] == text[a:b].strip() != "" for a, b in found)


# Parts on tokens

TEXTS = st.text(
    st.one_of(
        st.sampled_from("the quick brown fox. Is, it? good! 🦊é\n"),
        st.characters(codec="utf-8", exclude_categories=["Cc"]),
    ),
    min_size=1,
    max_size=40,
)


@pytest.mark.parametrize("level", ["token", "sub-sentence", "sentence", "text"])
@pytest.mark.parametrize("chat", [False, True])
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
@example(text="🦊🦊. é\n好。")
@example(text="  fox.  dog ")
def test_a_part_ends_with_the_token_that_writes_its_last_character(level, chat, text):
    """Against the bytes that the tokens spell, one after the other."""
    assume(text.strip() and not any(mark in text for mark in ("<|",)))
    reader = reader_of("byte_level", level, chat=chat)
    (found,) = reader(row_of(text))
    (ids,), (places,) = found.pieces, found.places
    spelled = [bytes_of(reader.codec, [token]) for token in ids]
    whole = b"".join(spelled).removesuffix(reader.codec.eos_text.encode())
    start = whole.rindex(text.strip().encode()) - len(text[: len(text) - len(text.lstrip())].encode())
    assert list(places) == sorted(set(places))
    for place, (_, end) in zip(places, found.spans, strict=True):
        wanted = start + len(text[:end].encode())
        before, after = (len(b"".join(spelled[:n])) for n in (place, place + 1))
        assert before < wanted <= after
    assert found.spans[-1][1] == len(text.rstrip()) or level == "token"


def bytes_of(made, ids):
    """What ids of the byte-level tokenizer spell."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    back = {chr(byte): byte for byte in printed}
    back |= {chr(256 + i): byte for i, byte in enumerate(b for b in range(256) if b not in printed)}
    tokens = made.tokenizer.convert_ids_to_tokens(list(ids))
    special = set(made.tokenizer.all_special_tokens)
    return b"".join(t.encode() if t in special else bytes(back[letter] for letter in t) for t in tokens)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, data=st.data())
def test_a_span_marks_the_tokens_that_spell_it_and_no_others(name, text, data):
    """Token by token: asked of the tokenizer for every character of the span."""
    assume(text.strip() and not any(mark in text for mark in ("<", "[", "▁")))
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    reader = reader_of(name)
    read_ = reader(row_of(text, (start, end, "Bad")))
    if not read_:
        return
    (found,) = read_
    marked = [bool(target) for target in found.targets[::2]]
    assert not any(found.targets[1::2])
    for (a, b), wrong in zip(found.spans, marked, strict=True):
        assert wrong == any(start <= i < end for i in range(a, b))
    assert len(marked) == len(set(found.places[0])) == len(found.spans)


def test_a_row_by_hand():
    text = "The fox. It is lazy, not quick."
    row = row_of(text, (9, 19, "Bad"), (4, 7, "Odd"), (25, 30, "Other"))
    (found,) = reader_of(level="sentence")(row)
    assert [text[a:b] for a, b in found.spans] == ["The fox.", "It is lazy, not quick."]
    assert found.targets == (0, 1, 1, 0)
    (found,) = reader_of(level="sub-sentence")(row)
    assert found.targets == (0, 1, 1, 0, 0, 0)
    (found,) = reader_of(level="text")(row)
    assert found.targets == (1, 1)
    reader = reader_of(level="text", chat=True)
    (found,) = reader(row)
    assert reader.codec.decode(found.pieces[0][: found.places[0][0] + 1]).endswith("not quick.")
    assert reader.codec.decode(found.pieces[0], special=True).endswith("not quick.<|im_end|>")


def test_a_long_prompt_loses_its_beginning_and_parts_stay_in_place():
    row = row_of("The fox. It is lazy.", prompt="quick brown " * 60)
    (whole,), (cut,) = (reader_of(level="sentence", limit=limit)(row) for limit in (512, 60))
    (ids,), (short,) = whole.pieces, cut.pieces
    assert len(short) == 60
    assert cut.truncated == len(ids) - 60
    assert [len(ids) - t for t in whole.places[0]] == [len(short) - t for t in cut.places[0]]
    assert whole.targets == cut.targets


def test_parts_that_end_with_one_token_are_one():
    assert by_token("a. b", [(0, 4)], "sentence") == {0: (0, 4)}
    assert by_token("🦊!", [(0, 1), (0, 1), (0, 1), (1, 2)], "token") == {2: (0, 1), 3: (1, 2)}
    assert not holds([Span(0, 2, "Bad")], ("Bad",), (2, 4))
    assert holds([Span(0, 3, "Bad")], ("Bad",), (2, 4))


# The loss and the numbers


def test_the_loss_by_hand():
    """Log-odds 0, 2 and −1, 3 of two parts and two kinds: log(1 + e^z) − y z."""
    answers = torch.tensor([[0.0, 2.0], [-1.0, 3.0]], dtype=torch.float64)
    wrong = torch.tensor([[1, 0], [0, 1]])
    expected = sum(
        math.log(1 + math.exp(z)) - y * z
        for z, y in zip(answers.flatten().tolist(), wrong.flatten().tolist(), strict=True)
    )
    found = segmented(answers, wrong)
    assert found.total.item() == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(0.693147 + 2.126928 + 0.313262 + 0.048587, abs=1e-5)
    assert int(found.count) == 4


def test_accuracy_f1_and_the_majority_by_hand():
    """Of five parts people mark two; the model finds one of them and one more."""
    rows = [row_of("a. b. c.", (0, 2, "Bad"), (3, 5, "Odd")), row_of("a. b.", (3, 5, "Bad"))]
    said = [
        Output(scores={"Bad 0:2": 0.9, "Bad 3:5": 0.2, "Bad 6:8": 0.7, "Rare 0:2": 0.1}),
        Output(scores={"Bad 0:2": 0.1, "Bad 3:5": 0.3, "Rare 0:2": 0.4}),
    ]
    groups = {"Bad": ("Bad",), "Rare": ("Rare",)}
    found = {m.name: m for m in choose((), groups, rows)}
    assert set(found) == {"f1 Bad", "accuracy Bad", "majority Bad", "accuracy Rare", "majority Rare"}
    counts = {name: np.array([m.row(o, r) for o, r in zip(said, rows, strict=True)]) for name, m in found.items()}
    assert counts["f1 Bad"].tolist() == [[1, 1, 0, 1], [0, 0, 1, 1]]
    values = {name: m.combine(counts[name]) for name, m in found.items()}
    assert {n: v for n, v in values.items() if "Bad" in n} == {"f1 Bad": 0.5, "accuracy Bad": 0.6, "majority Bad": 0.6}
    assert values["accuracy Rare"] == values["majority Rare"] == 1
    twice = found["accuracy Bad"].resampled(counts["accuracy Bad"], np.array([[2.0, 0.0], [0.0, 1.0]]))
    assert twice.tolist() == pytest.approx([2 / 3, 1 / 2])
    with pytest.raises(RecipeError, match="f1 Rare"):
        choose(("f1 Rare",), groups, rows)


# From rows to rewards

WORDS = ("quick", "brown", "good", "lazy", "fox", "dog")
RECIPE = """
model: {home}/model
data: {train: {home}/rows.jsonl}
method: {name: lora, rank: 8, targets: [linear]}
objective: {name: spans, level: sub-sentence, kinds: {wrong: [Bad, Worse], odd: [Odd]}}
task: {chat: false}
training: {steps: 60, tokens_per_step: 600, rate: 0.01, precision: float32, checkpoint_every: 20}
evaluation: {draws: 100, forgetting: false}
"""


def marked(n):
    """Parts with "bad" in them are marked: as Bad, or as Worse in every second row; every part with "dog" is odd."""
    pieces = [f"{WORDS[(n + i) % 6]} {'bad' if (n * 5 + i * 3) % 4 == 0 else WORDS[(n * i) % 4]}" for i in range(3)]
    text, spans = ", ".join(pieces) + ".", []
    for word, kind in (("bad", "Worse" if n % 2 else "Bad"), ("dog", "Odd")):
        for i in range(len(text)):
            if text.startswith(word, i):
                spans.append({"start": i, "end": i + len(word), "kind": kind})
    return {"prompt": f"say {WORDS[n % 5]} {n}", "completion": text, "spans": spans}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, rows, and two models of spans on them."""
    folder = tmp_path_factory.mktemp("spans")
    tokenizer = spelling.byte_level(template=None)
    torch.manual_seed(0)
    tiny.llama(tied=True, vocab=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(marked(n)) + "\n" for n in range(80)))
    (folder / "recipe.yaml").write_text(RECIPE.replace("{home}", str(folder)))
    verb("run", folder / "recipe.yaml", "--out", folder / "parts", "--quiet")
    short = ("objective.level=text", "training.steps=3")
    verb("run", folder / "recipe.yaml", *short, "--out", folder / "whole", "--quiet")
    return folder


def test_marked_words_are_learned(home):
    report = json.loads((home / "parts" / "report.json").read_text())
    scores = {name: found["value"] for name, found in report["result"]["scores"].items()}
    base = {name: found["value"] for name, found in report["base"]["scores"].items()}
    assert set(scores) == {f"{name} {kind}" for name in ("f1", "accuracy", "majority") for kind in ("wrong", "odd")}
    assert scores["accuracy wrong"] > scores["majority wrong"] == base["majority wrong"]
    assert scores["f1 wrong"] > max(0.75, base["f1 wrong"] + 0.2)
    rows = [json.loads(line) for line in (home / "parts" / "predictions.jsonl").read_text().splitlines()]
    for row in rows:
        for line in row["result"]["text"].splitlines():
            assert line.partition("] ")[2] in marked(int(row["prompt"].split()[-1]))["completion"]
        assert row["prompt"].startswith("say ")
    right = sum(
        ("bad" in line) == line.startswith("[wrong") for row in rows for line in row["result"]["text"].splitlines()
    )
    assert right / sum(len(row["result"]["text"].splitlines()) for row in rows) > 0.85


def rewards(home, *asked):
    loaded = load(f"{home}/model", dtype=torch.float32)
    return bound(Weighted(asked), adapt(loaded.model, LoRA(rank=2)), codec_of(loaded))


GIVEN = [Completion("say fox 3", text) for text in ("fox bad, brown good, dog quick.", "lazy good", "", "bad")]


def test_marks_lie_at_the_ends_of_parts(home):
    """+w where the model sees no error, −w where it does; two kinds add up."""
    folder = str(home / "parts" / "adapter")
    alone = rewards(home, (1.0, Segments(folder, {"wrong": 0.5})))
    found = checked(alone(GIVEN), GIVEN, "Segments")
    text = GIVEN[0].text
    assert [text[: mark.end] for mark in found[0]] == ["fox bad,", "fox bad, brown good,", text]
    assert [mark.score for mark in found[0]] == [-0.5, 0.5, 0.5]
    assert found[2] == ()
    both = rewards(home, (1.0, Segments(folder, {"wrong": 0.5, "odd": 2.0})))(GIVEN)
    odd = rewards(home, (2.0, Segments(folder, {"odd": 1.0})))(GIVEN)
    for one, other, sums in zip(found, odd, both, strict=True):
        assert [m.end for m in one] == [m.end for m in other] == [m.end for m in sums]
        assert [m.score for m in sums] == pytest.approx([a.score + b.score for a, b in zip(one, other, strict=True)])
    plain = rewards(home, (1.0, Segments(folder)))(GIVEN)
    assert {abs(m.score) for marks in plain for m in marks} <= {0.0, 2.0}


def test_several_models_are_their_weighted_sum_on_one_base(home):
    folders = [str(home / name / "adapter") for name in ("parts", "whole")]
    both = rewards(home, (0.3, Segments(folders[0])), (2.0, Segments(folders[1])))
    trunks = {part.heard.model.trunk.embed_tokens.weight.data_ptr() for _, part in both.parts}
    assert len(trunks) == 1
    apart = [rewards(home, (1.0, Segments(folder)))(GIVEN) for folder in folders]
    for found, one, two in zip(both(GIVEN), *apart, strict=True):
        expected = [Mark(end, 0.3 * score) for end, score in one] + [Mark(end, 2.0 * score) for end, score in two]
        assert [m.end for m in found] == [m.end for m in expected]
        assert [m.score for m in found] == pytest.approx([m.score for m in expected])


def test_a_head_is_asked_without_dropout_and_its_modes_come_back(home):
    reward = rewards(home, (1.0, Segments(str(home / "parts" / "adapter"))))
    model = reward.parts[0][1].heard.model
    still = reward(GIVEN)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.9
    model.train()
    heard = reward.parts[0][1].heard
    read_ = [r for c in GIVEN for r in reward.parts[0][1].reader(row_of(c.text), answered=False)]
    first, second = heard.answers(read_), heard.answers(read_)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert reward(GIVEN) == still
    assert all(module.training for module in model.modules())


def test_one_span_in_the_loop_is_scalar_ppo(home):
    """The model of whole texts against a function that says the same numbers: every column that is learned from (G19)."""
    loaded = load(f"{home}/model", dtype=torch.float32)
    model, made = adapt(loaded.model, LoRA(rank=2)), codec_of(loaded)
    reward = bound(Segments(str(home / "whole" / "adapter")), model, made)
    add_value_head(model)
    torch.nn.init.normal_(model.value_head.weight)
    asked = [
        Prompt(bare(made, (Segment(f"say {word}", False),), word), f"say {word}", i) for i, word in enumerate(WORDS)
    ]

    def scalar(completions):
        return whole([total(marks) for marks in reward(completions)], completions)

    def learned(given):
        return collect(model, asked, given, PPO(), Rollouts(each=2), made, beta=0.1, seed=1, originals={}).columns

    dense, sparse = learned(reward), learned(scalar)
    assert dense["advantages"].abs().max() > 0.1
    assert all(torch.equal(dense[name], sparse[name]) for name in dense)


def test_one_span_over_the_whole_is_a_scalar(home):
    """A model of whole texts gives one mark, at the end: the token that any scalar reward lands on."""
    reward = rewards(home, (1.0, Segments(str(home / "whole" / "adapter"))))
    spoken = [c for c in GIVEN if c.text]
    made = codec(spelling.byte_level(template=None))
    for given_, marks in zip(spoken, reward(spoken), strict=True):
        assert marks == (Mark(len(given_.text), total(marks)),)
        ids = made.plain(given_.text)
        assert place_of(marks[0].end, settled(ids, given_.text, made)) == len(ids) - 1


def test_a_loan_leaves_no_trace(home):
    loaded = load(f"{home}/model", dtype=torch.float32)
    before = {name: p.requires_grad for name, p in loaded.model.named_parameters()}
    modules = [name for name, _ in loaded.model.named_modules()]
    with lent(Segments(str(home / "parts" / "adapter")), loaded.model, codec_of(loaded)) as reward:
        assert reward.heard.model.trunk is loaded.model.model
        kept = reward(GIVEN)
    assert {name: p.requires_grad for name, p in loaded.model.named_parameters()} == before
    assert [name for name, _ in loaded.model.named_modules()] == modules
    assert kept == rewards(home, (1.0, Segments(str(home / "parts" / "adapter"))))(GIVEN)


def test_what_does_not_fit_is_refused(home):
    folder = str(home / "parts" / "adapter")
    with pytest.raises(RecipeError, match="wrng"):
        rewards(home, (1.0, Segments(folder, {"wrng": 1.0})))
    with pytest.raises(ModelError, match="has a head of kind tag, which is no reward model"):
        rewards(home, (1.0, Model(folder)))
    for words in (("objective=reward",), ("objective.kinds={none: [Nothing]}",), ("task.labels=[a, b]",)):
        verb("run", home / "recipe.yaml", *words, "--out", home / "refused", "--quiet", expect=2)


@pytest.mark.parametrize("method", ["full", "head", "{name: prompt, length: 2}"])
def test_other_ways_of_training(home, tmp_path, method):
    words = (f"method={method}", "training.steps=2", "objective.level=token")
    every = RECIPE.replace("{home}", str(home)).replace(", kinds: {wrong: [Bad, Worse], odd: [Odd]}", "")
    (tmp_path / "recipe.yaml").write_text(every)
    verb("run", tmp_path / "recipe.yaml", *words, "--out", tmp_path / "run", "--quiet")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {"f1 Bad", "f1 Worse", "f1 Odd"} <= report["result"]["scores"].keys()
    marks = rewards(home, (1.0, Segments(str(tmp_path / "run" / "adapter"))))(GIVEN)
    assert [len(found) for found in marks][2:] == [0, 1]
    assert len(marks[0]) > 6


# Rows as Wu et al. published them


def published(**changed):
    row = {
        "question": "Who?",
        "passages": [{"title": "Fox", "sentences": ["It runs.", "It jumps."]}],
        "predictions": ["A fox. A dog.", "A dog.", "A cat.", "It."],
        "feedback": {"errors": [{"error type": "Irrelevant", "start": 7, "end": 13}], "missing-info": []},
        "preference": [1, 1, 0, 2, 2, 2],
    }
    return row | changed


def test_published_rows_become_feedback(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(published()) + "\n")
    (row,) = read(tmp_path / "rows.jsonl").rows
    assert isinstance(row, Feedback)
    assert row.prompt == (Message("user", "Fox: It runs. It jumps.\n\nQuestion: Who?\nAnswer:"),)
    assert (row.completion, row.spans) == ("A fox. A dog.", (Span(7, 13, "Irrelevant"),))


def test_what_is_missing_is_said_of_the_whole_answer(tmp_path):
    lacking = [{"error type": kind, "passage_id": 1} for kind in ("Missing-Answer", "Missing-Minor", "Missing-Answer")]
    row = published(feedback={"errors": [{"error type": "Odd", "start": 0, "end": 2}], "missing-info": lacking})
    found = fine_grained.feedback(row, "f:1")
    assert found.spans == (Span(0, 2, "Odd"), Span(0, 13, "Missing-Answer"), Span(0, 13, "Missing-Minor"))


def test_published_rows_without_feedback_become_rankings(tmp_path):
    """1 beats 2 and 3, ties with 4; 3 beats 2; 4 beats 2 and 3: won − lost 2, −3, −1, 2."""
    row = published()
    del row["feedback"]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = read(tmp_path / "rows.jsonl").rows
    assert (found.completions, found.ranks) == (tuple(row["predictions"]), (1, 4, 3, 1))


@pytest.mark.parametrize(
    ("build", "changed", "says"),
    [
        (fine_grained.feedback, {"feedback": {"errors": [{"error type": "A", "start": 7, "end": 14}]}}, "from 7 to 14"),
        (fine_grained.feedback, {"feedback": {}}, "has no errors in feedback|no errors"),
        (fine_grained.feedback, {"feedback": []}, "has a list as feedback"),
        (
            fine_grained.feedback,
            {"feedback": {"errors": [], "missing-info": [{}]}},
            "no error type at feedback.missing-info.0",
        ),
        (fine_grained.feedback, {"feedback": {"errors": [], "missing-info": "much"}}, "missing-info must be a list"),
        (fine_grained.feedback, {"passages": [{"title": "a"}]}, "no sentences"),
        (fine_grained.ranking, {"preference": [0] * 6}, "no prediction that is better"),
        (fine_grained.ranking, {"preference": [1, 2]}, "4 predictions need 6"),
        (fine_grained.ranking, {"preference": [1, 2, 3, 0, 0, 0]}, "of 0, 1 and 2"),
    ],
)
def test_published_rows_that_are_wrong(build, changed, says):
    with pytest.raises(Refused, match=says):
        build(published(**changed), "f:1")
