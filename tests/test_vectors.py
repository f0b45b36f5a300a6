"""Static word vectors: neighbours and analogies by hand, files by line, fastText's n-grams as gensim has them."""

import sys
from pathlib import Path

import numpy as np
import pytest

from acclimate.data import vectors as module
from acclimate.data.vectors import Vectors, fasttext, fnv, load_vectors, ngrams, read_vectors, word2vec, words
from acclimate.errors import DataError, SourceError

# sex along the first axis, rank along the second, and something else along the third
KIN = Vectors(
    ("man", "woman", "king", "queen", "stone"),
    np.array([[1, 0, 0], [-1, 0, 0], [1, 1, 0], [-1, 1, 0], [0, 0, 2]], np.float32),
)
TEXTS = ["the cat sat on the mat", "a cat and a dog sat", "the dog sat on a mat", "dogs and cats, on mats"] * 5


def test_words_are_small_and_contractions_apart() -> None:
    assert words("I CAN'T, it's Ann's 3.5") == ["i", "ca", "n't", ",", "it", "'s", "ann", "'s", "3", ".", "5"]
    assert words("Über naïve 日本") == ["über", "naïve", "日本"]
    assert words("") == []


def test_nearest_by_hand() -> None:
    """cos(king, queen) = (−1 + 1) / 2 = 0, cos(king, man) = 1 / √2."""
    found = dict(KIN.nearest("king", 4))
    assert found == pytest.approx({"man": 0.5**0.5, "queen": 0, "stone": 0, "woman": -(0.5**0.5)}, abs=1e-7)
    assert KIN.nearest("king", 1) == [("man", pytest.approx(0.5**0.5))]
    with pytest.raises(DataError, match=r"'quen'.*Did you mean 'queen'"):
        KIN.nearest("quen")


def test_analogy_by_hand() -> None:
    """woman − man + king = (−2, 0, 0) + (1, 1, 0) / √2 = (−1.293, 0.707, 0): nearest to queen; woman is left out."""
    (found,) = KIN.analogy("man", "woman", "king", 1)
    wanted = np.array([-2 + 0.5**0.5, 0.5**0.5])
    assert found[0] == "queen"
    assert found[1] == pytest.approx(wanted @ [-1, 1] / np.linalg.norm(wanted) / 2**0.5, abs=1e-6)


def test_a_text_is_the_mean_of_its_known_words() -> None:
    made = KIN.features(["King, stone and king", "nobody knows", ""])
    assert made.tolist() == [[pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3)], [0, 0, 0], [0, 0, 0]]
    assert made.dtype == np.float32


def test_vectors_come_back_from_a_folder(tmp_path: Path) -> None:
    for given in (KIN, Vectors(KIN.words, KIN.table, np.eye(7, 3, dtype=np.float32))):
        folder = tmp_path / str(given.grams is None)
        given.save(folder)
        again = load_vectors(folder)
        assert again.words == given.words
        assert np.array_equal(again.features(["king mason"]), given.features(["king mason"]))
    (folder / module.WORDS).unlink()
    with pytest.raises(SourceError, match="no whole word vectors"):
        load_vectors(folder)


@pytest.mark.parametrize("head", ["", "3 2\n"])
def test_a_text_file_is_read(head: str, tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text(head + "the 0.5 -1\nnew york 1e-1 2\n5 3 4\n", encoding="utf-8")
    found = read_vectors(path)
    assert found.words == ("the", "new york", "5")
    assert found.table.tolist() == [[0.5, -1], [pytest.approx(0.1), 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("the 0.5 -1\ncat 0.5\n", "txt:2: 'cat 0.5' does not end in 2 numbers"),
        ("the 0.5 -1\n0.5 7\n", "txt:2 has 1 finite numbers after a word; 2 are wanted"),
        ("the 0.5 -1\ncat 0.5 x\n", "txt:2: 'cat 0.5 x' does not end in 2 numbers"),
        ("the 0.5 nan\n", "txt:1 has 2 finite"),
        ("the\n", "txt:1"),
        ("", "no word vector"),
    ],
)
def test_a_wrong_line_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_vectors(path)


def test_ngrams_and_their_hash_by_hand() -> None:
    assert list(ngrams("ab")) == ["<ab", "<ab>", "ab>"]
    assert max(map(len, ngrams("something"))) == 6
    assert fnv("") == 2166136261
    assert fnv("ab") == ((((2166136261 ^ 97) * 16777619 % 2**32) ^ 98) * 16777619) % 2**32
    assert fnv("é") != fnv("Ã©")  # 0xc3 0xa9, with their sign


def test_an_unknown_word_is_the_mean_of_its_ngrams() -> None:
    grams = np.arange(22, dtype=np.float32).reshape(11, 2)
    made = Vectors(("x",), np.zeros((1, 2), np.float32), grams)
    places = [fnv(gram) % 11 for gram in ("<ab", "<ab>", "ab>")]
    assert made.vector("ab").tolist() == pytest.approx([2 * np.mean(places), 2 * np.mean(places) + 1])
    assert Vectors(("x",), np.zeros((1, 2), np.float32)).vector("ab") is None


def test_word2vec_is_learned_and_repeats_itself() -> None:
    pytest.importorskip("gensim")
    found, again = word2vec(TEXTS, size=8, epochs=3), word2vec(TEXTS, size=8, epochs=3)
    assert np.array_equal(found.table, again.table)
    assert not np.array_equal(found.table, word2vec(TEXTS, size=8, epochs=3, seed=1).table)
    assert {"the", "cat", ","} <= set(found.words)
    assert found.table.shape == (len(found.words), 8)
    assert found.vector("catlike") is None
    with pytest.raises(DataError, match="No word occurs twice in these 2 texts"):
        word2vec(["one two", "three"])


def test_fasttext_knows_every_word_as_gensim_does(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("gensim.models")
    monkeypatch.setattr(module, "BUCKETS", 500)
    found = fasttext(TEXTS, size=8, epochs=3, seed=4)
    oracle = models.FastText(
        [words(text) for text in TEXTS],
        **{"sg": 1, "negative": 5, "window": 5, "min_count": 2, "workers": 1, "vector_size": 8, "epochs": 3},
        **{"seed": 4, "min_n": 3, "max_n": 6, "bucket": 500},
    ).wv
    for word in ("cat", "mats", "catlike", "naïve", "日本語"):
        assert np.abs(found.vector(word) - oracle[word]).max() <= 1e-6
    assert found.vector("x") is not None  # <x>


def test_without_gensim_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gensim", None)
    with pytest.raises(SourceError, match=r"needs gensim: pip install 'acclimate\[vectors\]'"):
        word2vec(TEXTS)


@pytest.mark.network
def test_glove_knows_the_queen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path))
    found = module.glove()
    assert found.table.shape == (400_000, 50)
    assert found.analogy("man", "king", "woman", 1)[0][0] == "queen"
    assert np.array_equal(module.glove().table, found.table)
