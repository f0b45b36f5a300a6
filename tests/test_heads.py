"""Task heads: what they read, what they answer, what is descended, and that an adapter brings its head back."""

import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import nn
from transformers import BertModel

from acclimate.data.examples import Example, Output, Tagged
from acclimate.data.template import Template
from acclimate.errors import DataError, ModelError
from acclimate.evaluation.heads import AskHead, best_answer, best_span, best_threshold, chosen
from acclimate.interchange.adapter import heads_beside, load_adapter, save_adapter
from acclimate.methods import METHODS, Full, Head, LoRA
from acclimate.methods.delta import activate, adapt, names, trainable, using
from acclimate.methods.soft import settle, soft_of
from acclimate.metrics.labels import F1, Accuracy
from acclimate.models.fingerprint import fingerprint
from acclimate.models.heads import TaskModel, best_pool, is_causal, trunk_with_heads
from acclimate.models.load import Loaded
from acclimate.objectives.choose import Extract, Pick, within
from acclimate.objectives.classify import Classify, balanced
from acclimate.objectives.regress import Regress
from acclimate.objectives.several import Several
from acclimate.tokens.codec import codec
from acclimate.tokens.reading import Reader, Shape, first_tokens, frame, sheet, tokens_of
from acclimate.training.fit import fit
from tests import spelling, tiny

SENTENCE = "the quick brown fox jumps over the lazy dog this is a good and positive review of a bad film"
WORDS = SENTENCE.split(" ")
TEXTS = [" ".join(WORDS[i : i + n]) for i, n in ((0, 3), (4, 9), (2, 1), (9, 6), (11, 2))]
LABELS = Classify((0.5, 2.0, 1.25))
OBJECTIVES = {"classify": LABELS, "tag": LABELS, "regress": Regress(), "choose": Pick(), "extract": Extract()}
SHAPES = {
    "classify": Shape("classify", ("a", "b", "c"), "mean"),
    "tag": Shape("tag", ("O", "B-x", "I-x")),
    "regress": Shape("regress", (), "first", 1.5, 2.0),
    "choose": Shape("choose"),
    "extract": Shape("extract"),
}
TOY = ("fox", "dog", "good", "bad")
every_kind = pytest.mark.parametrize("kind", SHAPES)
BUILDS = {"bert": spelling.wordpiece, "gpt2": spelling.byte_level, "t5": spelling.unigram, "llama": spelling.byte_level}


def trunk(build: str, vocab: int, wide: bool = True) -> nn.Module:
    """The trunk of a tiny model; `wide`: with weights so large that a wrong mask shows."""
    torch.manual_seed(0)
    made = getattr(tiny, build)(vocab=vocab).base_model
    made = made.encoder if made.config.is_encoder_decoder else made
    for parameter in made.parameters():
        if wide and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return made.double().eval()


def model_of(build: str, *shapes: Shape, wide: bool = True) -> tuple[TaskModel, Reader]:
    tokenizer = BUILDS[build]()
    model = TaskModel(trunk(build, len(tokenizer), wide))
    for number, shape in enumerate(shapes):
        model.add(shape, f"task_{number}" if number else "default", seed=number)
    return model.eval(), Reader(codec(tokenizer), Template(), shapes[0], (), 256)


def rows_of(kind: str) -> list[Example | Tagged]:
    if kind == "tag":
        tags = [tuple(("O", "B-x", "I-x")[(i + j) % 3] for j in range(len(t.split()))) for i, t in enumerate(TEXTS)]
        return [
            Tagged(tuple(t.split()), said, f"rows:{i}") for i, (t, said) in enumerate(zip(TEXTS, tags, strict=True))
        ]
    if kind == "choose":
        offered = [tuple(WORDS[i : i + 2 + i % 2]) for i in range(len(TEXTS))]
        return [
            Example(t, c[i % 2], fields={"choices": c}) for i, (t, c) in enumerate(zip(TEXTS, offered, strict=True))
        ]
    if kind == "extract":
        context = " ".join(WORDS)
        return [
            Example("what jumps?", word, fields={"question": "what jumps?", "context": context + " " * i})
            for i, word in enumerate(("fox", "lazy dog", "review", "quick brown fox", "bad"))
        ]
    targets = ("3.5", "-1", "0", "2", "1.25") if kind == "regress" else ("a", "c", "b", "a", "a")
    return [Example(t, said, fields={"prompt": t}) for t, said in zip(TEXTS, targets, strict=True)]


