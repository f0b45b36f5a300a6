"""The mechanism under the methods: names, who answers, and what is refused."""

import copy
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from acclimate.errors import ModelError, UsageError
from acclimate.methods import LoRA
from acclimate.methods.delta import (
    Delta,
    Switch,
    activate,
    adapt,
    attach,
    base,
    carriers,
    detach,
    disabled,
    install,
    merge,
    merged,
    names,
    per_row,
    switches,
    trainable,
    using,
)
from acclimate.methods.soft import add_soft, soft_of
from tests import tiny


class Plus(Delta):
    """y + n: what answered can be read off."""

    def __init__(self, n: float) -> None:
        super().__init__()
        self.n = nn.Parameter(torch.tensor(n))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.n.to(y.dtype)


class Times(Plus):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y * self.n.to(y.dtype)


class Folded(Plus):
    def fold(self, module: nn.Module) -> None:
        module.bias.data = module.bias.data + self.n.data


def two_layers() -> nn.Sequential:
    """Answers zero to everything, so that the output is the sum of what rides on it."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for parameter in model.parameters():
        parameter.data.zero_()
    return model.requires_grad_(False)


def answer(model: nn.Module, rows: int = 1) -> list[float]:
    return model(torch.zeros(rows, 2))[:, 0].tolist()


@pytest.mark.parametrize(
    "name", ["a.b", "", "1a", "a-b", "a b", "_modules", "keys", "type", "train", "values", "active"]
)
def test_a_name_that_no_child_can_have_is_refused(name: str) -> None:
    model = tiny.build("llama")
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    with pytest.raises(
        UsageError, match=f"An adapter cannot be called {re.escape(repr(name))}: a name is letters, digits and _"
    ):
        install(model, LoRA(), name)
    with pytest.raises(UsageError, match="cannot be called"):
        attach(nn.Linear(2, 2), Plus(1.0), name)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before
    assert not carriers(model)


@given(st.text(max_size=12))
def test_any_other_name_works(name: str) -> None:
    layer = nn.Linear(1, 1)
    try:
        attach(layer, Plus(5.0), name)
    except UsageError:
        assert not hasattr(layer, "delta")
        assert not layer._forward_hooks
        return
    assert f"delta.{name}.n" in layer.state_dict()
    assert names(layer) == (name,)
    detach(layer, name)
    assert names(layer) == ()


def test_the_first_answers_and_later_ones_when_activated() -> None:
    model = two_layers()
    attach(model[0], Plus(1.0), "a")
    attach(model[1], Plus(2.0), "a")
    attach(model[1], Plus(10.0), "b")
    assert answer(model) == [2.0]
    activate(model, "b")
    assert answer(model) == [10.0]
    activate(model, None)
    assert answer(model) == [0.0]
    with using(model, "a"):
        assert answer(model) == [2.0]
        with disabled(model):
            assert answer(model) == [0.0]
        assert answer(model) == [2.0]
    assert answer(model) == [0.0]


def test_using_ends_with_its_block_even_by_an_error() -> None:
    model = two_layers()
    attach(model[1], Plus(1.0), "a")
    with pytest.raises(KeyError), using(model, None):
        raise KeyError("stop")
    assert answer(model) == [1.0]
    with pytest.raises(ModelError), using(model, "b"):
        pass
    assert answer(model) == [1.0]


def test_adapt_lets_the_newest_answer_everywhere() -> None:
    """Also on layers that only an older one rides on: two never answer at once."""
    model = adapt(tiny.build("llama"), LoRA(2, targets=("query",)), name="a")
    adapt(model, LoRA(2, targets=("value",)), name="b")
    assert len(switches(model)) == 4
    assert {switch.active for switch in switches(model)} == {"b"}
    assert {n.rpartition(".")[0] for n in trainable(model)} == {
        f"model.layers.{i}.self_attn.v_proj.delta.b" for i in (0, 1)
    }


def test_a_name_is_given_once() -> None:
    model = adapt(tiny.build("llama"), LoRA(2, targets=("value",)), name="a")
    with pytest.raises(ModelError, match="already carries an adapter named 'a'; detach it or choose another name"):
        install(model, LoRA(2, targets=("query",)), "a")
    assert len(carriers(model)) == 2


def test_two_deltas_of_one_name_answer_one_after_the_other() -> None:
    layer, x = nn.Linear(3, 2).double(), torch.randn(5, 3, dtype=torch.float64)
    plain = layer(x)
    attach(layer, Plus(1.0), "a")
    attach(layer, Times(3.0), "a")
    assert torch.equal(layer(x), (plain + 1.0) * 3.0)
    with using(layer, None):
        assert torch.equal(layer(x), plain)
    assert torch.equal(copy.deepcopy(layer)(x), (plain + 1.0) * 3.0)
    detach(layer, "a")
    assert torch.equal(layer(x), plain)


class Follower(nn.Module):
    """Two layers, the second of which may be told what the first was given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


