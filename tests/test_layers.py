"""A decoding step through all layers at once computes what the layers compute one by one, or is not taken."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from acclimate.generation.decode import generate
from acclimate.generation.samplers import Greedy, Sample
from acclimate.methods import DoRA, Houlsby, LoRA, Prefix, RsLoRA
from acclimate.methods.delta import activate, adapt, per_row, using
from acclimate.models import cache, kernels, layers
from acclimate.models.cache import extend, read, select
from acclimate.models.prefill import prefill
from tests import tiny

compiled = pytest.mark.skipif(isinstance(kernels.library(), str), reason="no compiler")
pytestmark = compiled
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17], [18]]
KINDS = ("llama", "qwen2", "mistral")
EVERY = ("linear",)


def wide(kind: str = "llama", dtype: torch.dtype = torch.float32, **more: object) -> nn.Module:
    """Two layers whose heads the kernels know; biases, where there are some, are not 0."""
    config = tiny.build(kind).config
    torch.manual_seed(0)
    model = type(tiny.build(kind))(type(config)(**{**config.to_dict(), "head_dim": 32, "sliding_window": None, **more}))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 or name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval()


def moved(model: nn.Module, method: object) -> nn.Module:
    adapt(model, method)
    for name, parameter in model.named_parameters():
        if name.endswith(".b"):
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def steps(model: nn.Module, count: int, whole: bool, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Logits of the prompts and of `count` steps after them, behind the second of which a row is done."""
    with monkeypatch.context() as patched:
        if not whole:
            patched.setattr(cache.layers, "plan", lambda model: None)
        logits, past = read(model, PROMPTS, pad=0)
        assert (past.reader.whole is not None) == whole
        told = [logits[1:]]
        for number in range(count):
            logits, past = extend(model, torch.tensor([20, 21, 22, 23])[-len(past.mask) :] + number, past)
            if number == 1:
                past = select(past, [1, 2, 3])
            told.append(logits[-3:])
    return torch.stack(told)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_the_layers_compute(kind, threads, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = wide(kind)
        plain, found = (steps(model, 5, whole, monkeypatch) for whole in (False, True))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, plain, rtol=0, atol=2e-5 * float(plain.abs().max()))


def test_in_bfloat16_it_is_nearer_to_float64_than_the_layers_are(monkeypatch):
    model = wide(dtype=torch.bfloat16)
    plain, found = (steps(model, 5, whole, monkeypatch).double() for whole in (False, True))
    exact = steps(wide().to(torch.bfloat16).double(), 5, False, monkeypatch)
    assert (found - exact).norm() < (plain - exact).norm()
    assert (found - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("rows", [1, 2, 3, 12, 15, 16, 17, 30, 33, 47, 64])
@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_any_number_of_rows(dtype, rows, monkeypatch):
    model, prompts = wide(dtype=dtype), [[3 + row % 7] * (1 + row % 5) for row in range(rows)]
    told = []
    for whole in (False, True):
        with monkeypatch.context() as patched:
            if not whole:
                patched.setattr(cache.layers, "plan", lambda model: None)
            _, past = read(model, prompts, pad=0)
            told.append(extend(model, torch.arange(rows) % 40 + 5, past)[0])
    far = (told[1] - told[0]).norm() / told[0].norm()
    assert far < (1e-5 if dtype == torch.float32 else 0.03)


@pytest.mark.parametrize("method", [LoRA(3), LoRA(8, targets=EVERY), RsLoRA(4, targets=EVERY), LoRA(1, dropout=0.5)])
def test_a_lora_rides_along(method, monkeypatch):
    model = moved(wide(), method)
    plain, found = (steps(model, 4, whole, monkeypatch) for whole in (False, True))
    torch.testing.assert_close(found, plain, rtol=0, atol=2e-5 * float(plain.abs().max()))
    activate(model, None)
    base = steps(model, 4, True, monkeypatch)
    assert (base - found).abs().max() > 0.01
    torch.testing.assert_close(base, steps(wide(), 4, False, monkeypatch), rtol=0, atol=1e-4)


def test_weights_that_have_moved_since_are_seen(monkeypatch):
    model = wide()
    before = steps(model, 3, True, monkeypatch)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.5)
        model.model.layers[0].self_attn.k_proj.weight = nn.Parameter(-model.model.layers[0].self_attn.k_proj.weight)
    plain, found = (steps(model, 3, whole, monkeypatch) for whole in (False, True))
    assert (found - before).abs().max() > 0.01
    torch.testing.assert_close(found, plain, rtol=0, atol=2e-5 * float(plain.abs().max()))


