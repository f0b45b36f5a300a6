"""Decoding equals a loop that knows no cache, no batch and no padding, and equals transformers' own generate."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from acclimate.errors import InputError, Interrupted, ModelError
from acclimate.generation.decode import batches, generate, stream
from acclimate.generation.draft import Generated
from acclimate.generation.samplers import Beam, Greedy, Sample, Sampler, uniforms
from acclimate.generation.stops import Stops, pieces
from tests.tiny import VOCAB, build

EOS = 2
NEVER: frozenset[int] = frozenset()
DECODERS = ["llama", "gpt2", "mistral"]
WRITERS = [*DECODERS, "t5", "bart"]
# Ragged, one of a single token, equal ones, the terminator at the front, inside and at the end.
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [EOS, 20, 21], [30, EOS, EOS, 33, 34], [40, 41, EOS], [12], [50, 51, 52, 53]]
WARM = Sample(temperature=1.3, top_k=20, top_p=0.95, repetition_penalty=1.1)


def writer(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    if name != "mistral":
        return build(name, dtype)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=4,
    )
    model = MistralForCausalLM(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model


def slow(
    model: nn.Module,
    prompt: Sequence[int],
    sampler: Sampler,
    terminators: frozenset[int],
    max_new: int,
    draws: torch.Tensor | None = None,
) -> Generated:
    """The oracle: every step reads the whole unpadded sequence anew."""
    ids: list[int] = []
    logprobs: list[float] = []
    for step in range(max_new):
        fed = [model.config.decoder_start_token_id] if model.config.is_encoder_decoder else list(prompt)
        whole = torch.tensor([fed + ids])
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                out = model(input_ids=torch.tensor([list(prompt)]), decoder_input_ids=whole, use_cache=False)
            else:
                out = model(input_ids=whole, use_cache=False)
        logits = out.logits[:, -1]
        seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, whole, True)
        draw = torch.zeros(1) if draws is None else draws[step : step + 1]
        token = int(sampler(logits, seen, draw))
        if token in terminators:
            return Generated(tuple(ids), tuple(logprobs), "stop")
        ids.append(token)
        logprobs.append(float(logits.log_softmax(-1)[0, token]))
    return Generated(tuple(ids), tuple(logprobs), "length")


def same(got: Sequence[Generated], wanted: Sequence[Generated], bound: float = 1e-9) -> None:
    assert [(one.ids, one.finish) for one in got] == [(one.ids, one.finish) for one in wanted]
    for one, other in zip(got, wanted, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=bound, rel=0)


def chosen_terminators(model: nn.Module) -> frozenset[int]:
    """Two ids that greedy decoding meets at different steps of different prompts, so that rows end apart."""
    free = generate(model, PROMPTS, Greedy(), terminators=NEVER, max_new=8, pad=0)
    return frozenset({free[0].ids[2], free[3].ids[5]})


@pytest.mark.parametrize("budget", [1, 150, 8192])
@pytest.mark.parametrize("pad", [0, EOS])
@pytest.mark.parametrize("name", WRITERS)
def test_greedy_equals_the_loop_without_cache_batch_or_padding(name: str, pad: int, budget: int) -> None:
    model = writer(name)
    ends = chosen_terminators(model) | {EOS}
    wanted = [slow(model, prompt, Greedy(), ends, 12) for prompt in PROMPTS]
    assert {one.finish for one in wanted} == {"stop", "length"} or len({len(one.ids) for one in wanted}) > 2
    same(generate(model, PROMPTS, Greedy(), terminators=ends, max_new=12, pad=pad, batch_tokens=budget), wanted)


@pytest.mark.parametrize("budget", [1, 8192])
@pytest.mark.parametrize("name", WRITERS)
def test_samples_equal_the_loop_with_the_same_draws(name: str, budget: int) -> None:
    model = writer(name)
    wanted = [slow(model, prompt, WARM, NEVER, 9, uniforms(3, row, 9)) for row, prompt in enumerate(PROMPTS)]
    same(generate(model, PROMPTS, WARM, terminators=NEVER, max_new=9, pad=EOS, seed=3, batch_tokens=budget), wanted)
    assert wanted[1].ids != wanted[5].ids  # the same prompt in two rows is drawn for twice


@pytest.mark.parametrize("name", WRITERS)
def test_order_does_not_matter_to_greedy(name: str) -> None:
    model = writer(name)
    forward = generate(model, PROMPTS, Greedy(), terminators=NEVER, max_new=6, pad=0)
    backward = generate(model, PROMPTS[::-1], Greedy(), terminators=NEVER, max_new=6, pad=0)
    same(backward[::-1], forward)


@pytest.mark.parametrize("name", WRITERS)
def test_greedy_equals_transformers_generate(name: str) -> None:
    model = writer(name)
    ends = chosen_terminators(model)
    ours = generate(model, PROMPTS, Greedy(), terminators=ends, max_new=10, pad=0)
    for prompt, one in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=10,
            eos_token_id=list(ends),
            pad_token_id=0,
        )
        written = theirs[0, 1:] if model.config.is_encoder_decoder else theirs[0, len(prompt) :]
        assert [token for token in written.tolist() if token not in ends] == list(one.ids)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 9e-2)])
def test_lower_precision_stays_near_float64(name: str, dtype: torch.dtype, bound: float) -> None:
    """A row alone against the same row in a batch; bfloat16 keeps 8 bits and the logits here reach about 4."""
    model = writer(name, dtype)
    together = generate(model, PROMPTS, Greedy(), terminators=NEVER, max_new=4, pad=0)
    alone = generate(model, PROMPTS, Greedy(), terminators=NEVER, max_new=4, pad=0, batch_tokens=1)
    assert all(len(one.ids) == 4 for one in together)
    first = [(one.logprobs[0], other.logprobs[0]) for one, other in zip(together, alone, strict=True)]
    assert max(abs(one - other) for one, other in first) < bound
    assert dtype == torch.bfloat16 or [one.ids for one in together] == [one.ids for one in alone]


def test_samples_repeat_with_their_seed_and_leave_the_global_generator_alone() -> None:
    model = writer("llama")
    state = torch.get_rng_state()
    one, two, other = (
        generate(model, PROMPTS, WARM, terminators=NEVER, max_new=8, pad=0, seed=seed) for seed in (1, 1, 2)
    )
    assert one == two
    assert all(a.ids != b.ids for a, b in zip(one, other, strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_a_sampled_row_does_not_depend_on_the_other_rows() -> None:
    model = writer("llama")
    full = generate(model, PROMPTS, WARM, terminators=frozenset(range(0, VOCAB, 5)), max_new=12, pad=0, seed=4)
    assert len({len(one.ids) for one in full}) > 2
    changed = [[*prompt, 9, 9, 9] if row % 2 else prompt for row, prompt in enumerate(PROMPTS)]
    half = generate(model, changed, WARM, terminators=frozenset(range(0, VOCAB, 5)), max_new=12, pad=0, seed=4)
    same(half[::2], full[::2])


def test_first_tokens_are_drawn_from_the_models_distribution() -> None:
    """Pearson's chi-square over the 95 degrees of freedom of 96 tokens; at 0.1 % it is 143."""
    model, count = writer("llama"), 6000
    drawn = generate(model, [[5, 6]] * count, Sample(), terminators=NEVER, max_new=1, pad=0)
    with torch.no_grad():
        masses = model(torch.tensor([[5, 6]])).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.tensor([one.ids[0] for one in drawn]), minlength=VOCAB)
    chi = float(((counts - masses * count) ** 2 / (masses * count)).sum())
    assert 50 < chi < 143


