"""Features: any layer of any build, independent of the batch, kept by content; and the rung that classifies by them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.errors import DataError, ModelError, RecipeError
from acclimate.methods import Head, LoRA
from acclimate.methods.delta import adapt
from acclimate.models import features as module
from acclimate.models.features import cached_features, encoded, features, pooled
from acclimate.models.heads import TaskModel
from acclimate.recipe import Recipe
from acclimate.recipe import load as load_recipe
from acclimate.run.feature_rung import Features, embedding, fit_features
from acclimate.run.prepare import prepare
from acclimate.tokens.codec import Encoded, codec
from acclimate.tokens.reading import Shape
from tests import spelling, tiny
from tests.adapted import answers, train

every = pytest.mark.parametrize("build", [*tiny.BUILDS, *tiny.MORE])
NARROW = "gemma2"  # its attention takes the softmax in float32, whatever the model is in
POOLS = ("mean", "last", "first")


def some_rows(count: int = 7) -> list[Encoded]:
    draw = torch.Generator().manual_seed(2)
    ids = [tuple(torch.randint(3, tiny.VOCAB, (3 + 2 * i,), generator=draw).tolist()) for i in range(count)]
    return [Encoded(i, (False,) * len(i)) for i in (ids[3], *ids[4:], *ids[:3], ids[5])]


ROWS = some_rows()


def every_state(model: nn.Module, row: Encoded) -> list[torch.Tensor]:
    """transformers' own list of one row's hidden states, each (time, d)."""
    read = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    with torch.no_grad():
        states = read(input_ids=torch.tensor([row.ids]), output_hidden_states=True).hidden_states
    return [state[0] for state in states]


@every
def test_every_layer_alone_and_in_any_batch(build: str) -> None:
    dtype, bound = (torch.float32, 1e-5) if build == NARROW else (torch.float64, 1e-9)
    model = tiny.build(build, dtype)
    alone = [every_state(model, row) for row in ROWS]
    before = answers(model)
    for layer in (0, 1, 2, -1, -2):
        for pool in POOLS:
            by_hand = {
                "mean": [states[layer].mean(0) for states in alone],
                "last": [states[layer][-1] for states in alone],
                "first": [states[layer][0] for states in alone],
            }[pool]
            wanted = torch.stack(by_hand).numpy()
            for budget, fill in ((40, 5), (10_000, 0)):
                got = features(model, ROWS, fill, layer, pool, budget=budget)
                assert torch.from_numpy(got).dtype == dtype
                assert np.abs(got - wanted).max() <= bound * np.abs(wanted).max()
    assert torch.equal(answers(model), before)  # a pass that ends early leaves nothing behind
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_what_pads_has_no_effect() -> None:
    model = tiny.build("gpt2")
    one, other = (features(model, ROWS, fill, 1) for fill in (2, 90))
    assert np.abs(one - other).max() <= 1e-9


def test_pooled_by_hand() -> None:
    """Real tokens (1, 2) and (3, 6), then padding; a second row of one token (5, 5)."""
    states = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]], [[5.0, 5.0], [7.0, 7.0], [7.0, 7.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert pooled(states, mask, "mean").tolist() == [[2.0, 4.0], [5.0, 5.0]]
    assert pooled(states, mask, "last").tolist() == [[3.0, 6.0], [5.0, 5.0]]
    assert pooled(states, mask, "first").tolist() == [[1.0, 2.0], [5.0, 5.0]]
    assert pooled(states.bfloat16(), mask, "mean").dtype == torch.float32


def test_layers_above_the_one_that_is_asked_for_do_not_run() -> None:
    model = tiny.build("llama").train()
    ran: list[int] = []
    for i, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    heard: list[int] = []
    features(model, ROWS, 2, 1, tick=heard.append)
    assert ran == [0]
    assert sum(heard) == len(ROWS)
    assert model.training
    with pytest.raises(ModelError, match=r"no layer 3: LlamaForCausalLM has 0 \(its embeddings\) to 2"):
        features(model, ROWS, 2, 3)


def test_dropout_is_off() -> None:
    model = tiny.llama(dropout=0.5).double().train()
    assert np.array_equal(features(model, ROWS, 2), features(model, ROWS, 2))


class Counting:
    """How often the model was really asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0

        def counted(*given, **named):  # type: ignore[no-untyped-def]
            self.times += 1
            return features(*given, **named)

        monkeypatch.setattr(module, "features", counted)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counting:
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path))
    return Counting(monkeypatch)


def test_features_are_kept_by_content(asked: Counting) -> None:
    model = tiny.build("llama")
    first = cached_features(model, ROWS, 2)
    heard: list[int] = []
    again = cached_features(
        tiny.build("llama"), ROWS, 7, budget=3, tick=heard.append
    )  # another object, the same content
    assert asked.times == 1
    assert np.array_equal(first, again)
    assert heard == [len(ROWS)]
    cached_features(model, ROWS, 2, 2)  # the last layer by its number
    assert asked.times == 1
    changes = [
        lambda: cached_features(model, ROWS, 2, 1),
        lambda: cached_features(model, ROWS, 2, -1, "last"),
        lambda: cached_features(model, ROWS[:3], 2),
        lambda: cached_features(model, ROWS[::-1], 2),
        lambda: cached_features(tiny.build("llama", seed=1), ROWS, 2),
        lambda: cached_features(tiny.build("llama", torch.float32), ROWS, 2),
    ]
    for times, change in enumerate(changes, start=2):
        change()
        assert asked.times == times


