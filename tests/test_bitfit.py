"""BitFit, by hand."""

import pytest
import torch
from torch import nn

from acclimate.errors import ModelError
from acclimate.methods import BitFit
from acclimate.methods.bitfit import Bias
from acclimate.methods.delta import adapt, attach, carriers, merge, merged, trainable
from tests import tiny
from tests.adapted import adapted, answers, close, refusal, train


def test_bitfit_by_hand() -> None:
    """w = 2, bias 1, x = 3: 7. The loss y² / 2 has the slope 7 in b; a rate of 0.1 makes b = −0.7, so 6.3."""
    layer = nn.Linear(1, 1, dtype=torch.float64)
    layer.weight.data.fill_(2.0)
    layer.bias.data.fill_(1.0)
    attach(layer, Bias(1))
    layer.requires_grad_(False)
    layer.delta.requires_grad_(True)
    x = torch.full((1, 1), 3.0, dtype=torch.float64)
    (layer(x) ** 2 / 2).sum().backward()
    torch.optim.SGD(trainable(layer).values(), lr=0.1).step()
    assert layer(x).item() == pytest.approx(6.3, abs=1e-12)
    merge(layer)
    assert layer.bias.item() == pytest.approx(0.3, abs=1e-12)
    assert layer.weight.item() == 2
    assert layer(x).item() == pytest.approx(6.3, abs=1e-12)


@pytest.mark.parametrize("build", ["bert", "bert_classifier", "gpt2", "bart", "opt", "roberta", "pythia"])
def test_all_is_every_bias_of_the_trunk(build: str) -> None:
    """Where every layer has its bias, what trains is the trunk's biases, the paper's `all`: embeddings' norm included."""
    model = tiny.build(build)
    own = [n for n, _ in model.named_parameters() if n.endswith(".bias")]
    head = ("cls.", "classifier.", "lm_head.")
    expected = {n.removesuffix(".bias") for n in own if not n.startswith(head)}
    assert {*carriers(adapt(model, BitFit()))} == expected
    assert not refusal(model)


def test_models_without_biases_get_them_on_linear_layers_alone() -> None:
    model = adapt(tiny.build("llama"), BitFit())
    assert {n.rpartition(".")[2] for n in carriers(model)} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert len(carriers(model)) == 14
    train(model)
    with pytest.raises(ModelError, match="cannot be merged into a Linear without one: transformers would not load it"):
        merge(model)


def test_training_biases_is_training_the_biases() -> None:
    """Two SGD steps on y + b are two steps on the bias itself."""
    model, plain = tiny.build("bert"), tiny.build("bert").requires_grad_(False)
    train(adapt(model, BitFit()), rate=0.5)
    for name in carriers(model):
        plain.get_submodule(name).bias.requires_grad_(True)
    train(plain, rate=0.5)
    assert close(answers(model), answers(plain))
    with merged(model):
        assert all(
            torch.allclose(model.get_submodule(n).bias, plain.get_submodule(n).bias, rtol=0, atol=1e-12)
            for n in carriers(model)
        )


def test_the_variant_of_queries_and_intermediates() -> None:
    """b_q and b_m2: 2 layers of 32 + 64 numbers."""
    model = adapt(tiny.build("bert"), BitFit(("query", "up")))
    assert {n.rpartition(".layer.")[2][2:] for n in carriers(model)} == {"attention.self.query", "intermediate.dense"}
    assert sum(p.numel() for p in trainable(model).values()) == 2 * (32 + 64)


def biases(hidden: int, inner: int, depth: int) -> int:
    """Query, key, value, output, the two of the feed-forward and two norms a layer; the embeddings' norm, the pooler."""
    return depth * (4 * hidden + inner + hidden + 2 * hidden) + 2 * hidden


def test_the_share_of_bert() -> None:
    """Section 3 of the paper: 0.09 % of BERT-base's 110M, 0.08 % of BERT-large's 335M."""
    model = adapt(tiny.build("bert_classifier"), BitFit())
    assert sum(p.numel() for p in trainable(model).values()) == biases(32, 64, 2)
    assert round(100 * biases(768, 3072, 12) / 110e6, 2) == 0.09
    assert round(100 * biases(1024, 4096, 24) / 335e6, 2) == 0.08


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="part or layer of this model"):
        adapt(tiny.build("llama"), BitFit(("querry",)))


def test_small_biases_are_kept_on_a_bfloat16_base() -> None:
    layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    layer.weight.data.zero_()
    attach(layer, Bias(1))
    layer.delta["default"].b.data.fill_(1e-5)
    assert layer(torch.ones(1, 1, dtype=torch.bfloat16)).item() == pytest.approx(1e-5, rel=1e-2)
    assert adapted("gpt2", "bitfit", torch.bfloat16).dtype == torch.bfloat16