def gradient(model: nn.Module, objective, batches) -> torch.Tensor:
    model.zero_grad()
    losses = [objective(model, batch) for batch in batches]
    sum(loss.total for loss in losses).backward()
    count = sum(float(loss.count) for loss in losses)
    return torch.cat([p.grad.flatten() / count for p in model.parameters() if p.grad is not None])


# what is read


@pytest.mark.parametrize("spell", [spelling.wordpiece, spelling.unigram])
def test_two_texts_are_joined_as_the_tokenizer_joins_them(spell):
    reader = codec(spell())
    ids, types = frame(reader).around(reader.plain("the lazy dog"), reader.plain("a bad film"))
    theirs = spell()("the lazy dog", "a bad film", return_token_type_ids=True)
    assert list(ids) == theirs["input_ids"]
    assert list(types) == theirs["token_type_ids"]


def test_a_pair_that_is_too_long_loses_the_end_of_its_longer_text():
    reader = Reader(codec(spelling.wordpiece()), Template(), SHAPES["regress"], ("one", "other"), 10)
    (read,) = reader(Example("", "1", fields={"one": "the quick fox", "other": "the lazy dog is a dog"}))
    text = reader.codec.decode(read.ids, special=True)
    assert text == "[CLS] the quick fox [SEP] the lazy dog is [SEP]"
    assert (read.truncated, read.size, sum(read.types[0])) == (2, 10, 5)


def test_a_long_text_keeps_its_end_in_a_decoder_and_its_beginning_in_an_encoder():
    long = Example("the quick brown fox jumps", fields={"prompt": "the quick brown fox jumps"})
    for build, expected in (("bert", "the quick brown"), ("gpt2", " fox jumps")):
        _, reader = model_of(build, SHAPES["classify"])
        limit = len(reader.codec.plain(expected)) + len(reader.codec.prefix + reader.codec.suffix)
        (read,) = replace(reader, limit=limit)(long, answered=False)
        assert reader.codec.decode(read.ids) == expected
        assert read.truncated > 0


def test_the_head_looks_at_the_first_token_of_every_word_that_leaves_one():
    reader = Reader(codec(spelling.wordpiece()), Template(), SHAPES["tag"], (), 256)
    row = Tagged(("fox", "\u200b", "positivejumps", "dog"), ("B-x", "O", "O", "I-x"), "here")
    (read,) = reader(row)
    looked = [reader.codec.tokenizer.convert_ids_to_tokens(read.pieces[0][p]) for p in read.places[0]]
    assert [word for word, _ in read.spans] == [0, 2, 3]  # the zero-width space leaves no token
    assert looked[0] == "fox"
    assert looked[-1] == "dog"
    assert not looked[1].startswith("##")
    assert read.targets == (1, 0, 2)


def test_words_are_found_by_the_characters_that_tokens_cover():
    assert first_tokens(["ab", "c", "de"], [(0, 1), (1, 2), (2, 4), (5, 7)]) == {0: 0, 1: 2, 2: 3}
    assert first_tokens(["ab", "c", "de"], [(0, 1), (1, 2)]) == {0: 0}


def test_a_long_context_is_read_in_windows_that_overlap_and_hold_the_answer():
    reader = Reader(codec(spelling.wordpiece()), Template(), SHAPES["extract"], (), 16)
    row = rows_of("extract")[1]
    windows = reader(row)
    context = row.fields["context"]
    assert len(windows) > 2
    assert all(read.size <= 16 for read in windows)
    covered = {i for read in windows for a, b in read.spans[1:] for i in range(a, b)}
    assert covered == {i for i, letter in enumerate(context) if letter != " "}
    said = {context[r.spans[r.targets[0]][0] : r.spans[r.targets[1]][1]] for r in windows if r.targets != (0, 0)}
    assert said == {"lazy dog"}
    assert any(read.targets == (0, 0) for read in windows)


