"""VeRA, by hand and against PEFT."""

from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from acclimate.errors import RecipeError
from acclimate.interchange.adapter import load_adapter, save_adapter
from acclimate.methods import VeRA, artifact
from acclimate.methods.delta import adapt, attach, carriers, merge, trainable
from acclimate.methods.vera import Scaled, projections
from tests import tiny
from tests.adapted import adapted, answers, close, refusal, train


def test_vera_by_hand() -> None:
    """A = [[1, 1]], B = [[1], [2]], λ_d = 3, λ_b = (1, 10), x = (1, 2), W = 0: A x = 3, λ_d A x = 9, B · = (9, 18),
    so (9, 180); merged W = λ_b B λ_d A = [[3, 3], [60, 60]]."""
    layer = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    layer.weight.data.zero_()
    attach(layer, Scaled(torch.ones(1, 2), torch.tensor([[1.0], [2.0]]), 3.0))
    x = torch.tensor([[1.0, 2.0]]).double()
    assert layer(x).tolist() == [[0.0, 0.0]]
    layer.delta["default"].lambda_b.data = torch.tensor([1.0, 10.0]).double()
    assert layer(x).tolist() == [[9.0, 180.0]]
    merge(layer)
    assert layer.weight.tolist() == [[3.0, 3.0], [60.0, 60.0]]


def test_only_vectors_train_and_are_stored(tmp_path: Path) -> None:
    """A layer opens d_out + rank numbers: with rank 5, Llama's queries 32 + 5 and values 16 + 5, in 2 layers."""
    spec = VeRA(5, seed=3)
    model = adapt(tiny.build("llama"), spec)
    assert sum(p.numel() for p in trainable(model).values()) == 2 * (32 + 16 + 5 + 5)
    train(model)
    assert all(t.ndim == 1 for t in artifact.tensors(model).values())
    save_adapter(model, spec, tmp_path / "adapter", {})
    again = tiny.build("llama")
    assert load_adapter(again, tmp_path / "adapter")[0] == spec
    assert torch.equal(answers(again), answers(model))


def test_the_matrices_are_shared_and_hang_on_the_seed_alone() -> None:
    model = adapt(tiny.build("gpt2"), VeRA(4, targets=("linear",)), seed=7)
    riding = [module.delta["default"] for module in carriers(model).values()]
    assert len({delta.a.untyped_storage().data_ptr() for delta in riding}) == 1
    assert len({delta.b.untyped_storage().data_ptr() for delta in riding}) == 1
    a, b = projections(4, 128, 128, 0)
    assert all(torch.equal(delta.a, a[:, : delta.a.shape[1]].double()) for delta in riding)
    assert not torch.equal(projections(4, 128, 128, 1)[1], b)
    assert a.abs().max() <= (6 / 128) ** 0.5
    assert a.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)


@pytest.mark.parametrize("build", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's own
def test_it_agrees_with_peft(build: str) -> None:
    config = peft.VeraConfig(r=4, target_modules="all-linear", d_initial=0.3, fan_in_fan_out=build == "gpt2")
    there = peft.get_peft_model(tiny.build(build, torch.float32), config).eval()
    model = adapt(tiny.build(build, torch.float32), VeRA(4, targets=("linear",)))
    torch.manual_seed(1)
    for path, module in carriers(model).items():
        theirs, ours = there.base_model.model.get_submodule(path), module.delta["default"]
        ours.a, ours.b = (
            theirs.vera_A["default"][:, : ours.a.shape[1]],
            theirs.vera_B["default"][: ours.b.shape[0]],
        )
        for vector, other in ((ours.lambda_b, theirs.vera_lambda_b), (ours.lambda_d, theirs.vera_lambda_d)):
            vector.data.normal_()
            other["default"].data.copy_(vector)
    assert close(answers(model), answers(there), 1e-5)
    assert not close(answers(model), answers(tiny.build(build, torch.float32)), 1e-2)


def test_the_start_of_lambda_d() -> None:
    model = adapt(tiny.build("llama"), VeRA(2, start=0.7))
    ends = {n.rpartition(".")[2]: p.unique().tolist() for n, p in trainable(model).items()}
    assert ends == {"lambda_b": [0.0], "lambda_d": [pytest.approx(0.7)]}


def test_it_merges_into_every_build() -> None:
    assert [refusal(adapted(build, "vera")) for build in tiny.BUILDS] == [None] * len(tiny.BUILDS)


def test_no_rank_is_refused() -> None:
    with pytest.raises(RecipeError, match="vera has rank 0; it is at least 1"):
        adapt(tiny.build("llama"), VeRA(0))
