"""Prompt tuning and prefix embeddings: where they start, what they are nearest to, and PEFT's own."""

import pytest
import torch
from peft import PromptTuningConfig, TaskType, get_peft_model

from acclimate.errors import ModelError, RecipeError
from acclimate.methods import LoRA, PreEmbed, Prefix, PromptTuning
from acclimate.methods.delta import adapt
from acclimate.methods.prompt import nearest
from acclimate.methods.soft import soft_of, vectors_of
from tests import hand, tiny
from tests.adapted import adapted, close, dressed, some_ids, train


@pytest.mark.parametrize("build", ["llama", "gpt2"])
def test_soft_tokens_are_vectors_before_the_text(build: str) -> None:
    """The reference is given vectors instead of ids: P, then the words' own."""
    model = adapted(build, "prompt")
    ids, base = some_ids(), tiny.build(build)
    words = base.get_input_embeddings()(ids)
    prompt = vectors_of(model).expand(len(ids), -1, -1)
    wanted = base(inputs_embeds=torch.cat([prompt, words], 1)).logits
    assert close(model(dressed(model, ids)[0]).logits, wanted)


def test_prefix_and_infix_by_hand() -> None:
    model = adapted("gpt2", "preembed")
    ids, base = some_ids(1), tiny.build("gpt2")
    words, rows = base.transformer.wte(ids[0]), vectors_of(model)
    wanted = hand.gpt2(base, torch.cat([rows[:2], words[:5], rows[2:], words[5:]]))
    assert close(model(dressed(model, ids)[0]).logits[0], wanted)


def test_an_encoder_decoder_reads_them_and_writes_as_ever() -> None:
    model, ids = adapted("t5", "prompt"), some_ids()
    base = tiny.build("t5")
    prompt = vectors_of(model).expand(len(ids), -1, -1)
    read = torch.cat([prompt, base.shared(ids)], 1)
    wanted = base(inputs_embeds=read, decoder_input_ids=ids).logits
    assert close(model(input_ids=dressed(model, ids)[0], decoder_input_ids=ids).logits, wanted)


def test_starts() -> None:
    table = tiny.build("llama").get_input_embeddings().weight

    def start(method: PromptTuning, seed: int = 0) -> torch.Tensor:
        return vectors_of(adapt(tiny.build("llama"), method, seed=seed)).detach()

    random = start(PromptTuning(100, start="random"))
    assert 0.49 < random.max() <= 0.5
    assert -0.5 <= random.min() < -0.49
    assert abs(float(random.mean())) < 0.02
    drawn = start(PromptTuning(50))
    assert all((table == row).all(1).any() for row in drawn)  # every one is a word's
    assert len(drawn.unique(dim=0)) > 20
    assert not torch.equal(drawn, start(PromptTuning(50), seed=1))
    named = start(PromptTuning(4, "labels", ((5,), (6, 8))))
    assert torch.equal(named[0], table[5])
    assert torch.allclose(named[1], (table[6] + table[8]) / 2)
    assert all((table == row).all(1).any() for row in named[2:])
    assert torch.equal(start(PromptTuning(1, "labels", ((5,), (6, 8)))), table[5:6])


def test_the_vocabulary_is_the_common_part_of_it() -> None:
    tiny.BUILDS["wide"] = lambda: tiny.llama(vocab=6000)
    try:
        model = adapt(tiny.build("wide"), PromptTuning(200))
    finally:
        del tiny.BUILDS["wide"]
    rows, table = vectors_of(model).detach(), model.get_input_embeddings().weight.detach()
    ids = torch.cdist(rows, table).argmin(1)
    assert 4500 < ids.max() < 5000