def test_an_answer_that_its_context_lacks_is_refused():
    reader = Reader(codec(spelling.wordpiece()), Template(), SHAPES["extract"], (), 64)
    with pytest.raises(DataError, match="here: the answer 'cat' does not occur"):
        reader(Example("", "cat", fields={"question": "who?", "context": "the lazy dog"}, where="here"))
    assert tokens_of((4, 8), [(0, 0), (0, 3), (4, 6)]) == (0, 0)


# what is descended


def test_a_balanced_weight_makes_labels_weigh_alike():
    assert balanced((2, 6, 0)) == (8 / 6, 8 / 18, 0.0)
    weights = balanced((2, 6))
    assert 2 * weights[0] == pytest.approx(6 * weights[1], abs=1e-12)


def test_cross_entropy_is_the_weighted_sum_of_the_paper():
    logits, targets, weights = torch.randn(5, 3, dtype=torch.float64), [0, 2, 1, 1, 0], (0.5, 2.0, 1.25)
    total = count = 0.0
    for row, y in zip(logits.tolist(), targets, strict=True):
        total -= weights[y] * math.log(math.exp(row[y]) / sum(map(math.exp, row)))
        count += weights[y]
    loss = Classify(weights)(lambda batch: logits, sheetlike(torch.tensor(targets)))
    assert float(loss.total) == pytest.approx(total, abs=1e-9)
    assert float(loss.count) == pytest.approx(count, abs=1e-9)
    theirs = nn.functional.cross_entropy(logits, torch.tensor(targets), torch.tensor(weights, dtype=torch.float64))
    assert float(loss.total / loss.count) == pytest.approx(float(theirs), abs=1e-9)


class sheetlike:
    def __init__(self, targets, owner=None, starts=None):
        self.targets, self.owner, self.starts = targets, owner, starts


def test_choices_are_normalised_within_their_question():
    scores, owner, starts = torch.randn(6, dtype=torch.float64), [0, 0, 1, 1, 1, 2], [0, 2, 5]
    for i, (value, r) in enumerate(
        zip(within(scores, torch.tensor(owner), torch.tensor(starts)).tolist(), owner, strict=True)
    ):
        mine = [math.exp(s) for s, o in zip(scores.tolist(), owner, strict=True) if o == r]
        assert value == pytest.approx(math.log(math.exp(float(scores[i])) / sum(mine)), abs=1e-9)
    far = within(torch.tensor([1e5, 0.0, -1e5]), torch.tensor([0, 0, 1]), torch.tensor([0, 2]))
    assert far.tolist() == [0.0, -1e5, 0.0]


def test_extraction_is_the_mean_of_start_and_end():
    logits = torch.randn(5, 2, dtype=torch.float64)
    batch = sheetlike(torch.tensor([[1, 2], [0, 1]]), torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 3]))
    expected = 0.0
    for places, (s, e) in (((0, 1, 2), (1, 2)), ((3, 4), (3, 4))):
        for column, right in ((0, s), (1, e)):
            mine = [math.exp(float(logits[p, column])) for p in places]
            expected -= math.log(math.exp(float(logits[right, column])) / sum(mine)) / 2
    loss = Extract()(lambda _: logits, batch)
    assert float(loss.total) == pytest.approx(expected, abs=1e-9)
    assert int(loss.count) == 2


@every_kind
def test_every_partition_has_the_same_gradient(kind):
    model, reader = model_of("bert", SHAPES[kind])
    reader = replace(reader, limit=24)
    rows = [read for row in rows_of(kind) for read in reader(row)]
    whole = gradient(model, OBJECTIVES[kind], [sheet(rows, SHAPES[kind], 0)])
    for cut in ((1,), (2, 4), (1, 2, 3, 4)):
        parts = [rows[a:b] for a, b in zip((0, *cut), (*cut, len(rows)), strict=True)]
        other = gradient(model, OBJECTIVES[kind], [sheet(part, SHAPES[kind], 0) for part in parts])
        assert torch.allclose(other, whole, rtol=0, atol=1e-9 * float(whole.abs().max()))