class Sum(Delta):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + x.sum(-1, keepdim=True)


def test_a_delta_may_follow_the_input_of_another_layer() -> None:
    model, x = Follower(), torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    plain = model(x)
    attach(model.last, Sum(), "a", source=model.first)
    assert torch.equal(model(x), plain + x.sum(-1, keepdim=True))
    assert next(iter(model.last.delta.values())).tap.heard is None  # no activation is held
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    rows = per_row([None, "a", None, "a", "a"])
    with using(model, rows):
        assert torch.equal(model(x)[1], plain[1] + x[1].sum())
        assert torch.equal(model(x)[2], plain[2])
    with pytest.raises(ModelError, match="was asked out of turn"):
        model.last(torch.zeros(5, 4, dtype=torch.float64))
    detach(model, "a")
    assert not model.first._forward_pre_hooks
    assert not model.last._forward_hooks
    assert torch.equal(model(x), plain)
    assert twin.first._forward_pre_hooks


def test_soft_tokens_are_ids_past_the_vocabulary() -> None:
    model = tiny.build("llama")
    model.requires_grad_(False)
    embedding, ids = model.get_input_embeddings(), torch.tensor([[tiny.VOCAB + 1, 5, tiny.VOCAB]])
    rows = torch.randn(2, 32, dtype=torch.float64)
    plain = embedding(ids[:, 1:2])
    first = add_soft(embedding, rows, "a")
    second = add_soft(embedding, rows + 1, "b", back=1)
    assert (first, second) == (tiny.VOCAB, tiny.VOCAB + 2)
    assert soft_of(model, "a") == ((tiny.VOCAB, tiny.VOCAB + 1), ())
    assert soft_of(model, "b") == ((tiny.VOCAB + 2,), (tiny.VOCAB + 3,))
    activate(model, "a")
    assert torch.equal(embedding(ids), torch.stack([rows[1], plain[0, 0], rows[0]])[None])
    with using(model, None), pytest.raises(ModelError, match="is past the vocabulary of 96"):
        embedding(ids)
    with disabled(model):
        assert torch.equal(embedding(ids[:, 1:2]), plain)


def test_there_is_no_such_adapter() -> None:
    model = tiny.build("llama")
    for act in (activate, merge, detach):
        with pytest.raises(ModelError, match="LlamaForCausalLM carries no adapter, so none called 'fist'"):
            act(model, "fist")
    detach(model)
    adapt(model, LoRA(2), name="first")
    for act in (activate, merge, detach):
        with pytest.raises(ModelError, match=r"No adapter on this model is called 'fist'. Did you mean 'first'"):
            act(model, "fist")
    with pytest.raises(ModelError, match="called 'fist'"):
        activate(model, per_row(["first", "fist"]))


def test_rows_by_hand() -> None:
    model = two_layers()
    attach(model[0], Plus(1.0), "a")
    attach(model[1], Plus(2.0), "b")
    model[1].weight.data = torch.eye(2)
    with using(model, per_row(["b", None, "a", "b"])):
        assert answer(model, 4) == [2.0, 0.0, 1.0, 2.0]


def test_documents_by_hand() -> None:
    layer = nn.Linear(2, 2)
    attach(layer, Plus(1.0), "a")
    attach(layer, Plus(2.0), "b")
    stream = torch.randn(1, 6, 2)
    with using(layer, None):
        plain = layer(stream)
    with using(layer, per_row(["b", "a", None], (3, 1, 2))):
        assert torch.equal(layer(stream)[0] - plain[0], (layer(stream) - plain)[0])
        assert [round(v) for v in (layer(stream) - plain)[0, :, 0].tolist()] == [2, 2, 2, 1, 0, 0]
        assert [round(v) for v in (layer(stream[0]) - plain[0])[:, 0].tolist()] == [2, 2, 2, 1, 0, 0]  # flattened