def test_a_newer_code_version_asks_again(asked: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    cached_features(model, ROWS, 2)
    monkeypatch.setattr(module, "CODE", module.CODE + 1)
    cached_features(model, ROWS, 2)
    assert asked.times == 2


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "text"])
def test_a_damaged_file_is_written_again(harm: str, asked: Counting, tmp_path: Path) -> None:
    model = tiny.build("llama")
    first = cached_features(model, ROWS, 2)
    (file,) = (tmp_path / "features").iterdir()
    whole = file.read_bytes()
    flipped = whole[:-3] + bytes([whole[-3] ^ 64]) + whole[-2:]
    file.write_bytes({"cut": whole[:-8], "flipped": flipped, "empty": b"", "text": b"not a file of tensors"}[harm])
    assert np.array_equal(cached_features(model, ROWS, 2), first)
    assert asked.times == 2
    assert file.read_bytes() == whole


def test_an_adapter_is_asked_itself(asked: Counting, tmp_path: Path) -> None:
    model = tiny.build("llama")
    base = cached_features(model, ROWS, 2)
    adapt(model, LoRA(rank=2))
    train(model)
    assert not np.allclose(cached_features(model, ROWS, 2), base)
    assert len(list((tmp_path / "features").iterdir())) == 1


def test_heads_have_no_say(asked: Counting) -> None:
    """The same trunk under a language-model head, under task heads, and bare is one entry of the cache."""
    given = tiny.build("bert")
    wanted = cached_features(given, ROWS, 2, 1)
    tasks = TaskModel(given.base_model)
    tasks.add(Shape("classify", ("a", "b")))
    for model in (tasks, given.base_model, adapt(given, Head())):
        assert np.array_equal(features(model, ROWS, 2, 1), wanted)
        assert np.array_equal(cached_features(model, ROWS, 2, 1), wanted)
    assert asked.times == 1


# ---- the rung


def recipe_at(home: Path, spec: Features, **task: object) -> Recipe:
    """The recipe of `home` with another method, as a comparison lays it over."""
    given = load_recipe(home / "recipe.yaml")
    return replace(given, method=spec, task=replace(given.task, **task))


HARDER = (Features(pool="last"), Features(classifier="neighbours"), Features(vectors="fasttext"))


@pytest.mark.parametrize(
    "spec",
    [
        Features(),
        Features(layer=1),
        Features(pool="last"),
        Features(classifier="svm"),
        Features(classifier="neighbours"),
        Features(vectors="word2vec"),
        Features(vectors="fasttext"),
    ],
)
def test_a_rung_fits_and_answers(spec: Features, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if spec.vectors:
        pytest.importorskip("gensim")
        monkeypatch.setattr("acclimate.data.vectors.BUCKETS", 100)
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path))
    prepared = prepare(recipe_at(home, spec))
    predictor, facts = fit_features(prepared, spec)
    said = predictor(prepared.parts.test.rows)
    right = [o.text == row.target for o, row in zip(said, prepared.parts.test.rows, strict=True)]
    assert sum(right) / len(right) >= (0.7 if spec in HARDER else 1.0)  # the word stands in the text
    assert facts["trainable_parameters"] == predictor.parameters
    assert facts["dev"][str(facts["strength"])] == max(facts["dev"].values())
    assert (tmp_path / "features").exists() == (not spec.vectors)
    again = spec.fit_predictor(prepared, 0)(prepared.parts.test.rows)
    assert [o.text for o in again] == [o.text for o in said]


def test_every_option_of_the_rung_changes_the_features(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path))
    prepared = prepare(recipe_at(home, Features()))
    texts = ["the good 3", "this bad 11 thing"]
    made = [
        embedding(prepared, spec, texts, 0)(texts).rows for spec in (Features(), Features(0), Features(pool="first"))
    ]
    assert not any(np.allclose(one, made[0]) for one in made[1:])


def test_long_texts_are_cut_from_the_front_and_counted() -> None:
    reader = codec(spelling.byte_level(bos=True, template=None))
    text = "the quick brown fox jumps over the lazy dog"
    whole, cut = encoded(reader, [text])[0], encoded(reader, [text], 6)[0]
    kept = 6 - len(reader.prefix) - len(reader.suffix)
    assert len(whole.ids) > 6 == len(cut.ids)
    assert cut.truncated == len(whole.ids) - 6
    assert cut.ids == (*reader.prefix, *reader.plain(text)[-kept:], *reader.suffix)
    bare = codec(spelling.byte_level(template=None))
    with pytest.raises(DataError, match=r"Text 2 .* has no token: ''"):
        encoded(bare, ["fox", ""])


def test_a_task_without_labels_is_refused(home: Path) -> None:
    prepared = prepare(recipe_at(home, Features(), labels=()))
    with pytest.raises(RecipeError, match=r"no labels; give task.labels"):
        fit_features(prepared, Features())
