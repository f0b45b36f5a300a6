"""Every promised architecture, as a tiny random model: LoRA, packing, padding, caches, and how much text fits (A5)."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from acclimate.errors import ModelError
from acclimate.generation.decode import generate
from acclimate.generation.samplers import Greedy
from acclimate.generation.score import score
from acclimate.interchange.adapter import load_adapter, save_adapter
from acclimate.methods import LoRA
from acclimate.methods.delta import adapt, carriers, detach, merge, trainable
from acclimate.methods.targets import attentions, embedding, feed_forwards, find, layers, norms
from acclimate.models.fingerprint import fingerprint
from acclimate.models.logprobs import logprobs
from acclimate.models.outline import Outline, outline
from acclimate.run.prepare import context_of
from acclimate.tokens.batch import pack, pad
from acclimate.tokens.codec import Encoded
from tests import tiny
from tests.adapted import answers, bits, changed, close, train

READERS = ("roberta", "deberta", "electra", "mpnet")
WRITERS = tuple(name for name in tiny.MORE if name not in READERS)
# apart: all but Gemma 2, whose logits are capped, and masked models, whose heads have more than one layer.
# packed: not Gemma 2 (scores are capped), RoBERTa (positions count from the pad id), DeBERTa and MPNet (relative biases).
OUTLINES = {
    **dict.fromkeys(WRITERS, Outline(apart=True, packs=True, shares=True)),
    **dict.fromkeys(READERS, Outline(apart=False, packs=False, shares=False)),
    "gemma2": Outline(apart=False, packs=False, shares=False),
    "electra": Outline(apart=False, packs=True, shares=False),
}
LENGTHS = (5, 9, 4, 12, 6)  # longer and shorter than the windows of Gemma and Mistral
# Gemma 2 takes its softmax in float32, where its float64 mask is −inf: a pad that sees pads alone would be NaN.
EXACT = dict.fromkeys(tiny.MORE, (torch.float64, 1e-09)) | {"gemma2": (torch.float32, 1e-4)}
every = pytest.mark.parametrize("name", tiny.MORE)
writers = pytest.mark.parametrize("name", WRITERS)
readers = pytest.mark.parametrize("name", READERS)


def some_rows(fill: int) -> list[Encoded]:
    """Rows of ids, of which the fill is also one, as an end of text is that pads."""
    draw = torch.Generator().manual_seed(0)
    drawn = [torch.randint(3, tiny.VOCAB, (length,), generator=draw).tolist() for length in LENGTHS]
    ids = [(row[0], fill, *row[2:]) for row in drawn]
    return [Encoded(row, (False, False, *[True] * (len(row) - 2)), (), f"f:{n}") for n, row in enumerate(ids)]


@torch.no_grad()
def alone(model: nn.Module, row: Encoded) -> Tensor:
    """Each scored id from a forward pass over what comes before it and nothing else."""
    seen = [model(input_ids=torch.tensor([row.ids[:t]]), use_cache=False).logits[0, -1] for t in range(2, len(row.ids))]
    return torch.stack([logits.log_softmax(-1)[i] for logits, i in zip(seen, row.ids[2:], strict=True)])


@every
def test_lora_goes_the_whole_way(name: str, tmp_path: Path) -> None:
    model = tiny.build(name)
    before, base, printed = bits(model), answers(model), fingerprint(model)
    method = LoRA(rank=2, targets=("linear",))
    adapt(model, method)
    assert torch.equal(answers(model), base)
    start, declared = bits(model), set(trainable(model))
    assert len(declared) == 2 * len(find(model, ("linear",)))
    train(model)
    assert changed(start, bits(model)) == declared
    trained = answers(model)
    assert not close(trained, base, 1e-3)
    save_adapter(model, method, tmp_path / "adapter", {"model": name, "base": printed})
    fresh = tiny.build(name)
    load_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(answers(fresh), trained)
    merge(fresh)
    assert close(answers(fresh), trained)
    detach(model)
    assert not changed(before, bits(model))
    assert torch.equal(answers(model), base)


@every
def test_the_default_targets_are_in_every_layer(name: str) -> None:
    model = adapt(tiny.build(name), LoRA())
    assert carriers(model).keys() == find(model, ("query", "value")).keys()
    assert {len(carriers(layer)) for layer in layers(model)} == {1 if name == "pythia" else 2}  # fused or apart


@every
def test_packed_equals_separate_or_is_not_done(name: str) -> None:
    model = tiny.build(name)
    assert outline(model) == OUTLINES[name]
    if not outline(model).packs or name in READERS:
        return
    rows = some_rows(2)
    expected = torch.cat([alone(model, row) for row in rows])
    torch.testing.assert_close(logprobs(model, pack(rows)), expected, rtol=0, atol=1e-9)


def test_an_encoder_that_packs_reads_each_document_alone() -> None:
    model, rows = tiny.build("electra"), some_rows(2)
    assert outline(model).packs
    batch = pack(rows)
    with torch.no_grad():
        together = model(input_ids=batch.ids, position_ids=batch.positions, document_pieces=batch.pieces).logits
        for row, got in zip(rows, together.split(LENGTHS, 1), strict=True):
            torch.testing.assert_close(got, model(torch.tensor([row.ids])).logits, rtol=0, atol=1e-9)


@writers
@pytest.mark.parametrize("fill", [0, 2])
def test_scores_do_not_depend_on_padding(name: str, fill: int) -> None:
    dtype, bound = EXACT[name]
    model, rows = tiny.build(name, dtype), some_rows(fill)
    expected = [alone(model, row) for row in rows]
    torch.testing.assert_close(logprobs(model, pad(rows, fill)), torch.cat(expected), rtol=0, atol=bound)
    for got, wanted in zip(score(model, rows, fill), expected, strict=True):
        assert got == pytest.approx(float(wanted.sum()), abs=len(wanted) * bound, rel=0)


@writers
def test_decoding_with_a_cache_and_padding_equals_reading_all_of_it_each_time(name: str) -> None:
    dtype, bound = EXACT[name]
    model, prompts = tiny.build(name, dtype), [row.ids for row in some_rows(2)]
    got = generate(model, prompts, Greedy(), terminators=frozenset(), max_new=8, pad=2)
    for prompt, one in zip(prompts, got, strict=True):
        ids = list(prompt)
        for token, logprob in zip(one.ids, one.logprobs, strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert int(logits.argmax()) == token
            assert float(logits.log_softmax(-1)[token]) == pytest.approx(logprob, abs=bound, rel=0)
            ids.append(token)


@readers
def test_hidden_states_do_not_depend_on_padding(name: str) -> None:
    model = tiny.build(name)
    rows = [row.ids for row in some_rows(5)]
    fill = int(model.config.pad_token_id)
    width = max(LENGTHS) + 3
    ids = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        together = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        for row, got in zip(rows, together, strict=True):
            wanted = model.base_model(input_ids=torch.tensor([row])).last_hidden_state[0]
            torch.testing.assert_close(got[: len(row)], wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", tiny.MORE)
def test_what_is_said_to_fit_fits(name: str) -> None:
    model = tiny.build(name)
    ids = (torch.arange(context_of(model)) % 90 + 3)[None]
    with torch.no_grad():
        assert model(input_ids=ids).logits.isfinite().all()
    if name in ("opt", "roberta", "electra", "mpnet"):  # positions from a table: one more is not in it
        with pytest.raises((IndexError, RuntimeError)), torch.no_grad():
            model(input_ids=torch.cat([ids, ids[:, :1]], dim=1))


@every
def test_the_places_of_a_model_are_found(name: str) -> None:
    """Two layers, each with one attention and one feed-forward sublayer, read off the widths and off who is called."""
    model = tiny.build(name)
    assert len(layers(model)) == 2
    assert [(query.in_features, output.out_features) for query, output in attentions(model)] == [(32, 32)] * 2
    shapes = [
        (up.in_features, up.out_features, down.in_features, down.out_features) for up, down in feed_forwards(model)
    ]
    assert shapes == [(32, 64, 64, 32)] * 2
    called: list[nn.Module] = []
    for module in [embedding(model), *layers(model), *norms(model)]:
        module.register_forward_hook(lambda module, x, y: called.append(module))
    answers(model)
    assert called[0] is embedding(model)
    assert {id(module) for module in called} == {id(m) for m in [embedding(model), *layers(model), *norms(model)]}


def test_a_model_without_attention_says_so() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    for ask in (layers, norms, attentions, feed_forwards):
        with pytest.raises(ModelError, match="Sequential has no layers with attention that is known by name"):
            ask(model)
    with pytest.raises(ModelError, match="Sequential does not say where its tokens are looked up"):
        embedding(model)