# what is answered


@pytest.mark.parametrize("build", BUILDS)
@every_kind
def test_a_row_is_answered_the_same_alone_and_in_any_batch(build, kind):
    shape = replace(SHAPES[kind], pool="last" if build in ("gpt2", "llama") else SHAPES[kind].pool)
    model, reader = model_of(build, shape)
    rows = rows_of(kind)
    together = AskHead(model, reader)(rows)
    for budget in (1, 64):
        for one, other in zip(together, AskHead(model, reader, budget=budget)(rows[::-1])[::-1], strict=True):
            assert (one.text, one.tags, one.prompt_ids) == (other.text, other.tags, other.prompt_ids)
            assert one.value == pytest.approx(other.value, abs=1e-9)
            assert list(one.scores.values()) == pytest.approx(list(other.scores.values()), abs=1e-9)
            assert one.logprob == pytest.approx(other.logprob, abs=1e-9)


@torch.no_grad()
def test_a_text_is_pooled_as_it_says():
    model, reader = model_of("bert", Shape("regress"))
    bert = BertModel(model.config).double().eval()
    model = TaskModel(bert).double()
    rows = [read for row in rows_of("regress") for read in reader(row)]
    for pool in ("first", "mean", "last", "pooler"):
        shape = Shape("regress", (), pool)
        model.add(shape, pool)
        model.eval()
        got = model(
            sheet(
                [read for row in rows_of("regress") for read in replace(reader, shape=shape)(row)], shape, 0, (), pool
            )
        )
        for answer, row in zip(got, rows, strict=True):
            out = bert(torch.tensor([row.ids]))
            states = out.last_hidden_state[0]
            vector = {"first": states[0], "mean": states.mean(0), "last": states[-1], "pooler": out.pooler_output[0]}[
                pool
            ]
            assert torch.allclose(answer, model.heads[pool].out(vector), rtol=0, atol=1e-9)


def test_the_pool_left_open_suits_the_model(tmp_path):
    def pool(build: str, architecture: str) -> str:
        made = getattr(tiny, build)().base_model
        made.config.architectures = [architecture]
        return best_pool(Loaded(build, made.eval(), None, tmp_path))

    assert pool("bert", "BertForMaskedLM") == "first"
    assert pool("bert", "BertModel") == "mean"
    assert pool("t5", "T5ForConditionalGeneration") == "mean"
    assert pool("gpt2", "GPT2LMHeadModel") == "last"
    assert pool("llama", "LlamaForCausalLM") == "last"
    pooled = BertModel(tiny.bert().config)
    pooled.config.architectures = ["BertForMaskedLM"]
    assert best_pool(Loaded("bert", pooled.eval(), None, tmp_path)) == "pooler"
    (tmp_path / "modules.json").write_text("[]")
    assert pool("bert", "BertForMaskedLM") == "mean"
    assert is_causal(tiny.gpt2().base_model)
    assert not is_causal(tiny.bert().base_model.eval())


