"""TER, METEOR, NIST, CIDEr and distinct runs: sacreBLEU, nltk and pycocoevalcap as oracles, slow loops, numbers by hand."""

import math
from collections import Counter

import numpy as np
import pytest
import sacrebleu
from nltk.translate.nist_score import corpus_nist
from pycocoevalcap.cider.cider_scorer import CiderScorer

from acclimate.data.examples import Example, Output
from acclimate.errors import DataError
from acclimate.evaluation.evaluate import rows_of
from acclimate.metrics.diversity import Distinct1, Distinct2, Distinct3, distinct
from acclimate.metrics.metric import fitted
from acclimate.metrics.overlap import Meteor, Ter, meteor, mteval_words, words
from acclimate.metrics.weighted import Cider, Nist, information

WORDS = ["the", "cat", "cats", "sat", "on", "a", "mat", "and", "ran", "running", "away", "it", "is", "cold"]
Texts = tuple[list[Output], list[Example]]


def texts(seed: int, n: int = 12, references: int = 3, least: int = 1) -> Texts:
    generator = np.random.default_rng(seed)

    def sentence() -> str:
        return " ".join(generator.choice(WORDS, generator.integers(least, 12)))

    return [Output(sentence()) for _ in range(n)], [
        Example("", "", tuple(sentence() for _ in range(references))) for _ in range(n)
    ]


def rows(metric, outputs: list[Output], examples: list[Example]) -> np.ndarray:
    return np.array(rows_of([metric], {"text": outputs}, examples).rows[metric.name])


# TER and METEOR.


@pytest.mark.parametrize("seed", range(3))
def test_ter_equals_sacrebleu_also_resampled(seed: int) -> None:
    outputs, examples = texts(seed)
    found, generator = rows(Ter(), outputs, examples), np.random.default_rng(seed)
    for size in (12, 5, 1):
        chosen = generator.integers(12, size=size)
        streams = [list(stream) for stream in zip(*(examples[i].answers for i in chosen), strict=True)]
        expected = sacrebleu.corpus_ter([outputs[i].text for i in chosen], streams).score
        assert Ter().combine(found[chosen]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("text", "reference", "score"), [("", "", 0), ("a", "", 100), ("", "a b", 100), ("A", "a", 0)])
def test_ter_of_empty_texts(text: str, reference: str, score: float) -> None:
    assert Ter().combine([Ter().row(Output(text), Example("", reference))]) == score


def test_meteor_by_hand() -> None:
    # 3 of 4 words align, "cats" with "cat" by its stem; P 3/4, R 3/3, F = 10 P R / (R + 9 P); one run, or two.
    f = 10 * 0.75 / (1 + 9 * 0.75)
    assert meteor(["the", "cats", "sat", "down"], [["the", "cat", "sat"]]) == pytest.approx(
        f * (1 - 0.5 / 27), abs=1e-12
    )
    f = 10 * 0.6 / (1 + 9 * 0.6)
    assert meteor(["sat", "x", "the", "cat", "x"], [["the", "cat", "sat"]]) == pytest.approx(
        f * (1 - 4 / 27), abs=1e-12
    )
    assert meteor(["a", "dog"], [["one", "puppy"]]) == 0  # no synonyms


def test_meteor_of_several_references_is_the_best_and_of_nothing_0() -> None:
    outputs, examples = texts(0)
    single = [[Meteor().row(o, Example("", answer))[0] for answer in e.answers] for o, e in zip(outputs, examples)]
    assert rows(Meteor(), outputs, examples)[:, 0].tolist() == [max(each) for each in single]
    assert Meteor().row(Output(""), Example("", "a")) == Meteor().row(Output("a"), Example("", "")) == (0.0,)
    assert Meteor().row(Output("我喜欢猫"), Example("", "我喜欢狗!"))[0] > 0.7


# NIST.


@pytest.mark.parametrize("seed", range(4))
def test_nist_of_one_reference_equals_nltk(seed: int) -> None:
    outputs, examples = texts(seed, references=1, least=5)
    expected = corpus_nist([[mteval_words(e.answers[0])] for e in examples], [mteval_words(o.text) for o in outputs])
    assert Nist().combine(rows(Nist(), outputs, examples)) == pytest.approx(expected, abs=1e-9)


def slow_nist(outputs: list[Output], examples: list[Example], every: list[Example]) -> float:
    """Doddington 2002, eq. 2 and 3, run by run; the weights come from `every`."""
    references = [reference.split() for example in every for reference in example.answers]

    def stands(run: list[str]) -> int:
        return sum(r[i : i + len(run)] == run for r in references for i in range(len(r) - len(run) + 1))

    total = 0.0
    for n in range(1, 6):
        gained, written = 0.0, 0
        for output, example in zip(outputs, examples, strict=True):
            text, left = output.text.split(), Counter()
            for run in {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}:
                theirs = [r.split() for r in example.answers]
                left[run] = max(sum(tuple(r[i : i + n]) == run for i in range(len(r) - n + 1)) for r in theirs)
            for i in range(len(text) - n + 1):
                run = text[i : i + n]
                written += 1
                if left[tuple(run)]:
                    left[tuple(run)] -= 1
                    before = stands(run[:-1]) if n > 1 else sum(map(len, references))
                    gained += math.log2(before / stands(run))
        total += gained / max(written, 1)
    length = sum(len(output.text.split()) for output in outputs)
    mean = sum(sum(len(r.split()) for r in example.answers) / len(example.answers) for example in examples)
    beta = math.log(0.5) / math.log(1.5) ** 2
    return total * math.exp(beta * math.log(min(length / mean, 1)) ** 2)