def test_logprobs_are_the_models_own_whatever_the_sampler_did() -> None:
    model = writer("gpt2")
    cold = Sample(temperature=0.3, top_k=2, repetition_penalty=1.5)
    (one,) = generate(model, [PROMPTS[0]], cold, terminators=NEVER, max_new=6, pad=0)
    with torch.no_grad():
        rows = model(torch.tensor([[*PROMPTS[0], *one.ids]])).logits[0].log_softmax(-1)
    expected = [float(rows[len(PROMPTS[0]) - 1 + step, token]) for step, token in enumerate(one.ids)]
    assert one.logprobs == pytest.approx(expected, abs=1e-9, rel=0)


def test_a_terminator_is_obeyed_left_out_and_only_when_it_is_written() -> None:
    model = writer("llama")
    free = generate(model, PROMPTS, Greedy(), terminators=NEVER, max_new=10, pad=0)
    assert all(one.finish == "length" and len(one.ids) == len(one.logprobs) == 10 for one in free)
    ends = frozenset({free[0].ids[4], free[4].ids[2]})
    for one, whole in zip(generate(model, PROMPTS, Greedy(), terminators=ends, max_new=10, pad=0), free, strict=True):
        stop = next((place for place, token in enumerate(whole.ids) if token in ends), 10)
        assert one.ids == whole.ids[:stop]
        assert one.logprobs == pytest.approx(whole.logprobs[:stop], abs=1e-9)
        assert one.finish == ("stop" if stop < 10 else "length")


