"""Several changes become one: against loops from the papers, numbers by hand, and PEFT where it computes the same."""

import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import peft
import pytest
import torch
from peft.utils.merge_utils import dare_linear, task_arithmetic, ties
from torch import Tensor, nn

from acclimate.cli.main import app
from acclimate.errors import ModelError, UsageError
from acclimate.interchange.adapter import load_adapter, save_adapter
from acclimate.methods import DoRA, Full, Houlsby, LoRA, RsLoRA
from acclimate.methods.combine import (
    WAYS,
    Dare,
    Linear,
    Ties,
    Way,
    add,
    changes_of,
    combine,
    concatenate,
    disjoint_mean,
    factors_of,
    is_low_rank,
    rescaled,
    trim,
)
from acclimate.methods.delta import activate, adapt, base, carriers, merge, names, trainable
from acclimate.models.fingerprint import fingerprint
from acclimate.models.load import load
from tests import tiny
from tests.adapted import SPECS, answers, bits, changed, close, train
from tests.runs import verb

ONLY = {"bitfit": "gpt2", "head": "llama"}  # merge on this build alone: the others have no biases, or tied heads
Changes = list[dict[str, Tensor]]


def some_changes(count: int = 3, seed: int = 0) -> Changes:
    """Two tensors each; the last change lacks one."""
    draw = torch.Generator().manual_seed(seed)
    made = [
        {name: torch.randn(*shape, generator=draw, dtype=torch.float64) for name, shape in (("a", (4, 5)), ("b", (7,)))}
        for _ in range(count)
    ]
    del made[-1]["b"]
    return made


def places(change: dict[str, Tensor]) -> list[tuple[str, int]]:
    return [(key, at) for key, tensor in change.items() for at in range(tensor.numel())]


def slow_ties(changes: Changes, weights: Sequence[float], keep: float) -> dict[str, Tensor]:
    """Algorithm 1 of the paper, number by number."""
    trimmed = []
    for weight, change in zip(weights, changes, strict=True):
        every = [(abs(weight * change[key].flatten()[at].item()), key, at) for key, at in places(change)]
        kept = sorted(every, reverse=True)[: math.ceil(keep * len(every))]
        trimmed.append({(key, at): weight * change[key].flatten()[at].item() for _, key, at in kept})
    out = {key: torch.zeros_like(changes[0][key]) for key in changes[0]}
    for key, at in places(changes[0]):
        values = [one.get((key, at), 0.0) for one in trimmed]
        positive = sum(v for v in values if v > 0)
        negative = -sum(v for v in values if v < 0)
        sign = 1 if positive > negative else -1
        agreeing = [v for v in values if v * sign > 0]
        out[key].view(-1)[at] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return out


def same(one: dict[str, Tensor], other: dict[str, Tensor], bound: float = 1e-9) -> bool:
    return one.keys() == other.keys() and all(bool((one[key] - other[key]).abs().max() <= bound) for key in one)


@pytest.mark.parametrize("keep", [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, 0.3, -2.0)])
def test_ties_is_algorithm_1(keep: float, weights: tuple[float, ...]) -> None:
    changes = some_changes()
    assert same(combine(changes, weights, Ties(keep)), slow_ties(changes, weights, keep))


def test_ties_by_hand() -> None:
    """Half of each stays: 4 and 3; −5 and 2; −1 and 6. Sums −1, 9, 1·(−1)… the signs that win are −, +, −, +."""
    changes = [torch.tensor(v) for v in ([4.0, 3.0, -1.0, 0.5], [-5.0, 0.5, 1.0, 2.0], [0.1, 6.0, -1.0, 0.2])]
    merged = combine([{"w": c} for c in changes], [1.0, 1.0, 1.0], Ties(0.5))["w"]
    assert merged.tolist() == [-5.0, 4.5, -1.0, 2.0]


