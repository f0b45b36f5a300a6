"""Many sources become one training set: weighted, capped, tempered and seeded; whole clusters are held out.

Examples-proportional mixing with a cap: Raffel et al. 2020, arXiv:1910.10683, section 3.5.2, as FLAN uses it (Wei et al.
2022, arXiv:2109.01652, section 2.1).
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from acclimate.data.examples import Row
from acclimate.errors import DataError, unknown


@dataclass(frozen=True)
class Source:
    """Rows of one task.

    weight: its share is multiplied by it. cap: it counts as having at most so many rows; None: all it has.
    dropped: the places of the rows that could not be used.
    """

    name: str
    rows: tuple[Row, ...]
    cluster: str
    weight: float = 1.0
    cap: int | None = None
    dropped: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Rows that it counts as having."""
        return len(self.rows) if self.cap is None else min(len(self.rows), self.cap)


def shares(sources: Sequence[Source], temperature: float = 1.0) -> dict[str, float]:
    """Each source's part of the mixture: weight · min(rows, cap)^(1 / temperature), divided by their sum.

    temperature 1 is proportional to examples; the higher, the more equal the sources are.
    """
    _told_apart(sources)
    if not temperature > 0:
        raise DataError(f"The temperature of a mixture is {temperature:g}; it must be above 0.")
    parts = {source.name: source.weight * source.size ** (1 / temperature) for source in sources}
    whole = sum(parts[name] for name in sorted(parts))
    if not whole > 0:
        raise DataError("A mixture needs a source with rows, a weight and a cap above 0.")
    return {name: part / whole for name, part in parts.items()}


def counts(sources: Sequence[Source], total: int | None = None, temperature: float = 1.0) -> dict[str, int]:
    """How many rows each source gives: its share of `total` by the largest remainders, or of all capped rows without one."""
    total = sum(source.size for source in sources) if total is None else total
    exact = {name: total * share for name, share in shares(sources, temperature).items()}
    given = {name: int(rows + 1e-9) for name, rows in exact.items()}
    rest = sorted(exact, key=lambda name: (given[name] - exact[name], name))
    for name in rest[: total - sum(given.values())]:
        given[name] += 1
    return given


def mix(sources: Sequence[Source], seed: int, total: int | None = None, temperature: float = 1.0) -> tuple[Row, ...]:
    """Rows of all sources in a seeded order that does not depend on the sources' order.

    A source gives different rows for as long as it has some, then all of them again in another order.
    """
    given = counts(sources, total, temperature)
    picked = [place for source in sources for place in _drawn(source, given[source.name], seed)]
    return tuple(row for _, row in sorted(picked, key=lambda each: each[0]))


def _drawn(source: Source, count: int, seed: int) -> Iterator[tuple[bytes, Row]]:
    """(place in the mixture, row) of `count` rows."""
    passes, rest = divmod(count, len(source.rows)) if source.rows else (0, 0)
    for number in range(passes + 1):
        keys = [_key(f"{seed}|{number}|{source.name}|{i}") for i in range(len(source.rows))]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        for i in order[: len(keys) if number < passes else rest]:
            yield _key(f"place|{seed}|{number}|{source.name}|{i}"), source.rows[i]


def _key(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


def first(names: Sequence[str], most: int) -> set[str]:
    """`most` of the different names (0: all), those with the smallest hash: fewer are always among more.

    >>> first(["a", "b", "c", "a"], 2) < first(["c", "b", "a"], 3)
    True
    """
    ranked = sorted(set(names), key=lambda name: sha256(f"first {name}".encode()).digest())
    return set(ranked[:most] if most else ranked)


def held_out(sources: Sequence[Source], clusters: Collection[str]) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    """(sources to train on, sources of the clusters held out). Raises DataError for a cluster that no source has."""
    _told_apart(sources)
    there = {source.cluster for source in sources}
    for cluster in sorted(set(clusters) - there):
        raise DataError(unknown("cluster", cluster, there))
    kept = tuple(source for source in sources if source.cluster not in clusters)
    if not kept:
        raise DataError(f"With {', '.join(sorted(clusters))} held out, no source is left to train on.")
    return kept, tuple(source for source in sources if source.cluster in clusters)


def leave_one_out(sources: Sequence[Source]) -> Iterator[tuple[str, tuple[Source, ...], tuple[Source, ...]]]:
    """(cluster, the other sources, its own) for every cluster. Mishra et al. 2022, arXiv:2104.08773, section 5.1."""
    for cluster in sorted({source.cluster for source in sources}):
        yield cluster, *held_out(sources, [cluster])


def _told_apart(sources: Sequence[Source]) -> None:
    names = [source.name for source in sources]
    for name in sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"Two sources are called {name!r}; give one another name.")
