"""Compiled attention of a decoding step: what plain attention in float64 finds, and that it is what runs."""

import pytest
import torch
from torch import Tensor, nn

from acclimate.generation.decode import generate
from acclimate.generation.samplers import Greedy
from acclimate.models import attention, kernels, step
from tests import tiny

compiled = pytest.mark.skipif(isinstance(kernels.library(), str), reason=f"no kernels here: {kernels.library()}")
NEAR = {torch.float32: 2e-6, torch.bfloat16: 4e-3}


def drawn(rows: int, heads: int, groups: int, time: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Query, and keys and values that are views of a longer space, as a cache has them."""
    torch.manual_seed(0)
    query = torch.randn(rows, 1, heads, d).to(dtype).transpose(1, 2)
    key, value = (torch.randn(rows, groups, time + 9, d).to(dtype)[:, :, :time] for _ in range(2))
    return query, key, value


def plainly(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    share = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(share, dim=1) for x in (key, value))
    scores = query.double() @ key.transpose(2, 3) * scale
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@compiled
@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 16), (3, 9, 3, 130, 64), (2, 4, 4, 17, 80), (5, 8, 1, 33, 128)])
@pytest.mark.parametrize("gaps", [False, True])
def test_it_is_plain_attention(dtype, shape, gaps):
    query, key, value = drawn(*shape, dtype)
    mask = torch.rand(shape[0], 1, 1, shape[3]) < 0.5 if gaps else None
    if mask is not None:
        mask[..., -1] = True  # a token sees itself
        key[~mask[:, 0, 0, None].expand(key.shape[:3])] = torch.nan
        value[~mask[:, 0, 0, None].expand(key.shape[:3])] = torch.nan
    found = step.attend(query, key, value, mask, 0.3)
    known = [torch.nan_to_num(x) for x in (key, value)]
    wanted = plainly(query, *known, mask, 0.3)
    assert found.dtype == dtype
    assert (found.double() - wanted).norm() <= NEAR[dtype] * wanted.norm()


@compiled
@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("loud", [1e-3, 100.0, 1e5])
def test_scores_of_any_size(dtype, loud):
    query, key, value = drawn(2, 4, 2, 40, 64, dtype)
    query = (loud * query).to(dtype)
    wanted = plainly(query, key, value, None, 0.125)
    found = step.attend(query, key, value, None, 0.125)
    assert (found.double() - wanted).norm() <= 1e-2 * wanted.norm()


@compiled
def test_a_row_does_not_depend_on_the_others_or_on_threads():
    query, key, value = drawn(7, 4, 2, 200, 64, torch.float32)
    alone = [step.attend(q[None], k[None], v[None], None, 0.125) for q, k, v in zip(query, key, value, strict=True)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(torch.cat(alone), step.attend(query, key, value, None, 0.125))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """The rows of every call of the kernel, which goes on to answer."""
    seen: list[int] = []
    plain = step.attend
    monkeypatch.setattr(step, "attend", lambda query, *rest: (seen.append(len(query)), plain(query, *rest))[1])
    return seen


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_decoding_a_batch_runs_it(asked, dtype):
    model = tiny.llama()
    torch.manual_seed(0)
    model = type(model)(type(model.config)(**{**model.config.to_dict(), "head_dim": 16})).to(dtype)
    prompts = [[5, 6, 7], [8, 9]]
    generate(model, prompts, Greedy(), terminators=frozenset(), max_new=4, pad=0)
    assert asked == ([] if dtype == torch.float64 else [2] * 6)  # layers × steps behind the first


@compiled
@pytest.mark.parametrize("given", [{"softcap": 3.0}, {"position_bias": torch.zeros(1, 1, 1, 5)}])
def test_scores_that_are_changed_are_not_its_work(asked, monkeypatch, given):
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *_, **__: (torch.zeros(1), None))
    attention.by_document(nn.Module(), *drawn(1, 1, 1, 5, 16, torch.float32), None, **given)
    assert asked == []


@compiled
def test_what_needs_a_way_back_is_not_its_work():
    query, key, value = drawn(1, 1, 1, 5, 16, torch.float32)
    assert step.serves(query, key, value, None)
    assert not step.serves(query.requires_grad_(), key, value, None)
    assert not step.serves(query.detach(), key, value, torch.zeros(1, 1, 1, 5))  # what is added to scores
    assert not step.serves(query.detach().expand(1, 1, 2, 16), key, value, None)