def test_the_best_span_is_the_best_of_all_that_are_short_enough():
    start, end = torch.randn(9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    for longest in (1, 3, 20):
        slow = max((float(start[i] + end[j]), (i, j)) for i in range(9) for j in range(i, min(9, i + longest)))
        value, span = best_span(start, end, longest)
        assert span == slow[1]
        assert value == pytest.approx(slow[0], abs=1e-12)


def test_the_likeliest_window_answers_and_none_where_that_is_likelier():
    reader = Reader(codec(spelling.wordpiece()), Template(), SHAPES["extract"], (), 16)
    row = rows_of("extract")[0]
    windows = reader(row, answered=False)
    answers = [torch.zeros(len(read.spans), 2, dtype=torch.float64) for read in windows]
    for logits in answers:
        logits[0] = 9.0  # not here
    last = windows[-1].spans
    answers[-1][[-2, -1], [0, 1]] = torch.tensor([12.0, 12.0], dtype=torch.float64)
    logprob, text = best_answer(row, windows, answers, 30, True)
    assert text == row.fields["context"][last[-2][0] : last[-1][1]]
    assert logprob < 0
    answers[-1][[-2, -1], [0, 1]] = 6.0
    assert best_answer(row, windows, answers, 30, True)[1] == ""
    assert best_answer(row, windows, answers, 30, False)[1] != ""


def test_the_threshold_is_where_the_metric_is_best():
    examples = [Example("", said) for said in ("no", "no", "no", "yes", "yes")]
    outputs = [Output(scores={"no": math.log(1 - p), "yes": math.log(p)}) for p in (0.1, 0.2, 0.3, 0.35, 0.6)]
    assert best_threshold(outputs, examples, Accuracy(("no", "yes"))) == pytest.approx(0.325)
    assert best_threshold(outputs, examples, F1(("no", "yes"))) == pytest.approx(0.325)
    assert chosen(dict(outputs[3].scores), 0.325) == "yes"
    assert chosen(dict(outputs[3].scores), 0.5) == "no"


# what trains, is kept, and comes back


def learn(model: TaskModel, objective, batches, steps: int, rate: float) -> list[float]:
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=rate)
    groups = (batches(i) for i in range(steps))
    model.train()
    losses = [step.loss for step in fit(model, groups, objective, optimizer, rate=lambda i: rate)]
    model.eval()
    return losses


@pytest.mark.parametrize("build", ["bert", "gpt2", "t5"])
def test_a_model_from_scratch_learns_a_toy_task(build):
    """Whether the fox comes before the dog, among other words: no single word tells."""
    shape = Shape("classify", ("no", "yes"), "last" if build == "gpt2" else "mean")
    model, reader = model_of(build, shape, wide=False)
    adapt(model.float(), Full())
    orders = [(words, "yes" if words.index("fox") < words.index("dog") else "no") for words in permutations(TOY)]
    rows = [Example(" ".join(words), said, fields={"prompt": " ".join(words)}) for words, said in orders]
    batch = [sheet([reader(row)[0] for row in rows], shape, reader.codec.pad)]
    learn(model, Classify(), lambda i: batch, 200, 3e-3)
    right = sum(o.text == row.target for o, row in zip(AskHead(model, reader)(rows), rows, strict=True))
    assert right > 0.95 * len(rows)


METHOD = {**{name: cls() for name, cls in METHODS.items()}, "lora": LoRA(rank=2)}


@pytest.mark.parametrize("method", METHOD)
def test_what_was_trained_beside_a_head_comes_back(method, tmp_path):
    kind = "classify"
    model, reader = model_of("bert", SHAPES[kind])
    untrained, stamp = model.state_dict()["heads.default.out.weight"].clone(), fingerprint(model)
    adapt(model, METHOD[method], seed=1, beside=heads_beside(model, METHOD[method]))
    soft = soft_reader(model, reader)
    rows = rows_of(kind)
    batches = [sheet([soft(row)[0] for row in rows], SHAPES[kind], 0)]
    learn(model, OBJECTIVES[kind], lambda i: batches, 4, 1e-2)
    settle(model)
    trained = AskHead(model, soft)(rows)
    save_adapter(model, METHOD[method], tmp_path / "adapter", {"base": stamp})
    fresh = TaskModel(model_of("bert", SHAPES[kind])[0].trunk)
    _, facts = load_adapter(fresh.eval(), tmp_path / "adapter")
    assert facts["heads"] == {"default": {**vars(SHAPES[kind]), "labels": list(SHAPES[kind].labels)}}
    for one, again in zip(trained, AskHead(fresh, soft)(rows), strict=True):
        assert list(one.scores.values()) == pytest.approx(list(again.scores.values()), abs=1e-6)
    if method != "full":
        assert torch.equal(model.state_dict()["heads.default.out.weight"], untrained)
        with using(model, None):
            assert AskHead(model, reader)(rows)[0].scores != trained[0].scores


def soft_reader(model: TaskModel, reader: Reader) -> Reader:
    soft = soft_of(model)
    return replace(reader, codec=replace(reader.codec, front=soft.front, back=soft.back))


