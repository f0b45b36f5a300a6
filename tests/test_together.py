"""A sweep in one pass: every adapter ends where it would have ended alone, and what they share cannot train."""

import copy

import pytest
import torch

from acclimate.errors import ModelError, TrainingError
from acclimate.methods import METHODS, LoRA
from acclimate.methods.delta import activate, adapt, switches, trainable, using
from acclimate.models.collate import collate
from acclimate.objectives import LM, SequenceLM
from acclimate.training import optim
from acclimate.training.fit import Course, fit
from acclimate.training.together import fit_together, own
from tests import tiny
from tests.test_batches import PAD, rows_for

SWEEP = {"r1": (LoRA(1), 0.03), "r4": (LoRA(4, targets=("query", "down")), 0.01), "wide": (METHODS["houlsby"](), 0.02)}


def sweep(name="llama"):
    model = tiny.build(name, torch.float64)
    for place, (called, (method, _)) in enumerate(SWEEP.items()):
        adapt(model, method, name=called, seed=place)
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(any(f".delta.{called}." in path for called in SWEEP))
    return model.train(), rows_for(model)


def course(model, name, rate):
    mine = own(model, name)
    return Course(mine, optim.adamw(mine, rate, decay=0.1), lambda i: rate / (1 + i), max_norm=0.5)


def alone(model, name, groups, objective, rate):
    """The same adapter by itself, in a copy of the model, through the plain loop."""
    copied = copy.deepcopy(model)
    for path, parameter in copied.named_parameters():
        parameter.requires_grad_(f".delta.{name}." in path)
    activate(copied, name)
    batches = [[collate(copied, rows, PAD) for rows in group] for group in groups]
    optimizer = optim.adamw(trainable(copied), rate, decay=0.1)
    steps = fit(copied, batches, objective, optimizer, rate=lambda i: rate / (1 + i), max_norm=0.5)
    return [(step.loss, step.norm, step.tokens, step.scored) for step in steps], own(copied, name)


@pytest.mark.parametrize("objective", [LM(), SequenceLM()])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "pythia"])
def test_every_trajectory_is_that_of_its_own_run(name, objective):
    model, rows = sweep(name)
    groups = [[rows[:2], rows[2:]], [rows[1:]], [rows[:3]]]
    expected = {n: alone(model, n, groups, objective, rate) for n, (_, rate) in SWEEP.items()}
    told = list(
        fit_together(model, {n: course(model, n, rate) for n, (_, rate) in SWEEP.items()}, groups, objective, PAD)
    )
    for called, (steps, weights) in expected.items():
        seen = [step[called] for step in told]
        for step, (loss, norm, tokens, scored) in zip(seen, steps, strict=True):
            assert (step.loss, step.norm) == pytest.approx((loss, norm), rel=1e-9)
            assert (step.tokens, step.scored) == (tokens, scored)
        for path, weight in own(model, called).items():
            assert torch.allclose(weight, weights[path], rtol=1e-8, atol=1e-10)


def test_the_base_answers_as_before_and_who_answered_answers_on():
    model, rows = sweep()
    ids = torch.arange(8)[None] + 3
    with using(model, None), torch.no_grad():
        before = model(input_ids=ids).logits
    activate(model, "wide")
    list(fit_together(model, {n: course(model, n, 0.01) for n in SWEEP}, [[rows]], LM(), PAD))
    assert {switch.active for switch in switches(model)} == {"wide"}
    with using(model, None), torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)


def test_what_all_share_cannot_train():
    model, rows = sweep()
    model.lm_head.weight.requires_grad_(True)
    with pytest.raises(ModelError, match="trains and is of none of the adapters"):
        next(fit_together(model, {n: course(model, n, 0.01) for n in SWEEP}, [[rows]], LM(), PAD))


def test_a_model_that_hides_its_last_states_says_so():
    model = adapt(tiny.build("t5", torch.float64), LoRA(1, targets=("query",)), name="r1")
    with pytest.raises(ModelError, match="one after the other"):
        next(fit_together(model, {"r1": course(model, "r1", 0.01)}, [[rows_for(model)]], LM(), PAD))


def test_a_sick_adapter_is_told_by_name_of_its_weight():
    model, rows = sweep()
    with torch.no_grad():
        next(iter(own(model, "r4").values())).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"delta\.r4"):
        next(fit_together(model, {n: course(model, n, 0.01) for n in SWEEP}, [[rows]], LM(), PAD))
