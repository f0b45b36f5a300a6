"""What is asked of logits: the compiled kernels say what PyTorch says, and never draw what is ruled out."""

import math

import pytest
import torch

from acclimate.methods import LoRA
from acclimate.methods.delta import adapt
from acclimate.models import frozen_head, kernels, logits, logprobs
from acclimate.models.collate import collate
from acclimate.tokens.codec import Encoded
from tests import tiny
from tests.spies import called

pytestmark = pytest.mark.skipif(isinstance(kernels.library(), str), reason="no compiler")
SIZES = (logits.LEAST, 1031, 1500, 49152)


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Every call of the kernels, which go on to answer."""
    return called(monkeypatch, logits)


def some(rows: int, vocab: int) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab)) * 5


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_the_highest_and_the_logarithm_of_the_sum(rows, vocab, asked):
    x = some(rows, vocab)
    x[:, -3] = x[:, 5] = x.amax() + 1  # of equals the lowest id
    assert torch.equal(logits.highest(x), x.amax(-1))
    assert logits.likeliest(x).tolist() == [5] * rows
    torch.testing.assert_close(logits.logsumexp(x).double(), x.double().logsumexp(-1), rtol=0, atol=5e-6)
    assert asked == ["highest_of", "highest_of", "logarithms_of"]


@pytest.mark.parametrize("vocab", SIZES)
def test_draws_are_those_of_the_exact_sums(vocab, asked):
    x = some(64, vocab)
    exact = x.double().softmax(-1).cumsum(-1)
    for seed in range(20):
        draws = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        found = logits.drawn(x, draws)
        after = exact.gather(1, found[:, None]).squeeze(1)
        before = after - x.double().softmax(-1).gather(1, found[:, None]).squeeze(1)
        assert bool((after > draws - 1e-6).all())
        assert bool((before < draws + 1e-6).all())
    assert asked == ["drawn_from"] * 20


@pytest.mark.parametrize("draw", [0.0, 0.5, math.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("left", [[0], [7, 900], [1030], [3, 1029, 1030]])
def test_what_is_ruled_out_is_never_drawn(left, draw):
    x = torch.full((2, 1031), -math.inf)
    x[:, left] = torch.linspace(-80, 3, len(left))
    for found in logits.drawn(x, torch.tensor([draw, draw], dtype=torch.float64)).tolist():
        assert found in left


def test_what_is_no_number_shows():
    x = some(4, 2048)
    x[0, 7], x[1, 2047], x[2, 9] = math.nan, math.inf, -math.inf
    assert logits.highest(x).isfinite().tolist() == [False, False, True, True]
    assert logits.likeliest(x)[:2].tolist() == [7, 2047]
    assert logits.logsumexp(x).isfinite().tolist() == [False, False, True, True]
    assert torch.isneginf(logits.highest(torch.full((1, 2048), -math.inf))).all()


@pytest.mark.parametrize("how", ["float64", "short", "slice", "graph"])
def test_pytorch_answers_where_the_kernels_do_not(how, asked):
    x = some(3, 2 * logits.LEAST)
    x = {"float64": x.double(), "short": x[:, :9].contiguous(), "slice": x[:, ::2], "graph": x.requires_grad_()}[how]
    assert torch.equal(logits.likeliest(x), x.argmax(-1))
    assert torch.equal(logits.logsumexp(x), x.logsumexp(-1))
    assert logits.drawn(x, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).shape == (3,)
    assert asked == []


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize("vocab", SIZES)
def test_a_survey_says_what_log_softmax_says(vocab, dtype, temperature, shares):
    x, targets = some(17, vocab).to(dtype), torch.arange(17) * 3 % vocab
    x[3, 9] = -math.inf
    targets = torch.stack([targets, targets + vocab], dim=1).unbind(1)[0]  # as batches have them: not side by side
    assert logits.surveys(x, targets)
    chosen, entropy, every = logits.survey(x, targets, temperature, shares)
    exact = (x.double() / temperature).log_softmax(-1)
    torch.testing.assert_close(chosen.double(), exact.gather(1, targets[:, None])[:, 0], rtol=1e-6, atol=1e-5)
    summed = -(exact.exp() * exact.clamp(min=-1e6)).sum(-1)
    torch.testing.assert_close(entropy.double(), summed, rtol=1e-5, atol=1e-5)
    if shares:
        wanted = exact.exp().scatter_add(1, targets[:, None], -torch.ones(17, 1, dtype=torch.float64))
        torch.testing.assert_close(every.double(), wanted, rtol=0, atol=2e-6 if dtype == torch.float32 else 2.5e-3)
    assert (every is not None) == shares


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_survey_of_what_is_no_number_shows(value):
    x = some(3, 2048)
    x[1, 5] = value
    chosen, entropy, _ = logits.survey(x, torch.tensor([1, 2, 3]), 1.0, True)
    assert chosen.isfinite().tolist() == [True, False, True]
    assert entropy.isfinite().tolist() == [True, False, True]


def test_a_head_that_stands_still_asks_the_kernel_in_training_and_in_scoring(monkeypatch):
    seen: list[tuple[int, bool]] = []
    plain = logits.survey
    for module in (frozen_head, logprobs):
        monkeypatch.setattr(module, "survey", lambda x, *rest: (seen.append((len(x), rest[2])), plain(x, *rest))[1])
    model = adapt(tiny.llama(vocab=logits.LEAST), LoRA(2))
    rows = [Encoded(tuple(range(3, 12)), (False,) * 4 + (True,) * 5)]
    batch = collate(model, rows, 2)
    logprobs.logprobs(model, batch).sum().backward()
    with torch.no_grad():
        logprobs.logprobs(model, batch)
    assert seen == [(5, True), (5, False)]
