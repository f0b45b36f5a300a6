"""The contract of every method, over every build: guarantees G21 to G24. A new method is one line in adapted.SPECS."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from acclimate.errors import ModelError
from acclimate.methods import METHODS, LoRA
from acclimate.methods.delta import (
    activate,
    adapt,
    carriers,
    detach,
    disabled,
    merge,
    merged,
    names,
    per_row,
    snapshot,
    switches,
    trainable,
    using,
)
from acclimate.methods.soft import soft_of
from acclimate.models.logprobs import logprobs
from acclimate.models.memory import memory_name
from acclimate.models.outline import outline
from acclimate.tokens.batch import pack
from acclimate.tokens.codec import Encoded
from tests import tiny
from tests.adapted import (
    RIDING,
    SPECS,
    adapted,
    answers,
    base_of,
    bits,
    changed,
    checkpoint_layers,
    close,
    dressed,
    every_build,
    every_method,
    loss_of,
    refusal,
    riding_method,
    silent,
    some_ids,
    train,
)

CACHED = ("llama", "gpt2", "t5", "bart")


def test_every_method_is_tested() -> None:
    assert SPECS.keys() == METHODS.keys()
    assert all(type(spec) is METHODS[key] for key, spec in SPECS.items())


@every_method
@every_build
@torch.no_grad()
def test_starts_at_the_base_model(build: str, method: str) -> None:
    for dtype in (torch.float64, torch.float32):
        model = base_of(build, method, dtype)
        base = tiny.logits(model, some_ids())
        assert torch.equal(tiny.logits(adapt(model, SPECS[method]), some_ids()), base)  # soft tokens are not fed


@every_method
@every_build
@pytest.mark.parametrize("kind", [torch.optim.SGD, lambda p, lr: torch.optim.AdamW(p, 0.01 * lr, weight_decay=0.0)])
def test_what_is_declared_moves_and_nothing_else(
    build: str, method: str, kind: Callable[..., torch.optim.Optimizer]
) -> None:
    model = adapt(tiny.build(build), SPECS[method])
    before, declared = bits(model), set(trainable(model))
    train(model, kind=kind)
    still = silent(model, build)
    assert changed(before, bits(model)) - still == declared - still
    assert all(model.get_parameter(n).grad.abs().max() < 1e-12 for n in still)


@pytest.mark.parametrize(
    ("method", "opened"),
    [
        ("full", 24736),
        ("head", 96 * 32),
        ("lora", 2 * 2 * (64 + 48 + 48 + 64 + 3 * 96)),
        ("rslora", 2 * 2 * (64 + 48 + 48 + 64 + 3 * 96)),
        ("dora", 2 * (2 * (64 + 48 + 48 + 64 + 3 * 96) + 256)),
        ("bitfit", 2 * 256),
        ("ia3", 2 * (16 + 16 + 64)),
        ("houlsby", 2 * 2 * 292 + 5 * 32),
        ("pfeiffer", 2 * 292),
        ("parallel", 2 * 292),
        ("scaled_parallel", 2 * 292),
        ("preembed", 32 * (2 + 1)),
        ("prelayer", 2 * 32 * (2 + 1)),
        ("prompt", 3 * 32),
        ("prefix", 3 * 8 + (8 + 1) * 8 + 2 * 2 * (8 + 1) * 16),
    ],
)
def test_llama_opens_so_many_numbers(method: str, opened: int) -> None:
    """full: 2·96·32 + 2 (2·32·32 + 2·32·16 + 3·32·64 + 2·32) + 32. lora: 2 layers, rank 2, d_in + d_out of seven.

    bitfit, and dora besides: 2·32 + 2·16 + 2·64 + 32 outputs a layer. An adapter of width 4: 2·4·32 + 32 + 4.

    prefix, while it trains: P' (3, 8), an inner layer of 8, and one of 16 for the keys and values of 2 layers.
    """
    model = adapt(tiny.build("llama"), SPECS[method])
    assert sum(p.numel() for p in trainable(model).values()) == opened


@riding_method
@every_build
def test_detach_restores_the_model_exactly(build: str, method: str) -> None:
    model = base_of(build, method)
    before, keys, base = bits(model), list(model.state_dict()), answers(model)
    attributes = {n: set(m.__dict__) for n, m in model.named_modules()}
    adapt(model, SPECS[method])
    train(model)
    assert not torch.equal(answers(model), base)
    detach(model)
    assert list(model.state_dict()) == keys
    assert not changed(before, bits(model))
    assert torch.equal(answers(model), base)
    assert {n: set(m.__dict__) for n, m in model.named_modules()} == attributes
    assert not any(m._forward_hooks or m._forward_hooks_with_kwargs or m._forward_pre_hooks for m in model.modules())


@riding_method
@every_build
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_merged_equals_adapter(build: str, method: str, dtype: torch.dtype, bound: float) -> None:
    model = adapted(build, method, dtype)
    before, adapter = bits(model), answers(model)
    if refusal(model):
        with pytest.raises(ModelError, match=r"change both|cannot be merged|unquantised base"):
            merge(model)
        assert not changed(before, bits(model))
        assert torch.equal(answers(model), adapter)
        return
    with merged(model):
        assert close(answers(model), adapter, bound)
        assert {switch.active for switch in switches(model)} == {None}  # the weights answered
    assert not changed(before, bits(model))
    assert torch.equal(answers(model), adapter)
    merge(model)
    assert names(model) == ()
    assert close(answers(model), adapter, bound)


@riding_method
@every_build
def test_merged_and_reloaded_by_transformers_alone(build: str, method: str, tmp_path: Path) -> None:
    model = adapted(build, method, torch.float32)
    if why := refusal(model):
        pytest.skip(why)
    adapter = answers(model)
    merge(model)
    after = answers(model)
    model.save_pretrained(tmp_path)
    plain = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(answers(plain), after)
    assert close(answers(plain), adapter, 1e-5)


@pytest.mark.parametrize(
    ("method", "builds"), [("lora", [*tiny.BUILDS]), ("head", ["llama", "bert_classifier"]), ("prompt", [])]
)
def test_these_merge(method: str, builds: list[str]) -> None:
    """The language-model heads of the other builds are the input embedding; no weight answers for a soft token."""
    assert [build for build in tiny.BUILDS if not refusal(adapted(build, method))] == builds


@riding_method
def test_merged_gives_every_bit_back_after_an_error(method: str) -> None:
    model = adapted("llama", method)
    if why := refusal(model):
        pytest.skip(why)
    before = bits(model)
    with pytest.raises(KeyError), merged(model):
        raise KeyError("stop")
    assert not changed(before, bits(model))
    assert names(model) == ("default",)


@every_method
@every_build
def test_a_deep_copy_is_another_model(build: str, method: str) -> None:
    model = adapted(build, method)
    before, adapter = bits(model), answers(model)
    twin = copy.deepcopy(model)
    assert torch.equal(answers(twin), adapter)
    train(twin)
    assert changed(before, bits(twin))
    detach(twin)
    assert not carriers(twin)
    assert not any(m._forward_hooks for m in twin.modules())
    assert not changed(before, bits(model))
    assert torch.equal(answers(model), adapter)


@every_method
@every_build
def test_disabled_is_the_base_bit_for_bit(build: str, method: str) -> None:
    base = answers(base_of(build, method))
    model = adapt(tiny.build(build), SPECS[method])
    originals = snapshot(model)
    train(model)
    before, result = bits(model), answers(model)
    with disabled(model, originals):
        assert torch.equal(answers(model), base)
    assert torch.equal(answers(model), result)
    assert not changed(before, bits(model))
    if method in RIDING:
        assert originals == {}
        with disabled(model):
            assert torch.equal(answers(model), base)
    else:
        with (
            pytest.raises(ModelError, match=r"base tensors train, first .*: give `disabled` their snapshot"),
            disabled(model),
        ):
            pass
        assert torch.equal(answers(model), result)


@every_build
def test_adapters_are_isolated(build: str) -> None:
    """Loaded, trained and answering are independent; training one leaves the other and the base bit-identical."""
    model = tiny.build(build)
    base = answers(model)
    adapt(model, LoRA(2), name="a")
    train(model)
    first = answers(model)
    before = bits(model)
    adapt(model, SPECS["lora"], name="b", seed=1)  # more targets than a has
    assert {*names(model)} == {"a", "b"}
    assert {s.active for s in switches(model)} == {"b"}
    assert all(".delta.b." in n for n in trainable(model))
    assert torch.equal(answers(model), base)
    train(model)
    assert not changed(before, bits(model))
    second = answers(model)
    assert not torch.equal(second, first)
    activate(model, "a")
    assert torch.equal(answers(model), first)
    assert all(".delta.b." in n for n in trainable(model))
    with using(model, "b"):
        assert torch.equal(answers(model), second)
    assert torch.equal(answers(model), first)
    detach(model, "a")
    assert names(model) == ("b",)
    activate(model, "b")
    assert torch.equal(answers(model), second)
    detach(model, "b")
    assert torch.equal(answers(model), base)


@riding_method
@every_build
def test_rows_of_a_batch_may_have_different_adapters(build: str, method: str) -> None:
    model = adapted(build, method, name="a")
    adapt(model, LoRA(2, targets=("query", "down")), name="b", seed=1)
    train(model)
    ids, chosen = some_ids(5), ("b", None, "a", "b", "a")
    separate = {}
    for name in {*chosen}:
        with using(model, name):
            separate[name] = answers(model, ids)
    with using(model, per_row(chosen)):
        mixed = answers(model, ids)
    for row, name in enumerate(chosen):
        assert close(mixed[row], separate[name][row])
    assert not close(mixed[0], separate["a"][0], 1e-3)
    with using(model, per_row([None] * 5)):
        assert torch.equal(answers(model, ids), separate[None])


def test_documents_of_a_packed_stream_may_have_different_adapters() -> None:
    model = adapted("llama", "lora", name="a")
    adapt(model, LoRA(2), name="b", seed=1)
    train(model)
    lengths, chosen = (3, 5, 2, 4), ("a", None, "b", "a")
    ids = some_ids(1, sum(lengths))
    blocks = torch.block_diag(*[torch.ones(n, n).tril() for n in lengths]).bool()
    mask = torch.zeros(blocks.shape, dtype=torch.float64).masked_fill(~blocks, torch.finfo(torch.float64).min)
    positions = torch.cat([torch.arange(n) for n in lengths])
    with torch.no_grad(), using(model, per_row(chosen, lengths)):
        packed = model(input_ids=ids, attention_mask=mask[None, None], position_ids=positions[None]).logits
    for document, got, name in zip(ids.split(lengths, 1), packed.split(lengths, 1), chosen, strict=True):
        with using(model, name):
            assert close(got, answers(model, document))


@every_method
@pytest.mark.parametrize("build", ["llama", "gpt2"])
def test_what_documents_begin_with_may_be_read_once(build: str, method: str) -> None:
    model = adapted(build, method)
    front, back = soft_of(model)
    begin, ends = (*front, 5, 9, 4, 11), ((6, 7), (8,), (10, 12, 13))
    flags = [(False,) * len(begin) + (True,) * len(end) + (False,) * len(back) + (True,) for end in ends]
    rows = [Encoded((*begin, *end, *back, 20), scored) for end, scored in zip(ends, flags, strict=True)]
    assert outline(model).shares
    with torch.no_grad():
        alone = torch.cat([logprobs(model, pack([row])) for row in rows])
        assert close(logprobs(model, pack(rows, least=len(begin))), alone)


@every_method
@every_build
def test_checkpointing_changes_no_gradient(build: str, method: str) -> None:
    model = adapted(build, method).train()
    gradients = []
    for on in (False, True):
        if on:
            checkpoint_layers(model)
        model.zero_grad()
        loss_of(model, some_ids()).backward()
        gradients.append({n: p.grad.clone() for n, p in trainable(model).items()})
    plain, again = gradients
    assert all(close(again[n], plain[n]) for n in plain.keys() - silent(model, build))


@every_method
@pytest.mark.parametrize("build", CACHED)
def test_cached_equals_uncached(build: str, method: str) -> None:
    model = adapted(build, method)
    read, ids = dressed(model, some_ids())[0], some_ids()
    two = model.config.is_encoder_decoder
    ids = ids if two else read
    first = (
        model(input_ids=read, decoder_input_ids=ids[:, :4], use_cache=True)
        if two
        else model(ids[:, :4], use_cache=True)
    )
    memory = memory_name(model)
    past, pieces = first[memory], [first.logits]
    for place in range(4, ids.shape[1]):
        new = ids[:, place : place + 1]
        fed = (
            {"encoder_outputs": (first.encoder_last_hidden_state,), "decoder_input_ids": new}
            if two
            else {"input_ids": new}
        )
        out = model(**fed, **{memory: past}, use_cache=True)
        past, pieces = out[memory], [*pieces, out.logits]
    fed = {"input_ids": read, "decoder_input_ids": ids} if two else {"input_ids": ids}
    assert close(torch.cat(pieces, 1), model(**fed).logits)


@every_method
@every_build
def test_masters_are_float32_on_a_bfloat16_base(build: str, method: str) -> None:
    model = base_of(build, method, torch.bfloat16)
    base = answers(model)
    kinds = {n: p.dtype for n, p in model.named_parameters()}
    adapt(model, SPECS[method])
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    if method in RIDING:
        with torch.no_grad():
            assert torch.equal(tiny.logits(model, some_ids()), base)
        assert {n: p.dtype for n, p in model.named_parameters() if not p.requires_grad} == kinds
    train(model)
    assert {p.grad.dtype for p in trainable(model).values()} == {torch.float32}
    result = answers(model)
    assert result.dtype == (torch.bfloat16 if method in RIDING else torch.float32)
    assert result.isfinite().all()
    assert not torch.equal(result, base)


@every_method
@every_build
def test_autocast(build: str, method: str) -> None:
    model = adapted(build, method, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = answers(model)
        loss = loss_of(model, some_ids())
    assert close(mixed.float(), answers(model), 0.05)
    model.zero_grad()
    loss.backward()
    assert {(p.dtype, p.grad.dtype, bool(p.grad.isfinite().all())) for p in trainable(model).values()} == {
        (torch.float32, torch.float32, True)
    }
