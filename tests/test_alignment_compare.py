"""Alignment methods in one table: the same prompts, one true reward, comparisons of the base's own completions."""

import json
import re
from dataclasses import fields, replace
from statistics import fmean

import pytest

from acclimate.cli import compare as cli
from acclimate.data.read import read as table_of
from acclimate.errors import InputError, Interrupted
from acclimate.evaluation.best_of import kl_bound
from acclimate.methods.delta import detach
from acclimate.models.load import load as load_model
from acclimate.recipe import Data, Sampled, Training
from acclimate.recipe import parse as parse_recipe
from acclimate.report.comparison import study
from acclimate.report.frontier import Spot
from acclimate.report.frontier import drawn as drawn_frontier
from acclimate.rewards import Model
from acclimate.rewards.reward import Completion, total
from acclimate.rewards.rollout import Rollouts, sampled
from acclimate.run import iterations
from acclimate.run.beside import lent
from acclimate.run.best_rung import BestOf
from acclimate.run.carry import carry, installed
from acclimate.run.compare import bench, carry_base, carry_rungs, inputs
from acclimate.run.predict import predict
from acclimate.run.prepare import prepare
from acclimate.run.rollouts import heard, prompts
from acclimate.run.rows import comparison
from acclimate.run.rungs import load
from acclimate.run.rungs import parse as parse_comparison
from acclimate.run.sampled import TEMPLATE
from acclimate.tokens.codec import codec
from acclimate.training import reference as training_reference
from acclimate.training.folder import RunFolder, claim
from acclimate.training.signals import Stop
from tests.onpolicy import WORDS, films, spread_out, vowels
from tests.runs import verb
from tests.test_compare import QUIET, Impatient, lines, timeless
from tests.test_resume import Killed, killed_after