def test_a_terminator_at_once_leaves_an_empty_completion() -> None:
    model = writer("gpt2")
    (free,) = generate(model, [[5, 6]], Greedy(), terminators=NEVER, max_new=1, pad=0)
    assert generate(model, [[5, 6]], Greedy(), terminators=frozenset(free.ids), max_new=5, pad=0) == [
        Generated((), (), "stop", free.ids[0])
    ]


@pytest.mark.parametrize("name", WRITERS)
def test_the_batch_shrinks_and_the_head_is_asked_at_the_last_position(name: str) -> None:
    model, shapes = writer(name), []
    ends = chosen_terminators(model)
    hook = model.get_output_embeddings().register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[:2])))
    done = generate(model, PROMPTS, Greedy(), terminators=ends, max_new=12, pad=0)
    hook.remove()
    drawn = [len(one.ids) + (one.finish == "stop") for one in done]
    assert len(set(drawn)) > 2
    writing = [sum(n > step for n in drawn) for step in range(max(drawn))]
    apart = len({tuple(prompt) for prompt in PROMPTS}) if name in ("llama", "gpt2") else writing[0]  # equal ones once
    assert [rows for rows, *_ in shapes] == [apart, *writing[1:]]
    assert {wide for _, wide in shapes[1:]} == {1}


def test_the_encoder_runs_once_a_batch() -> None:
    model, runs = writer("t5"), []
    model.get_encoder().register_forward_hook(lambda _, __, out: runs.append(len(out[0])))
    generate(model, PROMPTS, Greedy(), terminators=NEVER, max_new=5, pad=0)
    assert runs == [len(PROMPTS)]


@pytest.mark.parametrize("failing", [False, True])
def test_every_module_is_left_in_the_mode_it_was_in(failing: bool) -> None:
    model = writer("llama").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]

    def check() -> None:
        if failing:
            raise Interrupted("Stopped.")

    try:
        generate(model, PROMPTS, Greedy(), terminators=NEVER, max_new=3, pad=0, stop_check=check)
    except Interrupted:
        assert failing
    assert [module.training for module in model.modules()] == modes


def test_dropout_is_off_while_a_training_model_writes() -> None:
    model = writer("bart")
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5
    calm = generate(model, PROMPTS, Greedy(), terminators=NEVER, max_new=5, pad=0)
    same(generate(model.train(), PROMPTS, Greedy(), terminators=NEVER, max_new=5, pad=0), calm)
    with torch.no_grad():
        ids = torch.tensor([PROMPTS[0]])
        one, two = (model(input_ids=ids, decoder_input_ids=ids).logits for _ in range(2))
    assert not torch.equal(one, two)  # the dropout was real


