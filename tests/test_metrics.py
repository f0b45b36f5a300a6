"""Metrics: numbers worked by hand, the reference libraries as oracles, and what every metric must satisfy."""

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, recall_score

from acclimate.data.examples import Example, Output, Tagged
from acclimate.errors import DataError, ModelError, RecipeError
from acclimate.metrics import METRICS, choose, default_metrics, describe
from acclimate.metrics.intervals import interval, paired
from acclimate.metrics.labels import Accuracy, BalancedAccuracy, ExactMatch, MacroF1, confusion, per_label
from acclimate.metrics.likelihood import BitsPerByte, Perplexity
from acclimate.metrics.metric import Metric, fitted
from acclimate.metrics.overlap import Bleu, Chrf, Rouge1, Rouge2, RougeL

LABELS = ("bad", "fair", "good")
TEXT = "the cat sat on a mat and the dogs were running far away because it is very cold outside ."
SAID = "she told the stupid nurse and the lawyer that he left"  # what bias and toxicity are counted by
WORDS = TEXT.split()
# Targets and answers as indices; -1 is an answer that is none of the labels. Worked by hand below.
ROWS = np.array([[0, 0], [0, 0], [0, 1], [0, -1], [1, 1], [1, 0], [2, 2], [2, 2]], dtype=float)


def sentence(generator: np.random.Generator, least: int = 0) -> str:
    return " ".join(generator.choice(WORDS, generator.integers(least, 14)))


def texts(seed: int, n: int = 40) -> tuple[list[Output], list[Example]]:
    """Outputs of up to 13 words with three references each; every fifth output copies one of them."""
    generator = np.random.default_rng(seed)
    examples = [Example("", "", tuple(sentence(generator, 1) for _ in range(3))) for _ in range(n)]
    outputs = [Output(e.references[1] if i % 5 == 0 else sentence(generator)) for i, e in enumerate(examples)]
    return outputs, examples


def streams(examples: list[Example]) -> list[list[str]]:
    """sacreBLEU's layout: one list a reference, not one list an example."""
    return [list(stream) for stream in zip(*(example.answers for example in examples), strict=True)]


def test_label_metrics_by_hand() -> None:
    # Recall 2/4, 1/2, 2/2. Answers 3, 2, 2, so F1 = 2·2/(4+3), 2·1/(2+2), 2·2/(2+2).
    assert Accuracy(LABELS).combine(ROWS) == 5 / 8
    assert BalancedAccuracy(LABELS).combine(ROWS) == pytest.approx((0.5 + 0.5 + 1) / 3, abs=1e-12)
    assert MacroF1(LABELS).combine(ROWS) == pytest.approx((4 / 7 + 1 / 2 + 1) / 3, abs=1e-12)


def test_labels_without_targets_do_not_count() -> None:
    rows = [[0, 0], [0, 2], [1, 1]]  # nothing is good, though one answer says so
    assert BalancedAccuracy(LABELS).combine(rows) == 0.75
    assert MacroF1(LABELS).combine(rows) == pytest.approx((2 / 3 + 1) / 2, abs=1e-12)


def test_confusion_and_per_label_by_hand() -> None:
    assert confusion(ROWS, LABELS).tolist() == [[2, 1, 0, 1], [1, 1, 0, 0], [0, 0, 2, 0]]
    scores = per_label(ROWS[:6], LABELS)
    assert {label: (score.value, score.n) for label, score in scores.items()} == {"bad": (0.5, 4), "fair": (0.5, 2)}
    assert scores["bad"].low == pytest.approx(0.1500, abs=1e-4)  # Wilson, 2 of 4
    assert scores["bad"].high == pytest.approx(0.8500, abs=1e-4)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 4)), min_size=1, max_size=60))
