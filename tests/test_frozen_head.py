"""A head that stands still: the gradient formed in the forward pass against the one that autograd finds."""

import pytest
import torch
from torch import nn

from acclimate.methods import Full, Head, LoRA
from acclimate.methods.delta import adapt
from acclimate.models import logprobs as plain
from acclimate.models.frozen_head import formed, stands_still
from acclimate.models.outline import head_of
from acclimate.models.policy import score
from acclimate.tokens.batch import pack
from acclimate.tokens.codec import Encoded
from tests import tiny


def test_by_hand():
    """Logits (0, ln 3) are ¼ and ¾: log ¾, −log p = 0.2877; its slope is W₁ − (¼ W₀ + ¾ W₁) = ¼ (W₁ − W₀)."""
    head = nn.Linear(1, 2, bias=False).double().requires_grad_(False)
    head.weight.copy_(torch.tensor([[0.0], [1.0]]))
    hidden = torch.tensor([[3.0]], dtype=torch.float64).log().requires_grad_()
    logprob, entropy = formed(head, hidden, torch.tensor([1]))
    logprob.sum().backward()
    assert logprob.item() == pytest.approx(-0.2876820724517809)
    assert entropy.item() == pytest.approx(0.25 * 1.3862943611198906 + 0.75 * 0.2876820724517809)
    assert not entropy.requires_grad
    assert hidden.grad.item() == pytest.approx(0.25)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_as_autograd_finds_it(bias, temperature):
    torch.manual_seed(0)
    head = nn.Linear(8, 31, bias=bias).double().requires_grad_(False)
    targets, weights = torch.randint(31, (20,)), torch.randn(20, dtype=torch.float64)
    hidden = torch.randn(20, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: formed(head, h, targets, temperature)[0], hidden)
    logs = (head(hidden) / temperature).log_softmax(-1)
    wanted = logs.gather(1, targets[:, None]).squeeze(1)
    (expected,) = torch.autograd.grad((wanted * weights).sum(), hidden)
    logprob, entropy = formed(head, hidden, targets, temperature)
    (found,) = torch.autograd.grad((logprob * weights).sum(), hidden)
    torch.testing.assert_close(logprob, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(entropy, -(logs.exp() * logs).sum(-1), rtol=0, atol=1e-12)


def rows():
    draw = torch.Generator().manual_seed(0)
    lengths = (9, 14, 5)
    ids = [tuple(torch.randint(3, tiny.VOCAB, (n,), generator=draw).tolist()) for n in lengths]
    return [Encoded(row, (False,) * 3 + (True,) * (len(row) - 3)) for row in ids]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_update_is_the_same_whichever_way(name, monkeypatch):
    gradients = []
    for still in (stands_still, lambda head: False):
        monkeypatch.setattr(plain, "stands_still", still)
        model = adapt(tiny.build(name), LoRA(2), seed=0)
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number), std=0.1)
        assert stands_still(head_of(model))
        plain.logprobs(model, pack(rows())).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert gradients[0]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_where_the_head_moves_it_is_not_used():
    assert not stands_still(head_of(adapt(tiny.build("llama"), Full())))
    assert not stands_still(head_of(adapt(tiny.build("llama"), Head())))


def test_an_entropy_that_is_descended_has_a_gradient():
    model = adapt(tiny.build("llama"), LoRA(2), seed=0)
    assert score(model, pack(rows()), spread=True).entropy.requires_grad
    assert not score(model, pack(rows())).entropy.requires_grad
    torch.testing.assert_close(
        score(model, pack(rows()), spread=True).entropy, score(model, pack(rows())).entropy, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_near(dtype):
    torch.manual_seed(0)
    head, hidden, targets = nn.Linear(64, 512, bias=False), torch.randn(40, 64), torch.randint(512, (40,))
    exact = hidden.double().requires_grad_()
    wide = nn.Linear(64, 512, bias=False).double().requires_grad_(False)
    wide.weight.copy_(head.weight)
    formed(wide, exact, targets)[0].sum().backward()
    low = hidden.to(dtype).requires_grad_()
    logprob, _ = formed(head.to(dtype).requires_grad_(False), low, targets)
    logprob.sum().backward()
    assert logprob.dtype == torch.float32
    assert low.grad.dtype == dtype
    bound = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert (low.grad.double() - exact.grad).norm() <= bound * exact.grad.norm()
