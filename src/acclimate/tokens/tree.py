"""Rows of ids as a tree: what several begin with stands there once, and each row is the way from a root to its leaf."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple


class Piece(NamedTuple):
    """`length` neighbouring ids of a stream from `start` on, which follow those of the piece `parent` (−1: none)."""

    start: int
    length: int
    parent: int


class Tree(NamedTuple):
    """ids: of all pieces, one after the other. leaves: the piece that each row ends in."""

    ids: tuple[int, ...]
    pieces: tuple[Piece, ...]
    leaves: tuple[int, ...]


def tree(rows: Sequence[tuple[int, ...]], least: int = 0) -> Tree:
    """Rows that begin with the same ids, `least` of them or more, share a piece; 0: every row stands there whole.

    A parent stands before its children, and every row has one id at least of its own, the last.

    >>> tree([(5, 6, 7), (8, 9), (5, 6, 3, 4)], least=2)
    Tree(ids=(5, 6, 3, 4, 7, 8, 9), pieces=(Piece(start=0, length=2, parent=-1), Piece(start=2, length=2, parent=0), \
Piece(start=4, length=1, parent=0), Piece(start=5, length=2, parent=-1)), leaves=(2, 3, 1))
    """
    ids: list[int] = []
    pieces: list[Piece] = []
    leaves = [0] * len(rows)

    def grow(length: int, row: int, begin: int, parent: int) -> int:
        pieces.append(Piece(len(ids), length, parent))
        ids.extend(rows[row][begin : begin + length])
        return len(pieces) - 1

    if not least:
        leaves = [grow(len(row), number, 0, -1) for number, row in enumerate(rows)]
        return Tree(tuple(ids), tuple(pieces), tuple(leaves))
    waiting = [(sorted(range(len(rows)), key=rows.__getitem__), 0, -1)]
    while waiting:  # rows that have their first `begin` ids in `parent` and those before it
        members, begin, parent = waiting.pop()
        alike = beginning(rows[members[0]], rows[members[-1]])  # sorted: what these share, all between them do
        if len(members) == 1:
            leaves[members[0]] = grow(len(rows[members[0]]) - begin, members[0], begin, parent)
        elif alike - begin >= least:
            waiting.append((members, alike, grow(alike - begin, members[0], begin, parent)))
        else:
            waiting += [(part, begin, parent) for part in reversed(list(_apart(rows, members, alike)))]
    return Tree(tuple(ids), tuple(pieces), tuple(leaves))


def _apart(rows: Sequence[tuple[int, ...]], members: Sequence[int], alike: int) -> Iterator[list[int]]:
    """Members by the id behind what is alike in them; a row that is at its last id there is by itself."""

    def branch(row: int) -> tuple[int, ...]:
        last = len(rows[row]) - 1 <= alike
        return (rows[row][alike], row) if last else (rows[row][alike],)

    for _, part in groupby(sorted(members, key=lambda row: (branch(row), rows[row])), key=branch):
        yield list(part)


def beginning(first: Sequence[int], last: Sequence[int]) -> int:
    """How many ids two rows begin with, one less at most than either has.

    >>> beginning((5, 6, 7), (5, 6, 8, 9)), beginning((5, 6), (5, 6))
    (2, 1)
    """
    most = min(len(first), len(last)) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)