def test_ties_is_pefts_where_weights_are_equal() -> None:
    """PEFT lets the unweighted changes vote, so only the paper's case of one λ for all is the same."""
    draw = torch.Generator().manual_seed(0)
    flat = [torch.randn(100, generator=draw, dtype=torch.float64) for _ in range(3)]
    for scale in (1.0, 0.4):
        theirs = ties(flat, torch.full((3,), scale, dtype=torch.float64), 0.3)
        assert same(combine([{"w": c} for c in flat], [scale] * 3, Ties(0.3)), {"w": theirs})


def test_an_adapter_of_weight_zero_has_no_vote() -> None:
    changes = some_changes()
    assert same(combine(changes, [1.0, 0.0, 1.0], Ties(0.5)), combine([changes[0], changes[2]], [1.0, 1.0], Ties(0.5)))


def test_opposite_changes_of_equal_size_cancel() -> None:
    assert disjoint_mean(torch.tensor([[2.0, 1.0], [-2.0, 3.0]])).tolist() == [0.0, 2.0]


def test_trimming_looks_at_all_tensors_of_a_change_together() -> None:
    kept = trim({"a": torch.tensor([1.0, -9.0, 2.0]), "b": torch.tensor([-8.0, 7.0, 0.0])}, 0.5)
    assert {key: tensor.tolist() for key, tensor in kept.items()} == {"a": [0.0, -9.0, 0.0], "b": [-8.0, 7.0, 0.0]}


def test_linear_is_the_weighted_sum() -> None:
    changes = some_changes()
    got = combine(changes, [0.7, 0.3, 2.0], Linear())
    assert torch.equal(got["b"], 0.7 * changes[0]["b"] + 0.3 * changes[1]["b"])
    theirs = task_arithmetic([change["a"] for change in changes], torch.tensor([0.7, 0.3, 2.0], dtype=torch.float64))
    assert same({"a": got["a"]}, {"a": theirs})


def test_dare_by_hand() -> None:
    """p = 0.75: what stays is four times as large."""
    kept = rescaled(torch.tensor([1.0, -2.0, 3.0]), torch.tensor([True, False, True]), 0.75)
    assert kept.tolist() == [4.0, 0.0, 12.0]


@pytest.mark.parametrize("drop", [0.1, 0.5, 0.9])
def test_dare_drops_so_many_keeps_the_mean_and_draws_for_each_change(drop: float) -> None:
    size = 40_000
    one = {"w": torch.ones(size, dtype=torch.float64), "v": torch.ones(size, dtype=torch.float64)}
    got = combine([one, {key: 10 * tensor for key, tensor in one.items()}], [1.0, 1.0], Dare(drop, seed=3))
    values, counts = got["w"].unique(return_counts=True)
    rate = 1 / (1 - drop)
    assert values.tolist() == pytest.approx([0.0, rate, 10 * rate, 11 * rate])
    wanted = [drop**2, drop * (1 - drop), drop * (1 - drop), (1 - drop) ** 2]  # independent, so products
    for count, share in zip(counts.tolist(), wanted, strict=True):
        assert abs(count - size * share) < 5 * math.sqrt(size * share)
    assert abs(float(got["w"].mean()) - 11) < 5 * 11 * math.sqrt(drop / (1 - drop) / size)
    assert not torch.equal(got["w"], got["v"])


