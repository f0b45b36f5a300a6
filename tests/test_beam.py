"""Beam search against every sequence there is, against transformers, and against numbers worked by hand."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from acclimate.generation.beam import Search, score, step
from acclimate.generation.decode import generate
from acclimate.generation.draft import Draft, Ends, Generated
from acclimate.generation.samplers import Beam, Greedy
from acclimate.generation.stops import Stops
from acclimate.models.outline import outline
from tests.test_decode import NEVER, PROMPTS, WRITERS, chosen_terminators, same, writer
from tests.tiny import llama

A, B, END = 0, 1, 2


def logs(*rows: Sequence[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def shown(search: Search) -> list[tuple[tuple[int, ...], float]]:
    return [(draft.ids, round(math.exp(draft.total), 6)) for draft in search.live]


def test_two_steps_by_hand() -> None:
    """A leads with 0.5 against 0.4, but B goes on with 0.9: BB 0.36 beats AA 0.25. A then END, 0.2, finishes at rank 3
    of all, so it does not count; the beam of two is BB, AA, of parents B (place 1) and A (place 0)."""
    beam, ends = Beam(2, 0.0), Ends(frozenset({END}), 9)
    first = step(Search(), logs([0.5, 0.4, 0.1]), beam, ends)
    assert shown(first) == [((A,), 0.5), ((B,), 0.4)]
    assert (first.parents, first.tokens, first.finished) == ((0, 0), (A, B), ())
    second = step(first, logs([0.5, 0.1, 0.4], [0.05, 0.9, 0.05]), beam, ends)
    assert shown(second) == [((B, B), 0.36), ((A, A), 0.25)]
    assert (second.parents, second.tokens, second.finished) == ((1, 0), (B, A), ())


def test_an_end_among_the_best_is_finished_and_another_takes_its_place() -> None:
    """END 0.6 leads and is finished; A 0.3 and B 0.1 live. With a penalty of 0 nothing below 0.6 can overtake it: done.
    With 1, ln 0.6 is -0.51 and A's ln 0.3 over 2 tokens -0.60, but over the 9 that there may be -0.13: the search goes
    on, unless 2 tokens are all there may be."""
    ends = Ends(frozenset({END}), 9)
    plain = step(Search(), logs([0.3, 0.1, 0.6]), Beam(2, 0.0), ends)
    assert (plain.live, [draft.ids for draft in plain.finished]) == ((), [()])
    mean = step(Search(), logs([0.3, 0.1, 0.6]), Beam(2, 1.0), ends)
    assert shown(mean) == [((A,), 0.3), ((B,), 0.1)]
    assert [round(math.exp(draft.total), 6) for draft in mean.finished] == [0.6]
    assert step(Search(), logs([0.3, 0.1, 0.6]), Beam(2, 1.0), Ends(frozenset({END}), 2)).live == ()


def test_the_beam_stays_full_however_many_terminators_lead() -> None:
    """Two live drafts, three terminators: A 0.4 leads, six ends follow, and B 0.06, eighth of all, fills the beam."""
    two = Search((Draft(), Draft()), (0, 0), (A, B))
    masses = logs([0.4, 0.06, 0.18, 0.18, 0.18], [0.05, 0.04, 0.32, 0.31, 0.28])
    after = step(two, masses, Beam(2), Ends(frozenset({2, 3, 4}), 9))
    assert (shown(after), len(after.finished)) == ([((A,), 0.4), ((B,), 0.06)], 1)


def test_score_counts_the_terminator() -> None:
    draft = Draft().add(A, -1.0, Ends(frozenset({END}), 9)).add(END, -3.0, Ends(frozenset({END}), 9))
    assert (draft.ids, draft.logprobs, draft.total, draft.finish) == ((A,), (-1.0, -3.0), -4.0, "stop")
    assert [score(draft, Beam(2, alpha)) for alpha in (0.0, 1.0, 2.0, -1.0)] == [-4.0, -2.0, -1.0, -8.0]
    assert draft.generated == Generated((A,), (-1.0,), "stop", END)


def tiny(seed: int, vocabulary: int) -> nn.Module:
    torch.manual_seed(seed)
    model = llama(vocab=vocabulary).to(torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model


def every(
    model: nn.Module, prompt: list[int], terminators: frozenset[int], max_new: int
) -> list[tuple[float, int, Generated]]:
    """(sum of log-probabilities, length with the terminator, completion) of every completion there is."""
    paths = list(itertools.product(range(model.config.vocab_size), repeat=max_new))
    with torch.no_grad():
        rows = model(torch.tensor([[*prompt, *path] for path in paths])).logits[:, len(prompt) - 1 : -1].log_softmax(-1)
    found = {}
    for path, row in zip(paths, rows.tolist(), strict=True):
        stop = next((place for place, token in enumerate(path) if token in terminators), None)
        drawn = path if stop is None else path[: stop + 1]
        kept = len(drawn) - (stop is not None)
        logprobs = [row[place][token] for place, token in enumerate(drawn)]
        one = Generated(drawn[:kept], tuple(logprobs[:kept]), "length" if stop is None else "stop")
        found[drawn] = (math.fsum(logprobs), len(drawn), one)
    return list(found.values())


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("terminators", [frozenset({2}), frozenset({0, 3}), NEVER])
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all(alpha: float, terminators: frozenset[int]) -> None:
    """Five tokens, four steps: at most 625 completions of 156 prefixes."""
    prompts = [[1, 4], [3], [2, 0, 2]]
    for seed in range(2):
        model = tiny(seed, 5)
        wanted = []
        for prompt in prompts:
            scored = every(model, prompt, terminators, 4)
            wanted.append(max(scored, key=lambda item: item[0] / item[1] ** alpha)[2])
        same(generate(model, prompts, Beam(700, alpha), terminators=terminators, max_new=4, pad=0), wanted)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("name", WRITERS)
def test_a_beam_of_one_is_greedy(name: str, alpha: float) -> None:
    model = writer(name)
    ends = chosen_terminators(model)
    wanted = generate(model, PROMPTS, Greedy(), terminators=ends, max_new=10, pad=0)
    same(generate(model, PROMPTS, Beam(1, alpha), terminators=ends, max_new=10, pad=0), wanted)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("name", WRITERS)
def test_a_beam_of_four_equals_transformers(name: str, alpha: float) -> None:
    """Their early_stopping=True is this definition: done when as many completions as beams are finished."""
    model = writer(name)
    ends = frozenset(range(3, 96, 12))
    ours = generate(model, PROMPTS, Beam(4, alpha), terminators=ends, max_new=10, pad=0)
    for prompt, one in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=4,
            early_stopping=True,
            length_penalty=alpha,
            max_new_tokens=10,
            eos_token_id=sorted(ends),
            pad_token_id=0,
        )
        written = theirs[0, 1:] if model.config.is_encoder_decoder else theirs[0, len(prompt) :]
        stop = next((place for place, token in enumerate(written.tolist()) if token in ends), len(written))
        assert tuple(written[:stop].tolist()) == one.ids
        assert one.finish == ("stop" if stop < len(written) else "length")


@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("name", WRITERS)
def test_beams_do_not_depend_on_batch_order_or_padding(name: str, pad: int) -> None:
    model = writer(name)
    free = generate(model, PROMPTS, Beam(3), terminators=NEVER, max_new=8, pad=0)
    ends = frozenset({free[0].ids[2], free[3].ids[5], *range(3, 96, 12)})
    alone = generate(model, PROMPTS, Beam(3), terminators=ends, max_new=8, pad=0, batch_tokens=1)
    assert len({len(one.ids) for one in alone}) > 1
    same(generate(model, PROMPTS, Beam(3), terminators=ends, max_new=8, pad=pad), alone)
    same(generate(model, PROMPTS[::-1], Beam(3), terminators=ends, max_new=8, pad=pad)[::-1], alone)


def test_a_wider_beam_never_finds_a_worse_sum_than_greedy_here() -> None:
    model = writer("llama")
    greedy = generate(model, PROMPTS, Greedy(), terminators=NEVER, max_new=8, pad=0)
    wide = generate(model, PROMPTS, Beam(8, 0.0), terminators=NEVER, max_new=8, pad=0)
    pairs = [(sum(one.logprobs), sum(two.logprobs)) for one, two in zip(greedy, wide, strict=True)]
    assert all(two >= one - 1e-9 for one, two in pairs)
    assert any(two > one + 1e-3 for one, two in pairs)


def test_a_prompt_that_is_done_leaves_the_batch() -> None:
    model, rows = writer("llama"), []
    outline(model)  # tries the model, once
    model.lm_head.register_forward_hook(lambda _, __, out: rows.append(len(out)))
    ends = frozenset(range(3, 96, 12))
    generate(model, PROMPTS, Beam(2, 0.0), terminators=ends, max_new=12, pad=0)
    assert rows[0] == len({tuple(prompt) for prompt in PROMPTS})  # equal ones are read once
    assert rows[1] == 2 * len(PROMPTS)
    assert rows[1:] == sorted(rows[1:], reverse=True)
    assert rows[-1] < rows[1]


def test_a_beam_ends_at_a_stop_string() -> None:
    model = writer("gpt2")

    def decode(ids: Sequence[int]) -> str:
        return "".join(f"{token}," for token in ids)

    (free,) = generate(model, [[5]], Beam(2, 0.0), terminators=NEVER, max_new=6, pad=0)
    stops = Stops((decode(free.ids[2:4]),), decode)
    (one,) = generate(model, [[5]], Beam(2, 0.0), terminators=NEVER, max_new=6, pad=0, stops=stops)
    assert one.finish == "stop"
    assert stops.text(one.ids) == decode(one.ids).removesuffix(stops.strings[0])
    assert one.ids == free.ids[:4]
    assert len(one.logprobs) == 4


def test_the_check_is_called_before_every_step() -> None:
    calls: list[int] = []
    generate(writer("llama"), [[5]], Beam(2), terminators=NEVER, max_new=5, pad=0, stop_check=lambda: calls.append(1))
    assert len(calls) == 5