def test_a_head_needs_a_model_that_takes_one(tmp_path):
    model, _ = model_of("bert", SHAPES["tag"])
    adapt(model, Head())
    save_adapter(model, Head(), tmp_path / "adapter", {})
    with pytest.raises(ModelError, match="takes none"):
        load_adapter(tiny.build("bert"), tmp_path / "adapter")
    model, _ = model_of("bert", SHAPES["classify"])
    with pytest.raises(ModelError, match="another head called 'default'"):
        load_adapter(model, tmp_path / "adapter")


def test_two_adapters_with_heads_of_their_own_share_a_trunk(tmp_path):
    asked, readers = {}, {}
    for kind in ("classify", "tag"):
        base, reader = model_of("bert", SHAPES[kind])
        model, readers[kind] = TaskModel(base.trunk), reader
        model.add(SHAPES[kind], kind)
        stamp = fingerprint(model)
        adapt(model, LoRA(rank=2), beside=heads_beside(model, LoRA()))
        batch = [sheet([read for row in rows_of(kind) for read in reader(row)], SHAPES[kind], 0, (), kind)]
        learn(model, OBJECTIVES[kind], lambda i, batch=batch: batch, 4, 1e-2)
        asked[kind] = AskHead(model, reader, kind)(rows_of(kind))
        save_adapter(model, LoRA(rank=2), tmp_path / kind, {"base": stamp})
    shared = TaskModel(trunk("bert", len(spelling.wordpiece()))).eval()
    for kind in asked:
        load_adapter(shared, tmp_path / kind, kind)
    assert set(names(shared)) == set(shared.heads) == {"classify", "tag"}
    for kind, before in asked.items():
        activate(shared, kind)
        for one, again in zip(before, AskHead(shared, readers[kind], kind)(rows_of(kind)), strict=True):
            assert (one.text, one.tags) == (again.text, again.tags)
            assert list(one.scores.values()) == pytest.approx(list(again.scores.values()), abs=1e-6)


def test_two_tasks_train_one_trunk_together():
    model, reader = model_of("bert", SHAPES["classify"], SHAPES["tag"], wide=False)
    adapt(model, LoRA(rank=4, targets=("linear",)), beside=heads_beside(model, LoRA()))
    readers = {"default": reader, "task_1": replace(reader, shape=SHAPES["tag"])}
    kinds = {"default": "classify", "task_1": "tag"}
    batches = [
        sheet([r for row in rows_of(kinds[task]) for r in each(row)], each.shape, 0, (), task)
        for task, each in readers.items()
    ]
    both = Several({"default": Classify(), "task_1": Classify()})
    with torch.no_grad():
        apart = [Classify()(model, batch).total for batch in batches]
        assert [both(model, batch).total for batch in batches] == apart
    losses = learn(model, both, lambda i: batches, 50, 1e-2)
    assert losses[-1] < 0.05 < losses[0]
    for task, each in readers.items():
        outputs = AskHead(model, each, task)(rows_of(kinds[task]))
        said = [o.tags or o.text for o in outputs]
        assert said == [row.tags if isinstance(row, Tagged) else row.target for row in rows_of(kinds[task])]


def test_the_trunk_alone_is_what_an_adapter_is_bound_to():
    model, _ = model_of("bert", SHAPES["tag"])
    stamp = fingerprint(model)
    model.add(SHAPES["classify"], "more", seed=5)
    assert fingerprint(model) == stamp
    with torch.no_grad():
        next(model.trunk.parameters()).add_(1)
    assert fingerprint(model) != stamp


def test_a_pooler_that_no_head_asks_is_left_out(tmp_path):
    made = BertModel(tiny.bert().config)
    kept = trunk_with_heads(Loaded("bert", made, None, tmp_path), pooler=True)
    assert kept.trunk.pooler is not None
    stamp = fingerprint(kept)
    model = trunk_with_heads(Loaded("bert", made, None, tmp_path), pooler=False)
    assert fingerprint(model) == stamp  # an adapter goes on the same trunk, whichever heads are beside
    with pytest.raises(ModelError, match="no pooler"):
        model.add(Shape("classify", ("a", "b"), "pooler"))