def test_a_model_trains_after_it_wrote() -> None:
    model = writer("llama").train()
    generate(model, PROMPTS, Greedy(), terminators=NEVER, max_new=3, pad=0)
    model(torch.tensor([PROMPTS[0]])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_check_is_called_before_every_step() -> None:
    model, calls = writer("llama"), []
    generate(model, PROMPTS, Greedy(), terminators=NEVER, max_new=4, pad=0, stop_check=lambda: calls.append(1))
    assert len(calls) == 4


@pytest.mark.parametrize("name", ["llama", "gpt2", "bart"])
def test_more_than_the_context_is_refused_with_the_numbers(name: str) -> None:
    model = writer(name)
    fits, long = ([5] * 240, [5] * 257) if name == "bart" else ([5] * 240, [5] * 241)
    assert len(generate(model, [fits], Greedy(), terminators=NEVER, max_new=16, pad=0)[0].ids) == 16
    said = rf"Prompt 1 has {len(long)} tokens and 16 more are asked for; .* was built for 256"
    with pytest.raises(ModelError, match=said):
        generate(model, [fits, long], Greedy(), terminators=NEVER, max_new=16, pad=0)


def test_relative_positions_have_no_bound() -> None:
    done = generate(writer("t5"), [[5] * 600], Greedy(), terminators=NEVER, max_new=2, pad=0)
    assert len(done[0].ids) == 2


def test_what_cannot_be_written_is_refused() -> None:
    model = writer("llama")
    with pytest.raises(InputError, match="Prompt 1 has no tokens"):
        generate(model, [[5], []], Greedy(), terminators=NEVER, max_new=3, pad=0)
    with pytest.raises(InputError, match="max_new is 0"):
        generate(model, [[5]], Greedy(), terminators=NEVER, max_new=0, pad=0)
    with pytest.raises(ModelError, match="BertForMaskedLM has no head that writes text"):
        generate(build("bert"), [[5]], Greedy(), terminators=NEVER, max_new=3, pad=0)
    bart = writer("bart")
    bart.config.decoder_start_token_id = bart.generation_config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="names no decoder_start_token_id"):
        generate(bart, [[5]], Greedy(), terminators=NEVER, max_new=3, pad=0)
    assert generate(model, [], Greedy(), terminators=NEVER, max_new=3, pad=0) == []


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_sick_model_is_named(poison: float) -> None:
    model = writer("llama")
    with torch.no_grad():
        model.lm_head.weight[7] = poison
    with pytest.raises(ModelError, match="LlamaForCausalLM computes NaN or infinite logits"):
        generate(model, [[5]], Greedy(), terminators=NEVER, max_new=3, pad=0)


def test_an_id_past_the_vocabulary_is_read_and_never_written() -> None:
    model = writer("llama")
    wider = nn.Embedding(VOCAB + 3, 32, dtype=torch.float64)
    with torch.no_grad():
        wider.weight[:VOCAB] = model.model.embed_tokens.weight
    model.model.embed_tokens = wider
    prompts = [[VOCAB, VOCAB + 2, 5, 6], [7]]
    done = generate(model, prompts, WARM, terminators=NEVER, max_new=5, pad=0)
    moved = generate(model, [[VOCAB + 1, VOCAB + 2, 5, 6], [7]], WARM, terminators=NEVER, max_new=5, pad=0)
    assert done[0].logprobs[0] != moved[0].logprobs[0]
    assert done[1] == moved[1]