def test_rows_reach_layers_that_flatten_the_batch() -> None:
    """OPT's feed-forward layers see (batch · time, d)."""
    layer = nn.Linear(2, 2)
    attach(layer, Plus(1.0), "a")
    with using(layer, None):
        plain = layer(torch.ones(6, 2))
    with using(layer, per_row([None, "a"])):
        assert [round(v) for v in (layer(torch.ones(6, 2)) - plain)[:, 0].tolist()] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("shape", [(1, 5, 2), (4, 5, 2), (1, 2), (3, 2)])
def test_rows_that_the_layer_does_not_see_are_refused(shape: tuple[int, ...]) -> None:
    """DeBERTa projects positions once for all rows: no choice per row is possible there."""
    layer = nn.Linear(2, 2)
    attach(layer, Plus(1.0), "a")
    with using(layer, per_row([None, "a"])), pytest.raises(ModelError, match="Run the adapters one after the other"):
        layer(torch.ones(shape))


def test_backward_of_checkpointed_layers_inside_the_block() -> None:
    ids = torch.arange(8)[None] + 3
    gradients = []
    for on in (False, True):
        model = adapt(tiny.build("llama"), LoRA(2), name="b")
        adapt(model, LoRA(2, targets=("linear",)), name="a").train()
        for n, p in model.named_parameters():
            p.requires_grad_(".delta." in n)
        if on:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        with using(model, "b"):
            tiny.logits(model, ids).log_softmax(-1)[..., 5].sum().backward()
        gradients.append({n: p.grad for n, p in trainable(model).items() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == {n for n in trainable(model) if ".b." in n}
    assert all(torch.allclose(g, gradients[1][n], rtol=1e-9, atol=0) for n, g in gradients[0].items())


def test_a_change_that_no_weight_computes_cannot_be_merged() -> None:
    """And the part of it that could is taken back."""
    model = two_layers()
    attach(model[0], Folded(1.0), "a")
    attach(model[1], Plus(1.0), "a")
    for act in (lambda: merge(model, "a"), lambda: merged(model, "a").__enter__()):
        with pytest.raises(ModelError, match=r"Plus cannot be merged: no single weight computes it. Keep it attached"):
            act()
    assert model[0].bias.tolist() == [0.0, 0.0]
    assert len(carriers(model, "a")) == 2
    assert answer(model) == [1.0]


def test_merging_one_of_two_leaves_the_other() -> None:
    model = two_layers()
    attach(model[0], Folded(1.0), "a")
    attach(model[0], Folded(10.0), "b")
    merge(model, "a")
    assert names(model) == ("b",)
    activate(model, None)
    assert model[0].bias.tolist() == [1.0, 1.0]
    activate(model, "b")
    assert model[0](torch.zeros(1, 2)).tolist() == [[11.0, 11.0]]


def test_twins_only_stop_the_adapter_that_touches_them() -> None:
    model = tiny.build("gpt2")
    adapt(model, LoRA(2, targets=("lm_head",)), name="tied")
    adapt(model, LoRA(2), name="plain")
    with pytest.raises(ModelError, match=r"lm_head shares its weight with transformer\.wte: merging would change both"):
        merge(model, "tied")
    with merged(model, "plain"):
        pass
    merge(model, "plain")
    assert names(model) == ("tied",)


def test_a_layer_used_in_two_places_is_no_twin_of_itself() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, layer)
    attach(layer, Folded(1.0), "a")
    merge(model, "a")
    assert isinstance(model[1], nn.Linear)
    assert names(model) == ()


def test_base_is_what_does_not_ride() -> None:
    model = tiny.build("gpt2")
    before = set(base(model))
    adapt(model, LoRA(2, targets=("linear", "lm_head")))
    assert set(base(model)) == before
    assert {n for n, _ in model.named_parameters()} - before == set(trainable(model))


def test_masters_follow_the_base_in_precision_and_mode() -> None:
    for dtype, wide in [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ]:
        layer = nn.Linear(2, 2, dtype=dtype).eval()
        attach(layer, Plus(1.0))
        assert layer.delta["default"].n.dtype == wide
        assert layer(torch.ones(1, 2, dtype=dtype)).dtype == dtype
        assert not layer.delta["default"].training
        attach(layer.train(), Plus(1.0), "b")
        assert layer.delta["b"].training


def test_a_model_with_a_module_called_delta_is_left_alone() -> None:
    layer = nn.Linear(2, 2)
    layer.delta = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="This Linear has a part of its own called delta"):
        attach(layer, Plus(1.0))
    assert not layer._forward_hooks
    assert not carriers(nn.Sequential(layer))
    assert not isinstance(layer.delta, Switch)