def test_label_metrics_equal_sklearn(pairs: list[tuple[int, int]]) -> None:
    labels = tuple("abcde")
    target, answer = (list(side) for side in zip(*pairs, strict=True))
    present = sorted(set(target))
    f1 = f1_score(target, answer, labels=present, average="macro", zero_division=0)
    recalls = recall_score(target, answer, labels=present, average=None, zero_division=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sklearn remarks on answers that are no target
        balanced = balanced_accuracy_score(target, answer)
        matrix = confusion_matrix(target, answer, labels=[*range(5), -1])
    rows = np.array(pairs, dtype=float)
    assert Accuracy(labels).combine(rows) == pytest.approx(accuracy_score(target, answer), abs=1e-12)
    assert BalancedAccuracy(labels).combine(rows) == pytest.approx(balanced, abs=1e-12)
    assert MacroF1(labels).combine(rows) == pytest.approx(f1, abs=1e-12)
    assert [score.value for score in per_label(rows, labels).values()] == pytest.approx(recalls, abs=1e-12)
    assert confusion(rows, labels).tolist() == matrix[:5].tolist()


@pytest.mark.parametrize(
    ("text", "index"),
    [("good", 2.0), (" good\n", 2.0), ("Good", -1.0), ("", -1.0), ("It is good, I think.", -1.0), ("\ud800", -1.0)],
)
def test_an_answer_is_a_label_or_none(text: str, index: float) -> None:
    for metric in (Accuracy(LABELS), BalancedAccuracy(LABELS), MacroF1(LABELS)):
        assert metric.row(Output(text), Example("?", "fair")) == (1.0, index)


def test_white_space_inside_a_label_is_one_space() -> None:
    assert Accuracy(("very  bad", "good")).row(Output("very\tbad"), Example("?", "very bad ")) == (0.0, 0.0)


def test_an_unknown_target_names_its_line_and_the_labels() -> None:
    with pytest.raises(DataError, match=r"reviews\.jsonl:17: .*'godo'.*'good'.*bad, fair, good"):
        Accuracy(LABELS).row(Output("good"), Example("?", "godo", where="reviews.jsonl:17"))


@pytest.mark.parametrize(
    ("text", "right"),
    [("New York", 1), ("  New\n York ", 1), ("NYC", 1), ("new york", 0), ("New York.", 0), ("NewYork", 0), ("", 0)],
)
def test_exact_match_forgives_white_space_alone(text: str, right: int) -> None:
    assert ExactMatch().row(Output(text), Example("?", "NYC", ("NYC", "New York"))) == (right,)


def test_exact_match_composes_characters() -> None:
    assert ExactMatch().row(Output("cafe\u0301"), Example("?", "caf\u00e9")) == (1.0,)
    assert ExactMatch().row(Output("cafe"), Example("?", "caf\u00e9")) == (0.0,)
    assert ExactMatch().combine([[1.0], [0.0], [0.0], [1.0]]) == 0.5


def test_rouge_by_hand() -> None:
    # One word shared of 2 and of 5. Stems: dog, run. Pairs: "very very", "very cold" of 2 and of 3. In order: the, cat.
    assert Rouge1().row(Output("very cold"), Example("", "It is so cold today")) == pytest.approx((2 / 7,))
    assert Rouge1().row(Output("running dogs"), Example("", "the dog runs")) == pytest.approx((4 / 5,))
    assert Rouge2().row(Output("very very cold"), Example("", "very very very cold")) == pytest.approx((4 / 5,))
    assert RougeL().row(Output("mat the on cat"), Example("", "the cat on the mat")) == pytest.approx((4 / 9,))
    assert Rouge1().combine([[0.25], [1.0]]) == 0.625


@pytest.mark.parametrize("metric", [Rouge1(), Rouge2(), RougeL()], ids=lambda metric: metric.name)
def test_rouge_equals_rouge_score_with_the_best_reference(metric: Rouge1 | Rouge2 | RougeL) -> None:
    library = RougeScorer([metric.name], use_stemmer=True)
    for output, example in zip(*texts(1), strict=True):
        expected = library.score_multi(example.answers, output.text)[metric.name].fmeasure
        assert metric.row(output, example) == pytest.approx((expected,), abs=1e-12)


@given(st.text("abé Dogs runnig,.\n19-_'", max_size=40), st.text("ab Dogs runnig,.\n19-_'", max_size=40))
def test_rouge_splits_words_as_rouge_score_does(text: str, reference: str) -> None:
    expected = RougeScorer(["rouge1"], use_stemmer=True).score(reference, text)["rouge1"].fmeasure
    assert Rouge1().row(Output(text), Example("", reference)) == pytest.approx((expected,), abs=1e-12)


def test_rouge_reads_other_scripts() -> None:
    assert Rouge1().row(Output("кошка спит дома"), Example("", "Кошка спит, AI!")) == pytest.approx((2 / 3,))
    assert Rouge2().row(Output("我喜欢猫"), Example("", "我喜欢狗")) == pytest.approx((2 / 3,))
    assert RougeL().row(Output("the cat"), Example("", "кошка")) == (0.0,)


def test_bleu_by_hand() -> None:
    # Matches 5 of 6 ("the" clipped), 3 of 5, 2 of 4, 1 of 3; equal lengths.
    row = Bleu().row(Output("the cat sat on the mat"), Example("", "the cat sat on a mat"))
    assert row == (6, 6, 5, 3, 2, 1, 6, 5, 4, 3)
    assert Bleu().combine([row]) == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25, abs=1e-9)
    # Longer than the reference: no reward for it.
    long = Bleu().row(Output("the cat sat on a mat outside"), Example("", "the cat sat on a mat"))
    assert Bleu().combine([long]) == pytest.approx(100 * (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25, abs=1e-9)
    # One side short: brevity exp(1 - 6/5); no 3-gram or 4-gram matches: 1/2 of 3 and 1/4 of 2.
    short = Bleu().row(Output("the cat on a hat"), Example("", "the cat sat on a mat"))
    assert Bleu().combine([short]) == pytest.approx(
        100 * math.exp(-0.2) * (4 / 5 * 2 / 4 * 0.5 / 3 * 0.25 / 2) ** 0.25, abs=1e-9
    )


@pytest.mark.parametrize("seed", range(4))
def test_bleu_and_chrf_equal_sacrebleu_also_resampled(seed: int) -> None:
    outputs, examples = texts(seed)
    generator = np.random.default_rng(seed)
    for metric, oracle in ((Bleu(), sacrebleu.corpus_bleu), (Chrf(), sacrebleu.corpus_chrf)):
        rows = np.array([metric.row(o, e) for o, e in zip(outputs, examples, strict=True)])
        for size in (40, 40, 3, 1):
            chosen = generator.integers(40, size=size)
            expected = oracle([outputs[i].text for i in chosen], streams([examples[i] for i in chosen])).score
            assert metric.combine(rows[chosen]) == pytest.approx(expected, abs=1e-9)


@given(st.text(max_size=30), st.lists(st.text(max_size=30), min_size=1, max_size=3))
def test_bleu_and_chrf_take_any_text(text: str, references: list[str]) -> None:
    example, listed = Example("", "", tuple(references)), [[reference] for reference in references]
    for metric, oracle in ((Bleu(), sacrebleu.corpus_bleu), (Chrf(), sacrebleu.corpus_chrf)):
        assert metric.combine([metric.row(Output(text), example)]) == pytest.approx(
            oracle([text], listed).score, abs=1e-9
        )


def test_chrf_by_hand() -> None:
    # "ab" of "abc": runs of one 2 of 2 and 2 of 3, of two 1 of 1 and 1 of 2: precision 1, recall 7/12.
    row = Chrf().row(Output("a b"), Example("", "abc"))
    assert Chrf().combine([row]) == pytest.approx(100 * 5 * (7 / 12) / (4 + 7 / 12), abs=1e-9)


def test_likelihood_by_hand() -> None:
    example = Example("", "any")
    outputs = [Output(logprob=-2 * math.log(2), tokens=1, bytes=4), Output(logprob=-4 * math.log(2), tokens=2, bytes=8)]
    assert Perplexity().combine([Perplexity().row(o, example) for o in outputs]) == pytest.approx(4, abs=1e-12)
    assert BitsPerByte().combine([BitsPerByte().row(o, example) for o in outputs]) == pytest.approx(0.5, abs=1e-12)


def test_perplexity_weighs_tokens_not_texts() -> None:
    assert Perplexity().combine([[-9 * math.log(2), 9], [-math.log(512), 1]]) == pytest.approx(2**1.8, abs=1e-12)
    assert math.isfinite(Perplexity().combine([[-1e9, 1]]))


def test_what_cannot_be_measured_is_said() -> None:
    with pytest.raises(DataError, match="perplexity has no value: nothing in these 2 examples"):
        Perplexity().combine([[0.0, 0.0], [0.0, 0.0]])
    with pytest.raises(ModelError, match=r"perplexity: the row of example 1 .*nan"):
        Perplexity().combine([[-1.0, 2.0], [math.nan, 2.0]])


def test_choose_builds_or_explains() -> None:
    chosen = choose(["macro_f1", "bleu", "macro_f1"], ("no", "yes"))
    assert chosen == (MacroF1(("no", "yes")), Bleu())
    with pytest.raises(RecipeError, match=r"No metric is called 'acuracy'\. Did you mean 'accuracy'"):
        choose(["acuracy"], ("no", "yes"))
    with pytest.raises(RecipeError, match=r"balanced_accuracy compares labels, and the task has none\..*rougeL"):
        choose(["balanced_accuracy"])
    with pytest.raises(RecipeError, match="names a label twice: yes, no, yes"):
        choose(["accuracy"], ("yes", "no", "yes "))


def test_defaults_and_descriptions_cover_the_registry() -> None:
    assert choose(default_metrics(LABELS), LABELS)[0] == BalancedAccuracy(LABELS)
    kinds = {"text": "text", "span": "text", "number": "number", "tags": "tags"}
    for answer, kind in kinds.items():
        assert {metric.kind for metric in choose(default_metrics(None, answer))} == {kind}
        assert default_metrics(LABELS, answer) == default_metrics(LABELS)
    lines = describe()
    assert list(lines) == list(METRICS)
    assert all(20 < len(line) < 121 and line.endswith((".", "2004, section 2.")) for line in lines.values())


def test_importing_metrics_waits_for_no_library() -> None:
    heavy = "{'torch', 'transformers', 'nltk', 'rouge_score', 'sacrebleu', 'scipy', 'profanity_check'}"
    code = f"import sys, acclimate.metrics as m; m.describe(); print({heavy} & set(sys.modules) or 'none')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"


# What every metric must satisfy.

EVERY = [pytest.param(choose([name], LABELS)[0], id=name) for name in METRICS]
# What answers that are all right come to, where it is not the end of the scale: METEOR takes something for one run of
# words as well (1/2 · (1/6)³), NIST has no end (12 words, of which she and he are there twice: log₂ 12, and 1 bit less
# for 4 of the 12; 1 bit for 4 of 10 pairs, those after she and he), and no text is certainly not toxic.
REACHED = {"meteor": 1 - 0.5 / 6**3, "nist": math.log2(12) - 4 / 12 + 4 / 10, "toxicity": None}


def rows_of(metric: Metric, outputs, examples) -> np.ndarray:
    ready = fitted(metric, examples)
    return np.array([ready.row(output, example) for output, example in zip(outputs, examples, strict=True)])


def sample(metric, n: int = 30, seed: int = 5, again: int = 0) -> np.ndarray:
    """Rows of n examples; another `again`, other answers to the same ones."""
    generator, other = np.random.default_rng(seed), np.random.default_rng([seed, 1 + again])
    outputs: list[Output]
    examples: list[Example] | list[Tagged]
    outputs, examples = texts(seed, n)
    if metric.kind == "text":
        outputs = [
            Output(str(other.choice(e.answers)) if i % 3 == again else spoken(other)) for i, e in enumerate(examples)
        ]
    if metric.kind == "number":
        examples = [Example("", str(target)) for target in generator.normal(size=n)]
        outputs = [Output(value=float(e.target) + other.normal()) for e in examples]
    if metric.kind == "tags":
        bio = lambda source: tuple(map(str, source.choice(["O", "B-x", "I-x", "B-y"], 5)))  # noqa: E731
        examples = [Tagged(("w",) * 5, bio(generator)) for _ in range(n)]
        outputs = [Output(tags=(*e.tags[:3], *bio(other)[3:])) for e in examples]
    if metric.kind == "labels":
        examples = [Example("", str(generator.choice(LABELS))) for _ in range(n)]
        outputs = [labelled(other) for _ in range(n)]
    if metric.kind == "likelihood":
        outputs = [Output(logprob=-float(other.gamma(9)), tokens=i + 1, bytes=4 * i + 3) for i in range(n)]
    return rows_of(metric, outputs, examples)


def spoken(generator: np.random.Generator) -> str:
    """Some words again and again, people and occupations, insults."""
    said = generator.choice(SAID.split(), 8)
    return " ".join([sentence(generator), *said, *[said[0]] * int(generator.integers(1, 5))])


def labelled(generator: np.random.Generator) -> Output:
    """The likeliest of the labels, or none of them; some are as likely as in another row."""
    scores = dict(zip(LABELS, np.round(generator.normal(size=3)).tolist(), strict=True))
    return Output("who knows" if generator.random() < 0.2 else max(scores, key=scores.__getitem__), scores)


@pytest.mark.parametrize("metric", EVERY)
def test_rows_have_one_width_and_are_finite(metric) -> None:
    rows = sample(metric)
    assert rows.ndim == 2
    assert np.isfinite(rows).all()
    assert METRICS[metric.name].name == metric.name
    strange = Output("\x00 \u2028", {"bad": -1e9}, logprob=-1.0, tokens=1, bytes=1, tags=("\u2028",))
    plain = {"number": Example("", "1e3"), "tags": Tagged(("w",), ("O",))}.get(metric.kind, Example("", LABELS[0]))
    assert np.isfinite(fitted(metric, [plain]).row(strange, plain)).all()


@pytest.mark.parametrize("metric", EVERY)
def test_combine_ignores_order_and_leaves_rows_alone(metric) -> None:
    rows = sample(metric)
    before = rows.copy()
    shuffled = np.random.default_rng(0).permutation(rows)
    assert metric.combine(rows) == pytest.approx(metric.combine(shuffled), abs=1e-12)
    assert metric.combine(rows) == metric.combine(rows.tolist())  # as read back from predictions.jsonl
    assert np.array_equal(rows, before)


@pytest.mark.parametrize("metric", EVERY)
def test_combine_of_data_twice_is_combine_of_data_once(metric) -> None:
    rows = sample(metric)
    assert metric.combine(np.concatenate([rows, rows])) == pytest.approx(metric.combine(rows), abs=1e-12)


@pytest.mark.parametrize("metric", EVERY)
def test_combine_lies_within_its_limits_and_moves_towards_better(metric) -> None:
    least, most = metric.limits
    worse, better = metric.combine(sample(metric)), metric.combine(perfect(metric))
    assert least <= worse <= most
    wanted = REACHED.get(metric.name, most if metric.higher_is_better else least)
    assert wanted is None or better == pytest.approx(wanted, abs=1e-9)
    assert (better > worse) == metric.higher_is_better


def perfect(metric) -> np.ndarray:
    """All right, with two answers that differ, for a correlation has none with what never changes."""
    if metric.kind == "tags":
        words = [Tagged(("a", "b"), ("B-x", "I-x")), Tagged(("a", "b"), ("O", "B-y"))]
        return np.array([metric.row(Output(tags=example.tags), example) for example in words])
    alike = ("she or he is a nurse", "he and she told my lawyer")  # both genders, beside each occupation
    answers = {"labels": ("good", "bad"), "number": ("2.5", "-1")}.get(metric.kind, alike)
    outputs = [
        Output(answer, {label: 0.0 if label == answer else -1e9 for label in LABELS}, value=v, tokens=5, bytes=23)
        for answer, v in zip(answers, (2.5, -1.0), strict=True)
    ]
    return rows_of(metric, outputs, [Example("", output.text) for output in outputs])


@pytest.mark.parametrize("metric", EVERY)
def test_every_metric_has_intervals_and_paired_tests(metric) -> None:
    base, result = sample(metric), sample(metric, again=1)
    low, high = interval(metric, base, draws=200)
    assert metric.limits[0] <= low <= metric.combine(base) <= high <= metric.limits[1]
    assert low < high
    found = paired(metric, base, result, draws=200)
    assert found.value == pytest.approx(metric.combine(result) - metric.combine(base), abs=1e-12)
    assert found.low <= found.value <= found.high
    assert found.low < found.high
    assert 0 < found.p <= 1
    assert paired(metric, base, base, draws=200).p == 1


@pytest.mark.parametrize("metric", EVERY)
def test_resamples_at_once_are_resamples_one_by_one(metric) -> None:
    rows = sample(metric)
    counts = np.random.default_rng(1).multinomial(30, np.full(30, 1 / 30), size=20).astype(float)
    slow = [metric.combine(np.repeat(rows, taken.astype(int), axis=0)) for taken in counts]
    assert metric.resampled(rows, counts) == pytest.approx(slow, abs=1e-9)


@pytest.mark.parametrize("metric", EVERY)
def test_no_rows_is_an_error_with_a_sentence(metric) -> None:
    with pytest.raises(DataError, match=f"{metric.name} needs at least one example"):
        metric.combine(np.empty((0, 2)))
    with pytest.raises(DataError, match=f"{metric.name} needs at least one example"):
        metric.combine([])
