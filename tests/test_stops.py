"""Stop strings: wherever tokens fall, whatever bytes they hold, the text is that of the whole decoded at once."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.errors import InputError
from acclimate.generation.stops import Read, Stops, advance, pieces, stopped

WORDS = ["", " the", " cat", "s", "at", "\n\n", "END", "EN", "D", " ", "é", "x", "<e>"]


def words(ids: Sequence[int]) -> str:
    """Joins words; drops the space at the very front, as a SentencePiece decoder does."""
    return "".join(WORDS[token] for token in ids).removeprefix(" ")


def utf8(ids: Sequence[int]) -> str:
    """A token a byte: a character may need four."""
    return bytes(ids).decode("utf-8", errors="replace")


def until(ids: Sequence[int], stops: Stops) -> list[int]:
    """The ids up to the one that completes a stop string: what decoding hands over."""
    read = Read()
    for place, token in enumerate(ids):
        read = advance(read, token, stops)
        if stopped(read, stops):
            return list(ids[: place + 1])
    return list(ids)


def test_a_stop_may_straddle_tokens_and_the_text_ends_before_it() -> None:
    stops = Stops(("catsEND",), words)
    ids = [1, 2, 3, 7, 8, 1]
    assert until(ids, stops) == ids[:5]
    assert stops.text(ids[:5]) == "the "
    assert list(pieces(ids[:5], stops)) == ["the", " "]


def test_a_stop_inside_a_token_cuts_the_token() -> None:
    stops = Stops(("N",), words)
    assert until([1, 6, 2], stops) == [1, 6]
    assert stops.text([1, 6]) == "theE"


def test_the_first_stop_to_be_complete_wins_however_the_text_is_cut() -> None:
    stops = Stops(("abc", "b"), utf8)
    assert until(list(b"abc"), stops) == list(b"ab")
    assert stops.text(list(b"abc")) == stops.text(list(b"ab")) == "a"
    assert Stops(("b", "ab"), utf8).text(list(b"xab")) == "x"


def test_a_character_is_waited_for() -> None:
    ids = list("a😀b".encode())
    stops = Stops(("b",), utf8)
    assert list(pieces(ids, stops)) == ["a", "😀"]
    assert stops.text(ids) == "a😀"
    assert until(ids, Stops(("😀",), utf8)) == ids[:5]


def test_a_stop_before_an_unfinished_character_is_found_at_once() -> None:
    ids = [*b"END", 0xF0]
    assert until(ids, Stops(("END",), utf8)) == ids[:3]
    fused = Stops(("END",), lambda tokens: utf8([byte for token in tokens for byte in (b"EN", b"D\xf0")[token]]))
    assert until([0, 1, 0], fused) == [0, 1]


def test_an_unfinished_character_at_the_end_is_shown_as_the_decoder_shows_it() -> None:
    stops = Stops(("END",), utf8)
    assert list(pieces(list("aé".encode())[:2], stops)) == ["a", "�"]
    assert list(pieces(list(b"aEN"), stops)) == ["a", "EN"]


def test_without_strings_nothing_stops() -> None:
    stops = Stops((), words)
    assert until([1, 2, 6], stops) == [1, 2, 6]
    assert list(pieces([1, 2, 6], stops)) == ["the", " cat", "END"]


def test_an_empty_string_is_refused() -> None:
    with pytest.raises(InputError, match="A stop string is empty"):
        Stops(("x", ""), words)


STRINGS = st.lists(st.sampled_from(["END", "s", "\n\n", "cats", " ", "t E", "é", "ENEND", "<e>"]), max_size=3)


@given(st.lists(st.integers(0, len(WORDS) - 1), max_size=20), STRINGS)
@settings(max_examples=300, deadline=None)
def test_words_streamed_equal_words_decoded_at_once(ids: list[int], strings: list[str]) -> None:
    check(ids, Stops(tuple(strings), words))


@given(
    st.one_of(st.binary(max_size=20), st.text(alphabet="aEND é😀\n漢", max_size=8).map(lambda text: text.encode())),
    st.lists(st.sampled_from(["END", "é", "😀", "a", "漢E"]), max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_bytes_streamed_equal_bytes_decoded_at_once(data: bytes, strings: list[str]) -> None:
    check(list(data), Stops(tuple(strings), utf8))


def check(ids: list[int], stops: Stops) -> None:
    """The oracle decodes every prefix from its beginning."""
    ended = until(ids, stops)
    hits = [n for n in range(1, len(ids) + 1) if any(stop in stops.decode(ids[:n]) for stop in stops.strings)]
    assert len(ended) == (hits[0] if hits else len(ids))
    shown = list(pieces(ended, stops))
    whole = stops.decode(ended)
    cut = [whole.split(stop)[0] for stop in stops.strings if stop in whole]
    assert "".join(shown) == stops.text(ended)
    assert "".join(shown) in (cut or [whole])
    assert all(shown)