@pytest.mark.parametrize("seed", range(2))
def test_nist_of_several_references_is_the_papers_and_its_weights_stay(seed: int) -> None:
    outputs, examples = texts(seed, least=2)
    found = rows(Nist(), outputs, examples)
    assert Nist().combine(found) == pytest.approx(slow_nist(outputs, examples, examples), abs=1e-9)
    chosen = [0, 0, 3, 7, 8, 11]
    some = [outputs[i] for i in chosen], [examples[i] for i in chosen]
    assert Nist().combine(found[chosen]) == pytest.approx(slow_nist(*some, examples), abs=1e-9)
    assert Nist().combine(found[chosen]) != pytest.approx(Nist().combine(rows(Nist(), *some)), abs=1e-3)


def test_nist_penalty_by_hand() -> None:
    # Two of three words: half. Four different words, each 2 bits; pairs are sure: 0 bits.
    example = Example("", "a b c d")
    row = Nist().fitted([example]).row(Output("a b x"), example)
    assert row == (3, 4, 4, 0, 0, 0, 0, 3, 2, 1, 0, 0)
    assert Nist().combine([[2, 3, *row[2:]]]) == pytest.approx(0.5 * 4 / 3, abs=1e-12)
    assert information([["a", "b"], ["a", "c"]])[("a", "b")] == 1
    assert Nist().combine([Nist().fitted([example]).row(Output(""), example)]) == 0


# CIDEr.


@pytest.mark.parametrize(("seed", "references"), [(0, 1), (1, 3), (2, 5)])
def test_cider_equals_pycocoevalcap(seed: int, references: int) -> None:
    outputs, examples = texts(seed, references=references)
    oracle = CiderScorer()
    for output, example in zip(outputs, examples, strict=True):
        oracle += (output.text, list(example.answers))
    mean, each = oracle.compute_score()
    found = rows(Cider(), outputs, examples)
    assert found[:, 0] == pytest.approx(each, abs=1e-9)
    assert Cider().combine(found) == pytest.approx(mean, abs=1e-9)


def test_cider_by_hand() -> None:
    # Four examples. "a" is in two of them: ln 2; "b" in one: ln 4. Three words for two: exp(-1/72).
    examples = [Example("", text) for text in ("a b", "a c", "d e", "f g")]
    metric = Cider().fitted(examples)
    word = (math.log(2) ** 2 + math.log(4) ** 2) / math.hypot(math.log(2), math.log(4), math.log(4))
    word /= math.hypot(math.log(2), math.log(4))  # "x" is in none: ln 4 as well
    pair = 1 / math.sqrt(2)  # "a b" of "a b", "b x"
    expected = 10 * (word + pair) / 4 * math.exp(-1 / 72)
    assert metric.row(Output("A b, x!"), examples[0]) == pytest.approx((expected,), abs=1e-12)
    assert metric.row(Output(""), examples[0]) == (0.0,)
    # A word twice counts once where the reference has it once.
    assert metric.row(Output("b b"), examples[0])[0] < metric.row(Output("b"), examples[0])[0]


def test_weights_come_from_all_examples_and_are_needed() -> None:
    outputs, examples = texts(3)
    for metric in (Nist(), Cider()):
        with pytest.raises(DataError, match=f"{metric.name} weighs words by all references"):
            metric.row(outputs[0], examples[0])
        ready = fitted(metric, examples)
        assert [ready.row(o, e) for o, e in zip(outputs, examples)] == [*map(tuple, rows(metric, outputs, examples))]
        assert metric.weights is None
        assert fitted(ready, examples[:2]).weights != ready.weights
    assert fitted(Ter(), examples) == Ter()


# Distinct runs.


def test_distinct_by_hand() -> None:
    text = Output("So so so, so good")  # so, good; so so, so good; so so so, so so good
    assert [metric.row(text, Example(""))[0] for metric in (Distinct1(), Distinct2(), Distinct3())] == [0.4, 0.5, 2 / 3]
    assert Distinct2().row(Output("one"), Example("")) == (0.0,)
    assert distinct(["so so", "so so"], 2) == 0.5  # over all texts, where each text alone has 1
    assert distinct([], 1) == 0
    assert words("Don't — STOP2, 我们") == ["don", "t", "stop2", "我", "们"]
