"""Filters by hand, draws by the chi-square, and everything against transformers' own processors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from acclimate.errors import InputError
from acclimate.generation.samplers import LIMA, Beam, Greedy, Sample, invert, nucleus, penalise, top, uniforms

INF = math.inf
NONE = torch.zeros(1, 4, dtype=torch.bool)


def log(*masses: float) -> torch.Tensor:
    return torch.tensor([masses], dtype=torch.float64).log()


def kept(logits: torch.Tensor) -> list[list[int]]:
    return [torch.nonzero(row > -INF).squeeze(1).tolist() for row in logits]


def test_penalty_divides_above_zero_and_multiplies_below() -> None:
    logits = torch.tensor([[3.0, -3.0, 3.0, -3.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalise(logits, seen, 1.5).tolist() == [[2.0, -4.5, 3.0, -3.0]]


def test_top_keeps_exactly_k_and_the_lowest_ids_of_a_tie() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0, 5.0], [4.0, 3.0, 2.0, 1.0]])
    assert kept(top(logits, 2)) == [[1, 2], [0, 1]]
    assert kept(top(logits, 1)) == [[1], [0]]
    assert top(logits, 0) is logits
    assert top(logits, 4) is logits
    assert top(logits, 9) is logits


@pytest.mark.parametrize(
    ("p", "left"),
    [
        (0.05, [2]),
        (0.39, [2]),
        (0.41, [0, 2]),
        (0.69, [0, 2]),
        (0.71, [0, 2, 3]),
        (0.91, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_nucleus_includes_the_token_that_crosses(p: float, left: list[int]) -> None:
    assert kept(nucleus(log(0.3, 0.1, 0.4, 0.2), p)) == [left]


def test_nucleus_counts_what_is_needed_of_a_tie_by_id() -> None:
    assert kept(nucleus(torch.zeros(1, 8), 0.3)) == [[0, 1, 2]]


def test_nucleus_finds_more_than_the_leading_tokens() -> None:
    flat = torch.zeros(2, 5000)
    flat[1, 4321] = 20.0
    assert [len(ids) for ids in kept(nucleus(flat, 0.49999))] == [2500, 1]
    assert kept(nucleus(flat, 0.49999))[1] == [4321]


def test_invert_walks_the_ids_in_order() -> None:
    logits = log(0.25, 0.0, 0.5, 0.25)
    draws = [0.0, 0.24, 0.26, 0.74, 0.76, 1 - 2**-53]
    ids = [int(invert(logits, torch.tensor([draw], dtype=torch.float64))) for draw in draws]
    assert ids == [0, 0, 2, 2, 3, 3]


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_token_that_was_ruled_out_is_never_drawn(draw: float, seed: int) -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(seed))
    shaped = top(logits, 3)
    assert int(invert(shaped, torch.tensor([draw], dtype=torch.float64))) in kept(shaped)[0]


def test_order_is_penalty_temperature_top_k_nucleus() -> None:
    """By hand. Seen token 0: 4 / 2 = 2. Over temperature 0.5: 4, 6, 2, 0. Top 3 drops the last; softmax of 4, 6, 2 is
    0.117, 0.867, 0.016, so a nucleus of 0.9 keeps two. Without the penalty token 0 would have led."""
    logits, seen = torch.tensor([[4.0, 3.0, 1.0, 0.0]]), torch.tensor([[True, False, False, False]])
    shaped = Sample(temperature=0.5, top_k=3, top_p=0.9, repetition_penalty=2.0).shaped(logits, seen)
    assert shaped.tolist() == [[4.0, 6.0, -INF, -INF]]


@given(
    st.integers(0, 10**6),
    st.floats(0.1, 3),
    st.integers(0, 40),
    st.floats(0.05, 1),
    st.floats(0.5, 2),
)
@settings(max_examples=80, deadline=None)
def test_shaped_equals_transformers_processors(seed: int, temperature: float, k: int, p: float, penalty: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    fed = torch.randint(0, 40, (3, 7), generator=generator)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(fed, logits.clone())
    expected = TemperatureLogitsWarper(temperature)(fed, expected)
    if k:
        expected = TopKLogitsWarper(k)(fed, expected)
    if p < 1:
        expected = TopPLogitsWarper(p)(fed, expected)
    seen = torch.zeros(3, 40, dtype=torch.bool).scatter(1, fed, True)
    torch.testing.assert_close(
        Sample(temperature, k, p, penalty).shaped(logits, seen), expected, rtol=1e-12, atol=1e-12
    )


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    assert Greedy()(torch.tensor([[1.0, 2.0, 2.0, 0.0]]), NONE, torch.tensor([0.9])).tolist() == [1]


def test_top_k_of_one_is_greedy_whatever_the_draw() -> None:
    logits = torch.randn(16, 30, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with ties
    seen, draws = torch.zeros(16, 30, dtype=torch.bool), torch.linspace(0, 0.999, 16, dtype=torch.float64)
    assert torch.equal(Sample(top_k=1)(logits, seen, draws), Greedy()(logits, seen, draws))


def test_draws_follow_the_distribution() -> None:
    """Pearson's chi-square at 0.1 % with 4 degrees of freedom is 18.47."""
    masses = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64)
    count = 20_000
    draws = torch.stack([uniforms(0, row, 1) for row in range(count)]).squeeze(1)
    rows = masses.log().expand(count, 5)
    ids = Sample()(rows, torch.zeros(count, 5, dtype=torch.bool), draws)
    expected = masses * count
    chi = float(((torch.bincount(ids, minlength=5) - expected) ** 2 / expected).sum())
    assert chi < 18.47
    assert chi > 0