SHARED = """
model: {home}/model
data: {train: {home}/rows.jsonl, dev: {home}/dev.jsonl, test: {home}/test.jsonl, sampled: {prompts: 12, each: 3}}
task: {template: "{{ text.split()[:4] | join(' ') }}", chat: false, metrics: [reward, kl, judge, length, dist2]}
method: {name: lora, rank: 4, targets: [linear]}
objective: {name: ppo}
rollouts: {prompts: 3, each: 2, max_new_tokens: 5}
rewards: {name: function, function: "tests.onpolicy:vowels"}
judge: {name: length, words: 3}
training: {steps: 3, tokens_per_step: 120, rate: 0.02, precision: float32, checkpoint_every: 2}
evaluation: {draws: 50, forgetting: false}
picture: {x: kl, metric: reward}
"""
RUNGS = """rungs:
  - {name: base, method: none}
  - {name: reward model, objective: reward}
  - {name: preferred, objective: preferred_ft}
  - {name: unlikely, objective: unlikelihood}
  - {name: dpo 0.1, series: DPO, objective: {name: dpo, beta: 0.1}}
  - {name: dpo 1, series: DPO, objective: {name: dpo, beta: 1.0}}
  - {name: ppo true, series: PPO with the true reward}
  - {name: ppo, series: PPO, rewards: {name: model, adapter: reward model}}
  - {name: best of 3, series: best of n, method: {name: best_of, n: 3}}
  - {name: best of 2 learned, method: {name: best_of, n: 2}, rewards: {name: model, adapter: reward model}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alignment")
    spread_out(folder / "model")
    for name, first, count in (("rows", "the", 20), ("dev", "some", 5), ("test", "this", 7)):
        lines(folder / f"{name}.jsonl", [{"text": row["text"]} for row in films(first, count)])
    lines(folder / "answers.jsonl", [{"text": f"a good {n} film", "completion": "so good"} for n in range(20)])
    write(folder, folder / "compare.yaml")
    return folder


def write(home, path, rungs=RUNGS, shared=SHARED):
    path.write_text((shared + rungs).replace("{home}", str(home)))
    return path


@pytest.fixture(scope="module")
def finished(home):
    out = home / "finished"
    verb("compare", home / "compare.yaml", "--out", out, "--quiet")
    return out


def read(out):
    return json.loads((out / "compare.json").read_text())


def made(home, out, path=None, stop=None, overrides=()):
    out.mkdir(exist_ok=True)
    found = bench(load(path or home / "compare.yaml", overrides), out, stop or Stop(), QUIET)
    carry_base(found)
    carry_rungs(found)
    return comparison(found)


def test_another_beta_asks_the_reference_nothing_anew(home, tmp_path, monkeypatch):
    """Nor do seeds: the table is as it is where each asks for itself."""
    asked, plain = [], training_reference.base_logprobs

    def counted(*given):
        asked.append(given)
        return plain(*given)

    monkeypatch.setattr(training_reference, "base_logprobs", counted)
    betas = [f"  - {{name: dpo {beta}, objective: {{name: dpo, beta: {beta}}}}}\n" for beta in (0.1, 1.0)]
    both = write(home, tmp_path / "both.yaml", "rungs:\n" + "".join(betas))
    found = made(home, tmp_path / "both", both, overrides=["seeds=[0, 1]"])
    kept = json.loads((tmp_path / "both" / "reference.json").read_text())["rows"]
    assert len(asked) == len(kept)
    alone = made(
        home,
        tmp_path / "alone",
        write(home, tmp_path / "alone.yaml", "rungs:\n" + betas[1]),
        overrides=["seeds=[0, 1]"],
    )
    of = [next(row for row in timeless(each)["rows"] if row["name"] == "dpo 1.0") for each in (found, alone)]
    assert of[0]["scores"] == of[1]["scores"]


def answers_of(out, rung):
    result = json.loads((out / "rungs" / rung / "result.json").read_text())
    return result["seeds"][0]["answers"]["task"]["outputs"]["text"]


def test_all_ways_stand_in_one_table(finished):
    found = read(finished)
    rows = {row["name"]: row for row in found["rows"]}
    assert [row["failed"] for row in rows.values() if row["failed"]] == []
    assert "reward model" not in rows
    for name, row in rows.items():
        assert row["scores"].keys() == {"reward", "kl", "judge", "length", "dist2"}
        texts = answers_of(finished, name.replace(" ", "-"))
        assert row["scores"]["reward"]["value"] == pytest.approx(
            fmean(sum(map(t["text"].count, "aeiou ")) / max(1, len(t["text"])) for t in texts)
        )
        assert all(t["scores"]["judge"] == pytest.approx(judged(t["text"])) for t in texts)
    assert rows["base"]["scores"]["kl"]["value"] == 0
    trained = ("preferred", "unlikely", "dpo 0.1", "dpo 1", "ppo true", "ppo")
    assert all(rows[name]["scores"]["kl"]["value"] != 0 for name in trained)


def judged(text):
    return -min(1.0, abs(len(text.split()) - 3) / 3)


# What is learned from


def drawn(out):
    return [json.loads(line) for line in (out / "sampled.jsonl").read_text().splitlines()]


def test_the_base_s_own_completions_are_ranked_by_the_shared_reward(home, finished):
    rows = drawn(finished)
    assert {row["part"] for row in rows} == {"train", "dev", "test"}
    for row in rows:
        assert row["rewards"] == pytest.approx(vowels([Completion("", text) for text in row["completions"]]))
        assert row["ranking"] == [1 + sum(b > a for b in row["rewards"]) for a in row["rewards"]]
        assert len(set(row["rewards"])) > 1
        assert len(row["completions"]) == len(row["ids"]) == 3
        assert all(1 <= len(ids) <= 5 for ids in row["ids"])
    train = [row for row in rows if row["part"] == "train"]
    assert 6 < len(train) <= 12
    assert len({row["where"] for row in train}) == len(train)
    train = [row for row in train if all(text and "\0" not in text for text in row["completions"])]
    lines(home / "again.jsonl", train)
    table = table_of(home / "again.jsonl")  # a file of rankings like any other
    assert [list(row.completions) for row in table.rows] == [row["completions"] for row in train]
    assert [list(row.ranks) for row in table.rows] == [row["ranking"] for row in train]


def test_a_policy_learns_from_the_ids_that_were_drawn_and_a_cut_off_one_has_no_end(home, finished):
    given = load(home / "compare.yaml")
    rungs = {rung.name: rung for rung in given.rungs}
    prepared = prepare(rungs["dpo 1"], finished)
    train = [row for row in drawn(finished) if row["part"] == "train"]
    end = next(iter(prepared.codec.terminators))
    for row, kept in zip(prepared.pairs.train, train, strict=True):
        assert row.ranks == tuple(kept["ranking"])
        for each, ids in zip(row.rows, kept["ids"], strict=True):
            assert list(each.ids) == kept["prompt_ids"] + ids
            assert each.scored == (False,) * len(kept["prompt_ids"]) + (True,) * len(ids)
            assert (end in ids) == (len(ids) < 5 or ids[-1] == end)
    assert any(len(ids) == 5 and ids[-1] != end for row in train for ids in row["ids"])
    assert prepared.pairs.test == ()
    assert [row.where for row in prepared.pairs.dev] == [
        row["where"] for row in drawn(finished) if row["part"] == "dev"
    ]
    chosen = prepare(rungs["preferred"], finished).train.rows
    assert [row.ids for row in chosen] == [
        tuple(row["prompt_ids"] + ids)
        for row in train
        for ids, place in zip(row["ids"], row["ranking"], strict=True)
        if place == 1
    ]


def test_the_reward_model_reads_the_same_texts(home, finished):
    prepared = prepare(heard(load(home / "compare.yaml").rungs[1]), finished)
    kept = drawn(finished)
    for part in ("train", "dev", "test"):
        wanted = [row for row in kept if row["part"] == part]
        assert [list(row.completions) for row in getattr(prepared.parts, part).rows] == [
            r["completions"] for r in wanted
        ]
    first = prepared.pairs.train[0].rows[0]
    wanted = next(row for row in kept if row["part"] == "train")
    assert prepared.codec.decode(first.ids).startswith(wanted["prompt"][0]["content"])
    (told,) = read(finished)["reward_models"]
    assert told["name"] == "reward model"
    right = told["learned"]["Held-out rows"]["pair_accuracy"]
    assert 0 <= right["low"] <= right["value"] <= right["high"] <= 1
    assert (
        json.loads((finished / told["artifact"]["path"] / "acclimate.json").read_text())["task"]["template"] == TEMPLATE
    )


def test_a_reward_that_is_learned_is_what_one_rung_learns_from_and_another_picks_by(home, finished, tmp_path):
    """What PPO logs as its reward is what the saved head says of the completions that PPO keeps."""
    found = bench(load(finished / "recipe.yaml"), finished, Stop(), QUIET)
    rungs = {rung.name: rung for rung in found.comparison.rungs}
    ppo, true = (inputs(found, rungs[name]) for name in ("ppo", "ppo true"))
    place = finished / "rungs" / "reward-model" / "seed-0" / "adapter"
    assert ppo.recipe.rewards == ((1.0, Model(str(place))),)
    assert ppo.rolled.measured == true.rolled.measured == true.rolled.reward == found.base.rolled.reward
    logs = [
        (finished / "rungs" / name / "seed-0" / "log.jsonl").read_text().splitlines() for name in ("ppo", "ppo-true")
    ]
    first = [json.loads(log[0])["metrics"]["reward"] for log in logs]
    assert first[0] != first[1]
    seen = []
    for prepared in (ppo, true):
        changed, model = installed(prepared)
        changed = iterations.ready(changed, model)
        buffer = next(iterations.groups(changed, model, RunFolder(tmp_path / str(len(seen)), -1), 0, nothing, {}, None))
        assert buffer
        completions = [Completion("the quick quick number", text) for text in ("aeiou", "xyz", "good dog")]
        seen.append([total(marks) for marks in changed.rolled.reward(completions)])
        detach(model)
    assert seen[1] == pytest.approx(vowels(completions))
    trunk = load_model(str(home / "model"))
    with lent(Model(str(place)), trunk.model, codec(trunk.tokenizer)) as reward:
        assert seen[0] == pytest.approx([total(marks) for marks in reward(completions)], abs=1e-6)
    picked, best = (answers_of(finished, name) for name in ("best-of-2-learned", "best-of-3"))
    assert [row["text"] for row in picked] != [row["text"] for row in best]


def nothing():
    """Nobody asks to stop."""


# Best of n


def test_the_best_of_n_is_the_best_of_what_is_drawn(home, finished):
    found = bench(load(finished / "recipe.yaml"), finished, Stop(), QUIET)
    rung = next(rung for rung in found.comparison.rungs if rung.name == "best of 3")
    base, prompts = found.base, prompts_of(found.base)
    how, seed = base.recipe.rollouts, base.recipe.evaluation.seed
    every = [prompt for prompt in prompts for _ in range(3)]
    texts = [base.codec.decode(each.ids) for each in sampled(base.model, every, how, base.codec, seed)]
    earned = vowels([Completion("", text) for text in texts])
    for place, answer in enumerate(answers_of(finished, "best-of-3")):
        mine = slice(3 * place, 3 * place + 3)
        assert answer["value"] == pytest.approx(max(earned[mine]))
        assert answer["text"] == texts[mine][earned[mine].index(max(earned[mine]))]
        assert answer["scores"]["kl"] == kl_bound(3)
    assert rung.method == BestOf(3)
    one = BestOf(1).fit_predictor(base, 0)(base.parts.test.rows)
    assert [answer.scores["kl"] for answer in one] == [0.0] * 7
    assert [answer.text for answer in one] == [row["text"] for row in answers_of(finished, "base")]


def prompts_of(prepared):
    return prompts(prepared.recipe, prepared.parts.test.rows, prepared.template, prepared.codec, prepared.context)[0]


# The picture


def test_the_picture_joins_the_rungs_of_a_series(finished):
    found = read(finished)
    assert found["picture"]["series"]["dpo 1"] == found["picture"]["series"]["dpo 0.1"] == "DPO"
    assert found["picture"]["series"]["unlikely"] == "unlikelihood"
    assert found["picture"]["series"]["best of 2 learned"] == "best_of"
    shown = study(found)
    assert shown["names"][:4] == ["the prompt only", "preferred ft", "unlikelihood", "DPO"]
    chart = str(shown["chart"])
    assert chart.count("<polyline") == len(shown["names"]) == 8
    assert chart.count('class="whisker') == 2 * len(found["rows"])
    assert chart.count('class="spot') == len(found["rows"])
    page = (finished / "compare.html").read_text()
    assert "KL to the base, nats a completion" in page
    assert "pair_accuracy" in page  # of the reward model


def test_the_picture_by_hand():
    line = [Spot(2, "two", (3.0, 2.0, 4.0), (0.5, 0.0, 1.0)), Spot(1, "one", (1.0, 1.0, 1.0), (0.2, 0.1, 0.3))]
    chart = str(drawn_frontier({"DPO": line}, ("KL", "reward"), (0.0, 0.1)))
    (joined,) = re.findall(r'<polyline class="trace s0" points="([\d. ,]+)"', chart)
    (left, low), (right, high) = [tuple(map(float, point.split(","))) for point in joined.split()]
    assert left < right  # by x, whatever the order of the rungs
    assert low > high  # 0.2 stands below 0.5
    assert 'aria-label="reward against KL. DPO: two (3.00, 0.500), one (1.00, 0.200)."' in chart


# Stopped and resumed

FEW = """rungs:
  - {name: reward model, objective: reward}
  - {name: dpo, objective: dpo}
  - {name: ppo, rewards: {name: model, adapter: reward model}}
  - {name: best of 2, method: {name: best_of, n: 2}}
