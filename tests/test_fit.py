"""The loop: what it yields, what it refuses, when it stops (G21, G30); schedules and the optimizer's state."""

import copy

import pytest
import torch

from acclimate.errors import ModelError, TrainingError
from acclimate.methods import METHODS
from acclimate.methods.delta import adapt, trainable
from acclimate.models.collate import collate
from acclimate.objectives import LM
from acclimate.tokens.batch import pack
from acclimate.training import optim
from acclimate.training.fit import Loss, fit
from acclimate.training.rates import SCHEDULES, Constant, Cosine, Linear
from tests import tiny
from tests.test_batches import PAD, rows_for


def start(method="lora", name="llama", dtype=torch.float64):
    model = adapt(tiny.build(name, dtype), METHODS[method]())
    rows = rows_for(model)
    return model, [[collate(model, rows[:3], PAD, (10, 11, 12)), collate(model, rows[3:], PAD, (13, 14, 15))]]


def run(model, groups, objective=None, rate=0.05, optimizer=None, **named):
    chosen = optimizer or optim.adamw(trainable(model), rate)
    return list(fit(model, groups, objective or LM(), chosen, rate=lambda i: rate, **named))


def test_it_learns_and_yields_after_every_step():
    model, group = start("full")
    steps = run(model, group * 30, rate=0.01)
    assert [s.index for s in steps] == list(range(1, 31))
    assert steps[-1].loss < 0.5 * steps[0].loss


def test_the_gradient_is_clipped_to_the_norm_asked_for():
    model, group = start("full")
    sgd = torch.optim.SGD(trainable(model).values(), 1.0)
    before = {n: p.detach().clone() for n, p in trainable(model).items()}
    (step,) = run(model, group, optimizer=sgd, rate=1.0, max_norm=0.01)
    moved = torch.cat([(p - before[n]).flatten() for n, p in trainable(model).items()]).norm()
    assert step.norm > 0.01
    assert moved.item() == pytest.approx(0.01, rel=1e-4)


def test_nothing_is_read_ahead():
    model, group = start("full")
    seen = []

    def groups():
        for _ in range(3):
            seen.append(model.lm_head.weight.detach().sum().item())
            yield group[0]

    run(model, groups(), rate=0.01)
    assert len(set(seen)) == 3


def test_a_module_that_is_computed_around_is_named():
    model, group = start()
    attention = model.model.layers[1].self_attn
    around = attention.v_proj.weight
    attention.v_proj.forward = lambda x: torch.nn.functional.linear(x, around)
    attention.v_proj.__call__ = attention.v_proj.forward
    attention._modules["v_proj"]._forward_hooks.clear()
    with pytest.raises(ModelError, match=r"Step 1: 2 trainable tensors received no gradient, first .*layers.1.*v_proj"):
        run(model, group)


def test_a_tensor_that_only_gets_zeros_is_named():
    model, group = start()
    switch = model.model.layers[0].self_attn.q_proj.delta
    switch["default"].scale = 0.0
    with pytest.raises(ModelError, match=r"only ever received zero gradients, first .*layers.0.*q_proj"):
        run(model, group * 6)


def test_nothing_to_train_is_said():
    model, group = start()
    model.requires_grad_(False)
    with pytest.raises(ModelError, match="Nothing trains"):
        run(model, group, optimizer=torch.optim.SGD([torch.zeros(1)], 0.1))


def test_a_batch_without_scored_tokens_stops_with_its_rows():
    model, _ = start()
    rows = [row._replace(scored=(False,) * len(row.ids)) for row in rows_for(model)]
    with pytest.raises((TrainingError, ModelError), match=r"no gradient|no token of this batch"):
        run(model, [[collate(model, rows, PAD, tuple(range(6)))]])


def test_a_weight_that_is_not_finite_is_named_with_the_rows():
    model, group = start()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 3] = float("nan")
    with pytest.raises(TrainingError, match=r"Step 1: .*not finite.*model.layers.1.mlp.down_proj.weight.*Rows 10, 11"):
        run(model, group)


def test_the_first_bad_module_is_named():
    model, group = start()
    handle = model.model.layers[0].mlp.register_forward_hook(lambda m, x, y: y / 0)
    with pytest.raises(TrainingError, match=r"first module with a result that is not finite is model\.layers\.0"):
        run(model, group)
    handle.remove()


def test_an_exploding_loss_stops_within_its_patience():
    model, group = start("full")
    calls = []

    def growing(model, batch):
        loss = LM()(model, batch)
        calls.append(batch)
        return Loss(loss.total * 4.0 ** (len(calls) // 2), loss.count)

    with pytest.raises(TrainingError, match=r"Step [67]: .*5 steps in a row.*Lower training\.rate"):
        run(model, group * 50, growing, rate=1e-6)


def test_zero_counts_after_a_finite_loss_never_divide():
    model, group = start()

    def empty(model, batch):
        return Loss(LM()(model, batch).total * 0, torch.tensor(0))

    with pytest.raises(TrainingError, match="no token of this batch is counted"):
        run(model, group, empty)


def test_optimizer_state_goes_away_and_comes_back_bit_for_bit():
    model, group = start()
    twin = copy.deepcopy(model)
    straight = optim.adamw(trainable(model), 0.01)
    run(model, group * 6, optimizer=straight, rate=0.01)
    first = optim.adamw(trainable(twin), 0.01)
    run(twin, group * 3, optimizer=first, rate=0.01)
    kept = {name: tensor.clone() for name, tensor in optim.state(first, trainable(twin)).items()}
    second = optim.adamw(trainable(twin), 0.01)
    optim.restore(second, trainable(twin), kept)
    run(twin, group * 3, optimizer=second, rate=0.01, start=3)
    for name, parameter in trainable(model).items():
        assert torch.equal(parameter, trainable(twin)[name])


def test_decay_pulls_matrices_only():
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    made = optim.adamw({"w": matrix, "b": vector}, 0.1, decay=0.5)
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    made.step()
    assert matrix.flatten().tolist() == pytest.approx([0.95] * 4)
    assert vector.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("schedule", [Constant(0.1), Linear(0.1), Cosine(0.1)])
def test_schedules_rise_and_never_start_at_zero(schedule):
    shares = [schedule.share(i, 100) for i in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == pytest.approx(1.0)
    assert shares.index(max(shares)) == 9
    assert all(0 <= share <= 1 for share in shares)


def test_schedules_by_hand():
    assert Linear(0.0).share(50, 100) == pytest.approx(0.5)
    assert Cosine(0.0).share(50, 100) == pytest.approx(0.5)
    assert Cosine(0.0).share(25, 100) == pytest.approx(0.5 * (1 + 2**-0.5))
    assert Constant().share(99, 100) == 1.0
    assert set(SCHEDULES) == {"constant", "linear", "cosine"}


def test_mixed_precision_keeps_float32_masters():
    model = adapt(tiny.build("llama", torch.bfloat16), METHODS["full"]())
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    rows = rows_for(model)
    steps = run(model, [[pack(rows)]] * 20, rate=0.01, autocast=torch.bfloat16)
    assert {p.grad.dtype for p in trainable(model).values() if p.grad is not None} <= {torch.float32}
    assert steps[-1].loss < 0.7 * steps[0].loss