def test_a_scaled_table_starts_at_what_it_answers() -> None:
    """Gemma multiplies its vectors by √d; a soft token takes the place of the product."""
    model = tiny.build("gemma")
    table = model.get_input_embeddings()
    scaled = table(torch.tensor([7]))[0].detach()
    assert torch.equal(vectors_of(adapt(model, PromptTuning(1, "labels", ((7,),))))[0], scaled)


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (PromptTuning(0), "prompt has 0 soft tokens; it needs at least 1, below the 256 tokens"),
        (PromptTuning(256), "below the 256 tokens that this model reads"),
        (PromptTuning(start="labels"), "starts from labels, but it was given none"),
        (PromptTuning(start="labels", words=((3,), ())), "starts from labels, but it was given none"),
        (PreEmbed(-1, 3), r"preembed has -1 \+ 3 soft tokens"),
        (PreEmbed(0, 0), r"preembed has 0 \+ 0 soft tokens"),
    ],
)
def test_what_makes_no_sense_is_refused(method: PromptTuning | PreEmbed, sentence: str) -> None:
    model = tiny.build("llama")
    with pytest.raises(RecipeError, match=sentence):
        adapt(model, method)
    assert soft_of(model) == ((), ())


def test_only_an_infix() -> None:
    assert soft_of(adapt(tiny.build("llama"), PreEmbed(0, 2))) == ((), (tiny.VOCAB, tiny.VOCAB + 1))


def test_nearest_words_by_hand() -> None:
    """(3, 4) has length 5: cosine 24/25 with (4, 3), 4/5 with (0, 1), −1 with (−3, −4)."""
    model = adapt(tiny.build("llama"), PromptTuning(1))
    table = model.get_input_embeddings()
    table.weight.data[:] = 0.0
    for word, pair in {11: (4.0, 3.0), 12: (0.0, 1.0), 13: (-3.0, -4.0)}.items():
        table.weight.data[word, :2] = torch.tensor(pair)
    vectors_of(model).data[0] = 0.0
    vectors_of(model).data[0, :2] = torch.tensor([3.0, 4.0])
    (best,) = nearest(model, count=2)
    assert [i for i, _ in best] == [11, 12]
    assert [c for _, c in best] == pytest.approx([0.96, 0.8])
    (every,) = nearest(model, count=1000)
    assert every[-1] == (13, pytest.approx(-1.0))
    with pytest.raises(ModelError, match="'other'"):
        nearest(model, "other")


def test_the_words_nearest_are_shown() -> None:
    method = PromptTuning(2, "labels", ((5,), (9,)))
    model = adapt(tiny.build("bert"), method)
    ((_, rows),) = method.learned(model, pytest.fail, lambda i: f"word {i}").items()
    assert [next(iter(row.items())) for row in rows.values()] == [
        ("word 5", pytest.approx(1.0)),
        ("word 9", pytest.approx(1.0)),
    ]


@pytest.mark.parametrize("method", [LoRA(2), Prefix(2, 0)])
def test_nothing_is_nearest_to_what_has_no_vectors(method: LoRA | Prefix) -> None:
    with pytest.raises(ModelError, match="'default' learned no vectors of soft tokens"):
        nearest(adapt(tiny.build("llama"), method))


def test_nearest_at_the_start_is_the_word_itself() -> None:
    model = adapt(tiny.build("bert"), PromptTuning(2, "labels", ((5,), (9,))))
    assert [best[0] for best in nearest(model)] == [(5, pytest.approx(1.0)), (9, pytest.approx(1.0))]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize("build", ["llama", "gpt2"])
def test_equal_to_peft(build: str) -> None:
    model = adapted(build, "prompt", torch.float32)
    other = get_peft_model(
        tiny.build(build, torch.float32), PromptTuningConfig(TaskType.CAUSAL_LM, num_virtual_tokens=3)
    )
    other.prompt_encoder["default"].embedding.weight.data.copy_(vectors_of(model))
    ids = some_ids()
    theirs = other(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert close(model(dressed(model, ids)[0]).logits, theirs, 1e-5)


def test_it_learns_and_the_words_stay() -> None:
    model = adapt(tiny.build("gpt2"), PromptTuning(3))
    table = model.get_input_embeddings().weight.detach().clone()
    before = vectors_of(model).detach().clone()
    train(model)
    assert torch.equal(model.get_input_embeddings().weight, table)
    assert bool(((vectors_of(model) - before).abs() > 0).all())
