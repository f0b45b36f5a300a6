"""Hidden states that are computed once: the same loss and gradients, and no trunk after the first pass over the data."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import nn

from acclimate.methods import Full, Head, LoRA
from acclimate.methods.delta import adapt, trainable
from acclimate.models.collate import collate
from acclimate.models.heads import TaskModel
from acclimate.models.outline import outline, trunk_of
from acclimate.objectives import LM
from acclimate.objectives.choose import Pick
from acclimate.objectives.classify import Classify
from acclimate.tokens.batch import Batch
from acclimate.tokens.codec import Encoded
from acclimate.tokens.reading import Reading, Shape, sheet
from acclimate.tokens.schedule import passes, plan
from acclimate.training.fit import Objective, fit
from acclimate.training.frozen import Part, cached_groups, reuse
from tests import tiny


def some_rows(count: int = 9) -> list[Encoded]:
    draw = torch.Generator().manual_seed(5)
    lengths = torch.randint(4, 12, (count,), generator=draw).tolist()
    ids = [tuple(torch.randint(3, tiny.VOCAB, (n,), generator=draw).tolist()) for n in lengths]
    return [Encoded(i, tuple(t >= len(i) - 2 for t in range(len(i)))) for i in ids]


ROWS = some_rows()
SIZES = [row.size for row in ROWS]


def planned(steps: int) -> list[list[Part]]:
    """Steps of two passes that end in the middle of an epoch, so that a batch meets old rows and new ones."""
    return [passes(rows, SIZES, 14) for rows in plan(SIZES, 24, steps, seed=1)]


def collated(model: nn.Module, rows: Sequence[Encoded] = ROWS):  # type: ignore[no-untyped-def]
    return lambda part: collate(model, [rows[i] for i in part], 2, part)


def plain(model: nn.Module, cut: Sequence[Sequence[Part]]) -> Iterator[list[Batch]]:
    for parts in cut:
        yield [collated(model)(part) for part in parts]


def headed(build: str = "llama", dtype: torch.dtype = torch.float64) -> nn.Module:
    return adapt(tiny.build(build, dtype), Head()).train()


def counted(model: nn.Module) -> list[int]:
    calls: list[int] = []
    outline(model)  # tries the model, once
    trunk_of(model).register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("build", ["llama", "gpt2"])
def test_a_cached_run_is_the_plain_run(build: str) -> None:
    cut = planned(12)
    assert any(len(set(part)) < len(part) or len(parts) > 1 for parts in cut for part in parts)
    done = []
    for feed in (plain, lambda model, cut: cached_groups(model, cut, collated(model))):
        model = headed(build)
        optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.05)
        steps = list(fit(model, feed(model, cut), LM(), optimizer, rate=lambda _: 0.05))
        done.append(([(s.loss, s.norm) for s in steps], [p.detach().clone() for p in trainable(model).values()]))
    assert torch.allclose(torch.tensor(done[0][0]).double(), torch.tensor(done[1][0]).double(), rtol=1e-9, atol=0)
    for one, other in zip(done[0][1], done[1][1], strict=True):
        assert (one - other).abs().max() <= 1e-9 * one.abs().max()


def test_gradients_of_one_batch_are_equal() -> None:
    cut = planned(12)
    model = headed()
    for once, again in zip(plain(model, cut), cached_groups(model, cut, collated(model)), strict=True):
        for batch, known in zip(once, again, strict=True):
            assert known.hidden is not None
            assert not known.hidden.requires_grad
            assert torch.equal(batch.ids, known.ids)
            gradients = []
            for given in (batch, known):
                model.zero_grad()
                LM()(model, given).total.backward()
                gradients.append([p.grad.clone() for p in trainable(model).values()])
            for one, other in zip(*gradients, strict=True):
                assert (one - other).abs().max() <= 1e-9 * one.abs().max()


def test_the_trunk_runs_once_for_every_row() -> None:
    model, cut = headed(), planned(30)
    calls = counted(model)
    fed: set[int] = set()
    for parts, batches in zip(cut, cached_groups(model, cut, collated(model)), strict=True):
        new = [part for part in parts if not fed.issuperset(part)]
        fed |= {row for part in parts for row in part}
        for batch in batches:
            LM()(model, batch).total.backward()
        assert len(calls) <= len(new)
        assert len(new) or not calls
        calls.clear()
    assert fed == set(range(len(ROWS)))


def test_after_the_first_epoch_the_trunk_is_never_asked() -> None:
    model = headed()
    epoch = [[tuple(rows)] for rows in ((0, 1, 2), (3, 4), (5, 6, 7, 8))]
    mixed = [[(8, 0, 3)], [(1,), (7, 2)], [(6, 5, 4, 4)]]
    calls = counted(model)
    feed = cached_groups(model, epoch + mixed * 20, collated(model))
    for _ in epoch:
        LM()(model, next(feed)[0]).total.backward()
    assert len(calls) == 3
    for batches in feed:
        for batch in batches:
            LM()(model, batch).total.backward()
    assert len(calls) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_has_the_same_bits(dtype: torch.dtype) -> None:
    cut = planned(14)
    model = headed(dtype=dtype)
    whole = list(cached_groups(model, cut, collated(model)))
    for start in (1, 5, 9):
        for one, other in zip(whole[start:], cached_groups(model, cut, collated(model), start), strict=True):
            for a, b in zip(one, other, strict=True):
                assert a.hidden is not None
                assert b.hidden is not None
                assert a.hidden.dtype == dtype
                assert torch.equal(a.hidden, b.hidden)


def test_only_a_trunk_that_stands_still_is_reused() -> None:
    cut = planned(12)
    assert reuse(headed(), ROWS, cut) == (True, "")
    assert reuse(headed("gpt2"), ROWS, cut).possible
    tied = tiny.llama(tied=True).double()
    assert reuse(adapt(tied, Head()), ROWS, cut).possible
    for method in (Full(), LoRA(rank=2)):
        assert reuse(adapt(tiny.build("llama"), method), ROWS, cut) == (False, "")
    both = adapt(tiny.build("llama"), Head(), beside=LoRA(rank=2))
    assert reuse(both, ROWS, cut) == (False, "")
    assert reuse(headed("bert"), ROWS, cut) == (False, "")  # a deep head: nothing is known of what lies between
    assert reuse(headed(), ROWS, [[tuple(range(9))]]) == (False, "")  # no row is met again


def test_dropout_and_size_are_reasons_that_are_said() -> None:
    cut = planned(12)
    loose = adapt(tiny.llama(dropout=0.1).double(), Head()).train()
    was = torch.get_rng_state()
    modes = [m.training for m in loose.modules()]
    assert "dropout" in reuse(loose, ROWS, cut).note
    assert [m.training for m in loose.modules()] == modes
    assert torch.equal(torch.get_rng_state(), was)
    riding = adapt(tiny.build("llama"), LoRA(rank=2, dropout=0.5), beside=Head()).train()
    with torch.no_grad():
        for name, parameter in trainable(riding).items():
            if not name.startswith("lm_head"):
                parameter.fill_(1.0).requires_grad_(False)
    assert "dropout" in reuse(riding, ROWS, cut).note
    assert reuse(riding.eval(), ROWS, cut).possible
    kept = 2 * len(ROWS) * 32 * 8
    assert reuse(headed(), ROWS, cut, limit=kept).possible
    over = reuse(headed(), ROWS, cut, limit=kept - 1)
    assert not over.possible
    assert f"{kept:,} bytes" in over.note


def task_model(kind: str, pool: str) -> tuple[TaskModel, list[Reading], Shape]:
    """A trunk with a head; rows of one piece, or of three in multiple choice, or of three tagged words."""
    model = TaskModel(tiny.build("bert").base_model)
    shape = Shape(kind, () if kind == "choose" else ("a", "b", "c"), pool)
    model.add(shape)
    adapt(model, Head())
    many = 3 if kind == "choose" else 1
    rows = [
        Reading(
            (row.ids,) * many, ((0,) * len(row.ids),) * many, ((0, 1, 3) if kind == "tag" else (0,),) * many, targets
        )
        for i, row in enumerate(ROWS)
        for targets in [(i % 3,) * (3 if kind == "tag" else 1)]
    ]
    rows = [row._replace(pieces=tuple((*p[:-1], 7 + k) for k, p in enumerate(row.pieces))) for row in rows]
    return model.train(), rows, shape


@pytest.mark.parametrize(
    ("kind", "pool", "objective"),
    [
        ("classify", "first", Classify()),
        ("classify", "mean", Classify()),
        ("tag", "first", Classify()),
        ("choose", "first", Pick()),
    ],
)
def test_task_heads_are_fed_the_same(kind: str, pool: str, objective: Objective) -> None:
    model, rows, shape = task_model(kind, pool)
    made = lambda part: sheet([rows[i] for i in part], shape, 0, part)  # noqa: E731
    cut = [[(0, 1, 2), (3, 4)], [(5, 6), (7, 8)], [(8, 0, 4, 4)], [(2,), (6, 1)]]
    assert reuse(model, rows, cut).possible
    calls: list[int] = []
    model.trunk.register_forward_hook(lambda *_: calls.append(1))
    fed = list(cached_groups(model, cut, made))
    assert len(calls) == 4
    for parts, batches in zip(cut, fed, strict=True):
        for part, batch in zip(parts, batches, strict=True):
            gradients, losses = [], []
            for given in (made(part), batch):
                model.zero_grad()
                loss = objective(model, given).total
                loss.backward()
                losses.append(loss.detach())
                gradients.append([p.grad.clone() for p in trainable(model).values()])
            assert torch.allclose(*losses, rtol=1e-9, atol=0)
            for one, other in zip(*gradients, strict=True):
                assert torch.allclose(one, other, rtol=1e-9, atol=1e-14)