"""


@pytest.fixture(scope="module")
def few(home):
    write(home, home / "few.yaml", FEW)
    return timeless(made(home, home / "few", home / "few.yaml")), home / "few"


def same(one, other):
    for path in [p for p in one.rglob("*") if p.suffix in (".safetensors", ".jsonl")]:
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes(), path


@pytest.mark.parametrize("after", [4, 26, 39])
def test_stopped_anywhere_and_resumed_the_files_are_the_same(home, few, tmp_path, after):
    """While preferences are sampled, while one rung is asked, between two updates of another."""
    with pytest.raises(Interrupted):
        made(home, tmp_path / "out", home / "few.yaml", stop=Impatient(after))
    assert not (tmp_path / "out" / "rungs" / "best-of-2" / "result.json").exists()
    assert timeless(made(home, tmp_path / "out", home / "few.yaml")) == few[0]
    same(few[1], tmp_path / "out")


def test_what_was_drawn_is_read_again(home, few, tmp_path):
    (tmp_path / "out").mkdir()
    text = (few[1] / "sampled.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out" / "sampled.jsonl").write_text("".join(text[1:]))
    found = bench(load(home / "few.yaml"), tmp_path / "out", Stop(), QUIET)
    prepared = inputs(found, found.comparison.rungs[1])
    assert len(prepared.train.rows) == sum('"part": "train"' in line for line in text) - 1


def test_side_by_side_the_rewards_are_trained_first(home, few, tmp_path, monkeypatch):
    def apart(found, jobs):
        assert (found.out / "rungs" / "reward-model" / "result.json").exists()
        assert not (found.out / "rungs" / "dpo").exists()

    monkeypatch.setattr(cli, "_apart", apart)
    verb("compare", home / "few.yaml", "--jobs", "2", "--out", tmp_path / "out", "--quiet")
    assert timeless(read(tmp_path / "out")) == few[0]


def test_the_search_asks_dev_prompts(home, tmp_path):
    """Other test rows change nothing in what is chosen."""
    rungs = "rungs: [{name: ppo, rates: [0.01, 0.03], training: {steps: 2}}]\nsearch: {rates: [0.1, 0.2]}\n"
    path = write(home, tmp_path / "search.yaml", rungs)
    tables = []
    for name, data in (("one", "test"), ("other", "dev")):
        asked = (home / f"{data}.jsonl").read_text().splitlines()[:4]
        lines(tmp_path / f"{name}.jsonl", map(json.loads, asked))
        rows = [f"data.test={tmp_path}/{name}.jsonl", f"data.dev={home}/rows.jsonl", f"data.train={home}/rows.jsonl"]
        rows += ["data.sampled=null", "data.dev="]
        tables.append(timeless(made(home, tmp_path / data, path, overrides=rows))["rows"][0])
    assert tables[0]["search"] == tables[1]["search"]
    assert tables[0]["scores"] != tables[1]["scores"]


# A run alone

RUN = ("--quiet",)


@pytest.mark.parametrize(
    ("objective", "method"), [("dpo", "lora"), ("dpo", "full"), ("kto", "lora"), ("simpo", "lora"), ("lm", "lora")]
)
def test_a_run_is_measured_by_what_it_writes(home, tmp_path, objective, method):
    shared = SHARED.replace("{home}", str(home)).replace("picture: {x: kl, metric: reward}\n", "")
    (tmp_path / "run.yaml").write_text(shared)
    words = [f"objective={objective}", f"method={method}", "task.metrics=[reward, kl, length, judge]"]
    words += ["data.sampled=null", f"data.train={home}/answers.jsonl"] if objective == "lm" else []
    verb("run", tmp_path / "run.yaml", *words, "--out", tmp_path / "run", "--quiet")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    base, result = (report[side]["scores"] for side in ("base", "result"))
    assert (base["kl"]["value"], base["kl"]["n"]) == (0, 7)
    assert result["kl"]["value"] != 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["metrics"]["reward"]["result"] == pytest.approx(vowels([Completion("", row["result"]["text"])]))
    assert (tmp_path / "run" / "sampled.jsonl").exists() == (objective != "lm")


def test_people_s_preferences_and_prompts_to_be_measured_on(home, tmp_path):
    pairs = [{"prompt": f"say {WORDS[n % 7]} {n}", "chosen": "good dog", "rejected": "bad"} for n in range(20)]
    lines(home / "pairs.jsonl", pairs)
    lines(home / "asked.jsonl", [{"text": f"tell {n}"} for n in range(4)])
    shared = SHARED.replace("{home}", str(home)).replace("picture: {x: kl, metric: reward}\n", "")
    (tmp_path / "run.yaml").write_text(shared)
    words = ("objective=dpo", "data.sampled=null", f"data.train={home}/pairs.jsonl", f"data.test={home}/asked.jsonl")
    words += ("data.dev=", "task.template={{ prompt }}", "task.metrics=[reward, kl]")
    verb("run", tmp_path / "run.yaml", *words, "--out", tmp_path / "run", "--quiet")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["result"]["scores"]["reward"]["n"] == 4
    assert report["result"]["scores"]["kl"]["value"] != 0
    with pytest.raises(
        InputError, match=r"data.test: asked.jsonl:1 is of kind Document, and comparisons are learned from"
    ):
        prepare(replace(parse_recipe(shared, "r", words), rewards=(), judge=(), rollouts=Rollouts()))


def test_a_sampled_run_that_is_killed_goes_on(home, tmp_path):
    shared = SHARED.replace("{home}", str(home)).replace("picture: {x: kl, metric: reward}\n", "")
    recipe = parse_recipe(shared, "recipe", ["objective=ipo"])
    out, other = tmp_path / "run", tmp_path / "straight"
    for folder, breaks in ((other, False), (out, True)):
        if breaks:
            with claim(folder, resume=False) as run, pytest.raises(Killed):
                carry(recipe, run, Stop(), killed_after(2))
        with claim(folder, resume=breaks) as run:
            carry(recipe, run, Stop(), QUIET)
    for name in ("log.jsonl", "predictions.jsonl", "sampled.jsonl", "adapter/adapter_model.safetensors"):
        assert (out / name).read_bytes() == (other / name).read_bytes(), name


# Options

CHANGES = {
    "Sampled.prompts": ("sampled: {prompts: 12, each: 3}", "sampled: {prompts: 6, each: 3}"),
    "Sampled.each": ("sampled: {prompts: 12, each: 3}", "sampled: {prompts: 12, each: 2}"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_changes_what_is_drawn(home, few, tmp_path, name):
    path = write(home, tmp_path / "other.yaml", FEW, SHARED.replace(*CHANGES[name]))
    bench(load(path), tmp_path, Stop(), QUIET)
    rows, before = drawn(tmp_path), drawn(few[1])
    assert len(rows) < len(before) or len(rows[0]["completions"]) == 2
    assert {f"Sampled.{field.name}" for field in fields(Sampled)} == CHANGES.keys()


# Refused

ODD = {
    "[{method: none, name: one}, {name: two, rewards: {name: model, adapter: one}}]": "rung two has 'one' as a reward, which is "
    "no adapter folder and no earlier rung with objective reward or spans; of these there is: none",
    "[{name: two, rewards: {name: model, adapter: late}}, {name: late, objective: reward}]": "rung two has 'late' as a reward",
    "[{name: one, objective: reward}, {name: two, rewards: {name: model, adapter: on}}]": "has 'on' as a reward, .*: one",
    "[{name: a, objective: reward}, {name: b, rewards: {name: model, adapter: c}}, {name: c}]": "there is: a",
    "[{method: {name: best_of, n: 0}}]": r"best_of draws n completions, n above 0, not 0",
    "[{name: hot, rollouts: {temperature: 2.0}}]": "rung hot changes rollouts.temperature, which all rungs share",
    "[{name: other, data: {sampled: {each: 4}}}]": "rung other changes data.sampled",
    "[{name: other, judge: lexicon}]": "rung other changes judge",
}


@pytest.mark.parametrize("rungs", ODD)
def test_what_does_not_fit_is_refused(home, rungs):
    with pytest.raises(InputError, match=ODD[rungs]):
        parse_comparison((SHARED + f"rungs: {rungs}\n").replace("{home}", str(home)))


def test_a_reward_that_failed_is_said(home, tmp_path):
    rungs = """rungs:
  - {name: reward model, objective: reward, method: {name: lora, targets: ["*.nowhere"]}}
  - {name: ppo, rewards: {name: model, adapter: reward model}}
  - {name: base, method: none}