class Doubled(nn.Module):
    """A feed-forward layer with the parts of Llama's, which does something else with them."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        for name, part in like.named_children():
            setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def strange(how: str) -> nn.Module:
    model = wide(**{"narrow": {"head_dim": 16}, "window": {}, "gelu": {"hidden_act": "gelu"}}.get(how, {}))
    if how == "dora":
        return moved(model, DoRA(2))
    if how == "adapters":
        return adapt(model, Houlsby(4)).eval()
    if how == "hook":
        model.model.layers[1].mlp.register_forward_hook(lambda module, given, output: 2 * output)
    if how == "product hook":
        model.model.layers[1].mlp.up_proj.register_forward_hook(lambda module, given, output: 2 * output)
    if how == "doubled":
        model.model.layers[0].mlp = Doubled(model.model.layers[0].mlp)
    if how == "scaled":
        model.model.embed_tokens.register_forward_hook(lambda module, given, output: output)
        model.model.layers[0].self_attn.scaling *= 1.5
    return model


@pytest.mark.parametrize("how", ["narrow", "gelu", "dora", "adapters", "hook", "product hook", "doubled", "scaled"])
def test_what_it_does_not_know_is_read_layer_by_layer(how):
    assert layers.plan(strange(how)) is None


@pytest.mark.parametrize("build", ["gpt2", "t5", "gemma2", "qwen3", "opt"])
def test_other_builds_are_read_layer_by_layer(build):
    assert layers.plan(tiny.build(build)) is None


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every step that is taken at once."""
    seen: list[int] = []
    plain = layers.step
    monkeypatch.setattr(layers, "step", lambda plan, ids, *rest: (seen.append(len(ids)), plain(plan, ids, *rest))[1])
    return seen


def written(model: nn.Module, sampler: object = None) -> list[tuple[int, ...]]:
    done = generate(model, PROMPTS, sampler or Greedy(), terminators=frozenset({3}), max_new=12, pad=0, seed=4)
    return [each.ids for each in done]


@pytest.mark.parametrize("sampler", [Greedy(), Sample(temperature=0.8)])
def test_decoding_takes_it_at_every_step_and_writes_the_same(sampler, monkeypatch):
    model = wide()
    layers.plan(model)  # so that the trial is not counted
    seen = calls(monkeypatch)
    found = written(model, sampler)
    longest = max(map(len, found))
    assert len(seen) == longest - (
        longest == 12
    )  # none behind the last id of a row that is full; one behind each other
    seen.clear()
    monkeypatch.setattr(cache.layers, "plan", lambda model: None)
    assert written(model, sampler) == found
    assert seen == []


@pytest.mark.parametrize("how", ["mixed precision", "many rows", "adapters by row", "prefix"])
def test_steps_that_it_cannot_take_are_taken_as_before(how, monkeypatch):
    model = wide()
    if how == "adapters by row":
        moved(model, LoRA(2))
    if how == "prefix":
        adapt(model, Prefix(2)).eval()
    layers.plan(model)
    seen = calls(monkeypatch)
    rows = [[5, 6]] * (65 if how == "many rows" else 2)
    within = torch.autocast("cpu", torch.bfloat16) if how == "mixed precision" else nullcontext()
    within = using(model, per_row(["default", None])) if how == "adapters by row" else within
    if how == "prefix":
        _, past = prefill(model, rows, 0)
        extend(model, torch.tensor([7, 8]), past)
    else:
        with within:
            _, past = read(model, rows, pad=0)
            extend(model, torch.full((len(rows),), 7), past)
    assert seen == []