def test_dare_is_a_matter_of_its_seed_alone() -> None:
    changes = some_changes()
    first = combine(changes, [1.0] * 3, Dare(0.5))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    backwards = [dict(reversed(list(change.items()))) for change in changes]
    assert same(combine(backwards, [1.0] * 3, Dare(0.5)), {key: first[key] for key in ("b", "a")}, 0.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(combine(changes, [1.0] * 3, Dare(0.5, seed=1)), first)
    assert same(combine(changes, [1.0] * 3, Dare(0.0)), combine(changes, [1.0] * 3, Linear()), 0.0)


def test_dare_is_pefts_but_for_the_draw() -> None:
    """What PEFT keeps, told from its answer, gives here the same numbers."""
    draw = torch.Generator().manual_seed(0)
    flat = [torch.randn(60, generator=draw, dtype=torch.float64) for _ in range(2)]
    torch.manual_seed(2)
    theirs = dare_linear(flat, torch.tensor([0.7, 0.3], dtype=torch.float64), density=0.4)
    torch.manual_seed(2)
    masks = [torch.bernoulli(torch.full_like(change, 0.4)).bool() for change in flat]
    parts = [{"w": rescaled(c, m, 0.6)} for c, m in zip(flat, masks, strict=True)]
    assert same(combine(parts, [0.7, 0.3], Linear()), {"w": theirs})


@pytest.mark.parametrize(
    ("way", "sentence"),
    [
        (Ties(0.0), "TIES keeps 0.0 of each change; the share is above 0 and at most 1"),
        (Ties(1.1), "TIES keeps 1.1"),
        (Dare(1.0), "DARE drops 1.0 of each change; the probability is at least 0 and below 1"),
        (Dare(-0.1), "DARE drops -0.1"),
    ],
)
def test_impossible_constants_are_refused(way: Way, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        combine(some_changes(), [1.0] * 3, way)
    with pytest.raises(UsageError, match="3 adapters and 2 weights"):
        combine(some_changes(), [1.0] * 2, way)
    assert {type(way) for way in (Linear(), Ties(), Dare())} == set(WAYS.values())


@pytest.mark.parametrize("build", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "rslora", "bitfit", "head"])
def test_a_change_is_what_merging_adds(build: str, method: str) -> None:
    model = adapt(tiny.build(build), SPECS[method])
    train(model)
    before, adapter = bits(model), answers(model)
    if ONLY.get(method, build) != build:
        with pytest.raises(ModelError):
            merge(model)
        with pytest.raises(ModelError):
            changes_of(model)
        assert not changed(before, bits(model))
        return
    change = changes_of(model)
    assert not changed(before, bits(model))
    assert torch.equal(answers(model), adapter)
    plain = tiny.build(build)
    kept = {key: p.data for key, p in base(plain).items()}
    copies = {key: tensor.clone() for key, tensor in kept.items()}
    add(plain, change)
    assert close(answers(plain), adapter)
    assert all(torch.equal(kept[key], copies[key]) for key in kept)


def test_a_small_change_of_a_bfloat16_base_is_not_rounded_away() -> None:
    model = adapt(tiny.build("llama", torch.bfloat16), LoRA(2, 1e-4))
    for module in carriers(model).values():
        nn.init.normal_(module.delta["default"].b)
    delta = model.get_submodule("model.layers.0.self_attn.q_proj").delta["default"]
    wanted = (delta.scale * delta.b.double() @ delta.a.double()).detach()
    got = changes_of(model)["model.layers.0.self_attn.q_proj.weight"]
    assert got.dtype == torch.float32
    assert close(got.double(), wanted, 1e-6)


def test_what_cannot_be_merged_says_so() -> None:
    with pytest.raises(ModelError, match="cannot be merged"):
        changes_of(adapt(tiny.build("llama"), Houlsby()))
    with pytest.raises(ModelError, match="carries no adapter"):
        changes_of(tiny.build("llama"))
    with pytest.raises(ModelError, match=r"has no tensor no\.such, which the change is made for"):
        add(tiny.build("llama"), {"no.such": torch.zeros(1)})


def two(build: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model with two trained LoRAs of other ranks, scales and targets."""
    model = tiny.build(build, dtype)
    for seed, (name, method) in enumerate({"a": LoRA(2), "b": RsLoRA(3, 5.0, targets=("linear",))}.items()):
        adapt(model, method, name=name, seed=seed)
        train(model)
    return model


@pytest.mark.parametrize("build", ["llama", "gpt2", "t5", "bert"])
def test_a_sum_of_loras_is_a_lora(build: str, tmp_path: Path) -> None:
    model = two(build)
    parts, before = [changes_of(model, name) for name in ("a", "b")], bits(model)
    method = concatenate(model, [factors_of(model, name) for name in "ab"], [0.7, -0.4], "sum")
    assert (method.rank, method.alpha, method.dropout) == (5, 5.0, 0.0)
    assert not changed(before, bits(model))
    got, summed = changes_of(model, "sum"), combine(parts, [0.7, -0.4], Linear())
    assert same(got, summed)
    wanted = tiny.build(build)
    add(wanted, summed)
    activate(model, "sum")
    assert close(answers(model), answers(wanted))
    save_adapter(model, method, tmp_path / "sum", {"model": build}, "sum")
    fresh = tiny.build(build)
    load_adapter(fresh, tmp_path / "sum")
    assert torch.equal(answers(fresh), answers(model))


@pytest.mark.parametrize("build", ["llama", "gpt2", "bert"])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's own
def test_a_sum_of_loras_is_pefts_concatenation(build: str, tmp_path: Path) -> None:
    model = tiny.build(build, torch.float32)
    for seed, name in enumerate("ab"):
        method = LoRA(2 + seed, targets=("query", "down"))
        adapt(model, method, name=name, seed=seed)
        train(model)
        save_adapter(model, method, tmp_path / name, {}, name)
    there = peft.PeftModel.from_pretrained(tiny.build(build, torch.float32), tmp_path / "a", adapter_name="a")
    there.load_adapter(tmp_path / "b", "b")
    there.add_weighted_adapter(["a", "b"], [0.7, 0.4], "sum", combination_type="cat")
    there.set_adapter("sum")
    concatenate(model, [factors_of(model, name) for name in "ab"], [0.7, 0.4], "sum")
    activate(model, "sum")
    assert close(answers(model), answers(there.eval()), 1e-5)
    activate(model, "a")
    assert not close(answers(model), answers(there), 1e-3)


def test_what_is_no_lora_is_no_part_of_one() -> None:
    model = two("llama")
    adapt(model, DoRA(2), name="c")
    assert [is_low_rank(model, name) for name in "abc"] == [True, True, False]
    before = names(model)
    with pytest.raises(ModelError, match="'c' is no LoRA, so a LoRA cannot express it"):
        factors_of(model, "c")
    with pytest.raises(ModelError, match="No adapter on this model is called 'd'"):
        factors_of(model, "d")
    assert names(model) == before


FACTS = {"chat": "", "tokenizer": "", "task": {"labels": []}}


@pytest.fixture(scope="module")
def shelf(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of the small model of `home`, trained a little: two LoRAs, a DoRA, and all weights."""
    folder = tmp_path_factory.mktemp("shelf")
    methods = {"one": LoRA(2), "two": LoRA(3, targets=("linear",)), "dora": DoRA(2), "full": Full()}
    for seed, (name, method) in enumerate(methods.items()):
        model = load(f"{home}/model").model
        facts = {**FACTS, "model": "some/base", "base": fingerprint(model)}
        adapt(model, method, seed=seed)
        for parameter in trainable(model).values():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        save_adapter(model, method, folder / name, facts)
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return {key: p.detach() for key, p in base(load(str(folder)).model).items()}


def words(home: Path, shelf: Path, names: str, out: Path) -> list[object]:
    given = [word for name in names.split() for word in ("--adapter", shelf / name)]
    return ["combine", "--model", home / "model", *given, "--out", out]


def test_the_verb_sums_loras_into_a_lora(home: Path, shelf: Path, tmp_path: Path) -> None:
    verb(*words(home, shelf, "one two", tmp_path / "sum"), "--weight", "0.7", "--weight", "0.3")
    facts = json.loads((tmp_path / "sum" / "acclimate.json").read_text())
    assert facts["combined"] == {
        "way": {"name": "linear"},
        "of": [{"adapter": str(shelf / name), "weight": w} for name, w in (("one", 0.7), ("two", 0.3))],
    }
    assert (facts["method"]["rank"], facts["chat"], facts["task"]) == (5, "", {"labels": []})
    merged_by_verb(home, tmp_path / "sum", tmp_path / "merged", "--adapter")
    start = weights(home / "model")
    parts = []
    for name in ("one", "two"):
        merged_by_verb(home, shelf / name, tmp_path / name, "--adapter")
        parts.append({key: tensor - start[key] for key, tensor in weights(tmp_path / name).items()})
    for key, tensor in weights(tmp_path / "merged").items():
        torch.testing.assert_close(tensor, start[key] + 0.7 * parts[0][key] + 0.3 * parts[1][key], rtol=0, atol=1e-6)


def merged_by_verb(home: Path, given: Path, out: Path, kind: str) -> None:
    verb("merge", "--model", home / "model", kind, given, "--out", out)


@pytest.mark.parametrize(("how", "weight"), [("linear", 1 / 3), ("ties", 1.0), ("dare", 1 / 3)])
def test_the_verb_combines_whatever_has_weights(
    how: str, weight: float, home: Path, shelf: Path, tmp_path: Path
) -> None:
    constants = {"linear": (), "ties": ("--keep", "0.4"), "dare": ("--drop", "0.3", "--seed", "4")}[how]
    verb(*words(home, shelf, "one dora full", tmp_path / "out"), "--how", how, *constants)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"delta.safetensors", "acclimate.json"}
    merged_by_verb(home, tmp_path / "out", tmp_path / "merged", "--delta")
    start = weights(home / "model")
    parts = []
    for name in ("one", "dora", "full"):
        merged_by_verb(home, shelf / name, tmp_path / name, "--adapter")
        after = weights(tmp_path / name)
        parts.append({key: t - start[key] for key, t in after.items() if not torch.equal(t, start[key])})
    way = {"linear": Linear(), "ties": Ties(0.4), "dare": Dare(0.3, 4)}[how]
    wanted = combine(parts, [weight] * 3, way)
    got = {key: t - start[key] for key, t in weights(tmp_path / "merged").items()}
    assert sum(float((got[key] - wanted[key]).abs().gt(1e-6).sum()) for key in wanted) <= 2  # on the edge of a cut


@pytest.mark.parametrize(
    ("names", "more", "sentence"),
    [
        ("one", (), "Give at least two adapters to combine"),
        ("one two", ("--weight", "1"), "There are 2 adapters and 1 weights; give each its weight, or none"),
        ("one two", ("--how", "tie"), "No way to combine is called 'tie'. Did you mean 'ties'?"),
        (
            "one two",
            ("--keep", "0.5"),
            "--keep says nothing to linear: --keep is for ties, --drop and --seed are for dare",
        ),
        ("one two", ("--how", "ties", "--keep", "2"), "TIES keeps 2.0 of each change"),
    ],
)
def test_the_verb_refuses(
    names: str, more: tuple[str, ...], sentence: str, home: Path, shelf: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        app([str(word) for word in (*words(home, shelf, names, tmp_path / "out"), *more)], standalone_mode=False)
    assert not (tmp_path / "out").exists()


def test_adapters_are_listed_with_what_they_say(
    home: Path, shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "dora"):
        shutil.copytree(shelf / name, tmp_path / "runs" / name)
    (tmp_path / "runs" / "one" / "acclimate.json").unlink()
    verb("combine", *words(home, shelf, "one full", tmp_path / "runs" / "x" / "both")[1:])
    shutil.copytree(shelf / "two", tmp_path / "runs" / "two")
    (tmp_path / "runs" / "two" / "acclimate.json").write_text("{")
    for path in (tmp_path / "runs" / "dora").glob("*.safetensors"):
        os.utime(path, (0, 0))
    capsys.readouterr()
    verb("list", "adapters", tmp_path / "runs", "--json")
    rows = json.loads(capsys.readouterr().out)
    assert [(Path(row["path"]).name, row["method"], row["model"]) for row in rows] == [
        *(("dora", "dora", "some/base"), ("one", "lora", "some/base"), ("two", "damaged", "")),
        ("both", "delta", f"{home}/model"),
    ]
    size = sum(path.stat().st_size for path in (shelf / "dora").iterdir())
    assert (rows[0]["date"], rows[0]["bytes"]) == ("1970-01-01 00:00", size)
    verb("list", "adapters", tmp_path / "runs")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{tmp_path}/runs/dora    dora of some/base, 1970-01-01 00:00, {size:,} bytes"
    assert len(said) == 4
    verb("list", "adapters", tmp_path / "none", expect=2)
    verb("list", "models", tmp_path, expect=2)