"""
    rows = made(home, tmp_path / "out", write(home, tmp_path / "odd.yaml", rungs))["rows"]
    assert "No linear layer of this model matches" in rows[0]["failed"]
    assert rows[1]["failed"] == "Rung reward model, which trains a reward of ppo, left none."
    assert rows[2]["failed"] == ""


def test_best_of_needs_a_reward(home):
    prepared = prepare(replace(load(home / "compare.yaml").shared, data=Data(train=f"{home}/answers.jsonl")))
    with pytest.raises(InputError, match="best_of picks by a reward"):
        BestOf().fit_predictor(replace(prepared, rolled=None), 0)


def test_a_plan_takes_what_is_not_drawn_yet_as_long_as_it_may_be(home, few):
    recipe = replace(load(home / "few.yaml").rungs[1], training=Training(steps=2, tokens_per_step=120))
    found = predict(recipe)
    assert found.steps == 2
    assert found.scored_tokens % 15 == 0  # three completions of five tokens for each prompt
    assert found.tokens > found.scored_tokens > 0
    assert "as long as" in found.lines()[-1]
    with pytest.raises(InputError, match="no forecast of a reward model before the completions are drawn"):
        predict(load(home / "few.yaml").rungs[0])


PEOPLE = """
model: {home}/model
data: {train: {home}/pairs.jsonl, dev: {home}/pairs-dev.jsonl, test: {home}/pairs-test.jsonl}
method: {name: lora, rank: 4, targets: [linear]}
objective: {name: dpo}
training: {steps: 2, tokens_per_step: 120, precision: float32}
evaluation: {draws: 50, forgetting: false}
search: {rates: [0.001, 0.02]}
rungs:
  - {name: dpo}
  - {name: full, method: full}
  - {name: reward model, objective: reward}
"""


def test_comparisons_by_people_are_searched_on_dev_and_measured_on_test(home, tmp_path):
    for name, numbers in (("pairs", range(20)), ("pairs-dev", range(30, 36)), ("pairs-test", range(40, 49))):
        rows = [{"prompt": f"say {WORDS[n % 7]} {n}", "chosen": "good dog", "rejected": f"bad {n}"} for n in numbers]
        lines(home / f"{name}.jsonl", rows)
    found = made(home, tmp_path / "out", write(home, tmp_path / "people.yaml", "", PEOPLE))
    assert [row["failed"] for row in found["rows"]] == ["", ""]
    for row in found["rows"]:
        assert row["scores"]["margin"]["n"] == 9
        assert row["scores"]["margin"]["value"] > 0  # against the base, which moves for neither
        (trials,) = row["search"]["rounds"]
        assert all(trial["score"] > 0.5 for trial in trials)  # with a reference on dev: else every pair counts half
    assert found["base"]["scores"]["margin"]["value"] == 0
    (scorer,) = found["reward_models"]
    assert scorer["learned"]["Held-out rows"]["pair_accuracy"]["value"] > 0.5
