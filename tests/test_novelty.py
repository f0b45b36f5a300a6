"""Which texts are new: the decisions of rouge_score on every pair, in fewer comparisons."""

import json
import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from acclimate.data import novelty
from acclimate.data.novelty import too_like
from tests.runs import verb

WORDS = ["the", "a", "write", "list", "of", "three", "poem", "about", "fish", "cats,", "what", "is", "Short", "long"]


def slowly(texts, threshold, known=()):
    """Every text against all that were kept, by rouge_score."""
    scorer, kept, found = RougeScorer(["rougeL"]), list(range(len(known))), []
    pool = [*known, *texts]
    for place, text in enumerate(texts, start=len(known)):
        near = [k for k in kept if scorer.score(pool[k], text)["rougeL"].fmeasure >= threshold]
        found.append(near[0] if near else None)
        kept += [] if near else [place]
    return found


def said(seed, count):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, 9))) for _ in range(count)]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.75, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_decisions_are_those_of_all_pairs(threshold, seed, monkeypatch):
    monkeypatch.setattr(novelty, "ROWS", 7)
    texts, known = said(seed, 150), said(seed + 100, 20)
    found = too_like(texts, threshold, known)
    assert found == slowly(texts, threshold, known)
    assert None in found
    assert len(set(found)) > 2


def test_by_hand():
    # "a b c d e f g" and "a b c x y": 3 words in common of 12, F = 6 / 12
    assert too_like(["a b c d e f g", "a b c x y"], 0.5) == [None, 0]
    assert too_like(["a b c d e f g", "a b c x y"], 0.51) == [None, None]
    assert too_like(["a b c", "c b a"], 0.5) == [None, None]  # the same words, of which one is in order
    assert too_like(["the the the", "the cat"], 0.5) == [None, None]  # 1 of 5, and not 3
    assert too_like(["", "!?", ""], 0.1) == [None, None, None]  # no words are like nothing
    assert too_like(["one", "two"], 0.7, ["one"]) == [0, None]


def test_few_pairs_are_compared(monkeypatch):
    compared = []
    plainly = novelty._rouge
    monkeypatch.setattr(novelty, "_rouge", lambda *pair: compared.append(pair) or plainly(*pair))
    texts = [f"x{a} the y{b} of z{c}" for a in range(8) for b in range(8) for c in range(8)]
    assert too_like(texts, 0.9).count(None) == len(texts)
    assert not compared  # they share 4 of 5 words at most: F ≤ 0.8


def test_the_verb(tmp_path, capsys):
    asked = ["Write a poem.", "List three fish.", "Write a short poem.", "Name a cat.", "Name a big cat now please"]
    rows = [{"prompt": text, "completion": f"no {n}", "more": [n]} for n, text in enumerate(asked)]
    file, known, out = (tmp_path / name for name in ("rows.jsonl", "known.jsonl", "new/out.jsonl"))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    known.write_text(json.dumps({"prompt": "list three fish", "completion": "cod"}) + "\n")
    verb("curate", file, "--out", out, "--known", known)
    assert [json.loads(line) for line in out.read_text().splitlines()] == [rows[0], rows[3], rows[4]]
    assert "3 of 5 rows are kept" in (said := capsys.readouterr().out)
    assert "(1 with one of --known)" in said
    verb("curate", file, "--out", tmp_path / "all.jsonl", "--novel", "1.0", "--json")
    assert json.loads(capsys.readouterr().out) == {"rows": 5, "kept": 5, "like_known": 0}
    for wrong in (("--out", out), ("--out", tmp_path / "a.csv"), ("--out", tmp_path / "b.jsonl", "--novel", "1.5")):
        verb("curate", file, *wrong, expect=2)
    verb("curate", tmp_path / "none.jsonl", "--out", tmp_path / "b.jsonl", expect=2)
    assert not (tmp_path / "b.jsonl").exists()