@pytest.mark.parametrize("name", WRITERS)
def test_a_stop_string_ends_a_row_and_only_that_row(name: str) -> None:
    """Ids are written as numbers between commas, so every stop below straddles tokens."""
    model = writer(name)

    def decode(ids: Sequence[int]) -> str:
        return "".join(f"{token}," for token in ids)

    free = generate(model, PROMPTS, Greedy(), terminators=NEVER, max_new=8, pad=0)
    stops = Stops((f",{free[0].ids[2]},{free[0].ids[3]},",), decode)
    cut = generate(model, PROMPTS, Greedy(), terminators=NEVER, max_new=8, pad=0, stops=stops)
    for one, whole in zip(cut, free, strict=True):
        hits = [n for n in range(1, 9) if stops.strings[0] in decode(whole.ids[:n])]
        assert one.ids == (whole.ids[: hits[0]] if hits else whole.ids)
        assert len(one.logprobs) == len(one.ids)
        assert one.finish == ("stop" if hits else "length")
        assert stops.text(one.ids) == decode(whole.ids).split(stops.strings[0])[0]
    assert len(cut[0].ids) < 8


@pytest.mark.parametrize("sampler", [Greedy(), WARM])
def test_a_stream_yields_the_ids_of_generate_as_they_are_drawn(sampler: Sampler) -> None:
    model, calls = writer("llama").train(), []
    (whole,) = generate(model, [PROMPTS[0]], sampler, terminators=NEVER, max_new=7, pad=0, seed=9)
    told = {"max_new": 7, "seed": 9, "stop_check": lambda: calls.append(1)}
    running = stream(model, PROMPTS[0], sampler, terminators=NEVER, **told)
    assert not calls
    assert [next(running), next(running)] == list(whole.ids[:2])
    assert len(calls) == 2
    assert torch.is_grad_enabled()
    assert all(module.training for module in model.modules())
    assert list(running) == list(whole.ids[2:])
    ended = stream(model, PROMPTS[0], sampler, terminators=frozenset({whole.ids[3]}), max_new=7, seed=9)
    assert list(ended) == list(whole.ids[: whole.ids.index(whole.ids[3])])


def test_a_stream_becomes_text_without_its_stop() -> None:
    model = writer("gpt2")

    def decode(ids: Sequence[int]) -> str:
        return "".join(f"{token}," for token in ids)

    (free,) = generate(model, [[5]], Greedy(), terminators=NEVER, max_new=6, pad=0)
    stops = Stops((f",{free.ids[3]},",), decode)
    ids = stream(model, [5], Greedy(), terminators=NEVER, max_new=6, stops=stops)
    assert "".join(pieces(ids, stops)) == decode(free.ids).split(stops.strings[0])[0]


def test_a_stream_refuses_at_once() -> None:
    with pytest.raises(InputError, match="Prompt 0 has no tokens"):
        stream(writer("llama"), [], Greedy(), terminators=NEVER, max_new=3)
    with pytest.raises(InputError, match="stream with Greedy or Sample"):
        stream(writer("llama"), [5], Beam(2), terminators=NEVER, max_new=3)  # type: ignore[arg-type]


def test_batches_by_hand() -> None:
    """Longest first. 90 + 10 = 100 tokens a row: two fit 250. Then 60 + 10 = 70: three. A short row costs 64."""
    lengths = [5, 60, 90, 50, 5, 90, 60]
    assert batches(lengths, 10, 250, Greedy()) == [(2, 5), (1, 6, 3), (0, 4)]
    assert batches(lengths, 10, 250, Beam(2)) == [(2,), (5,), (1,), (6,), (3,), (0,), (4,)]
    assert batches([500, 3], 10, 250, Greedy()) == [(0,), (1,)]
    assert batches([], 10, 250, Greedy()) == []


@given(st.lists(st.integers(1, 400), max_size=30), st.integers(1, 200), st.integers(1, 2000), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_batches_hold_everything_once_within_the_budget(lengths: list[int], new: int, budget: int, width: int) -> None:
    plan = batches(lengths, new, budget, Beam(width))
    assert sorted(place for batch in plan for place in batch) == list(range(len(lengths)))
    for batch in plan:
        assert len(batch) == 1 or len(batch) * width * (max(lengths[place] for place in batch) + new) <= budget