def test_temperature_two_takes_square_roots() -> None:
    """Masses 0.64 and 0.36 become 0.8 and 0.6 over 1.4; a share of 4/7 of 20,000 has a standard error of 0.0035."""
    rows = log(0.64, 0.36).expand(20_000, 2)
    draws = uniforms(5, 0, 20_000)
    ids = Sample(temperature=2.0)(rows, torch.zeros(20_000, 2, dtype=torch.bool), draws)
    assert abs(float((ids == 0).double().mean()) - 4 / 7) < 4 * 0.0035


def test_uniforms_are_uniform_and_unrelated_across_rows_steps_and_seeds() -> None:
    """Chi-square at 0.1 % with 19 degrees of freedom is 43.8; four standard errors of a correlation are 4 / 64."""
    grid = np.stack([uniforms(0, row, 64).numpy() for row in range(64)])
    other = np.stack([uniforms(1, row, 64).numpy() for row in range(64)])
    counts = np.histogram(grid, bins=20, range=(0, 1))[0]
    assert ((counts - 4096 / 20) ** 2 / (4096 / 20)).sum() < 43.8
    for one, two in [(grid, other), (grid[:, 1:], grid[:, :-1]), (grid[1:], grid[:-1])]:
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.0625
    assert len(np.unique(grid)) == grid.size


def test_uniforms_do_not_depend_on_how_many_are_asked_for() -> None:
    assert torch.equal(uniforms(7, 3, 100)[:10], uniforms(7, 3, 10))
    assert not torch.equal(uniforms(7, 3, 10), uniforms(7, 4, 10))
    assert uniforms(-1, 0, 3).shape == (3,)


@pytest.mark.parametrize(
    ("constants", "said"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1; it must be 0"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be above 0"),
    ],
)
def test_constants_out_of_range_are_refused(constants: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Sample(**constants)  # type: ignore[arg-type]


def test_beams_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="width is 0; it must be at least 1"):
        Beam(width=0)
    with pytest.raises(InputError, match="length_penalty is inf"):
        Beam(length_penalty=INF)


def test_lima_is_as_published() -> None:
    assert (LIMA.temperature, LIMA.top_p, LIMA.repetition_penalty, LIMA.top_k) == (0.7, 0.9, 1.2, 0)
