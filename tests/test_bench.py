"""The benchmark's own parts: two sides in processes of their own, in turns, and what their times say."""

import json
import math
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import bench.__main__ as bench_main
import pytest
import torch
from bench.lines import read
from bench.machine import copying, gemm, seconds
from bench.material import MIXED, align, write
from bench.page import page
from bench.shared import around, best, given, reward_of, spare
from bench.sides import mixed, ours, ours_alignment
from bench.sides.trainers import turns
from bench.timing import Times, apart, ratio
from bench.works import OURS, WORKS
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench import pieces
from bench import turns as clock
from tests import spelling, tiny

ROOT = Path(__file__).parents[1]
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "good", "bad", "film")
SIDE = """
import time
from bench.turns import serve

def side():
    print("a library says something")
    yield {"loss": 2.0}
    while True:
        time.sleep(0.05)
        yield {"units": 10}

serve(side())
"""


def test_a_side_works_when_it_is_told_to_and_says_how_long_it_took() -> None:
    heavy = b"x" * (300 << 20)  # of the process that starts the side, not the side's
    done = subprocess.run(
        [sys.executable, "-c", SIDE], cwd=ROOT, input="go\ngo\nstop\n", text=True, capture_output=True
    )
    ready, first, second, end = [json.loads(line) for line in done.stdout.splitlines()]
    assert ready["parity"] == {"loss": 2.0}
    assert "a library says something" in done.stderr
    assert first["units"] == second["units"] == 10
    assert 0.05 <= second["seconds"] < 1
    assert 1 << 20 < end["peak_memory_bytes"] < len(heavy)


def test_rates_are_medians_and_ratios_are_of_repetitions_beside_each_other() -> None:
    ours, theirs = Times((1.0, 1.0, 4.0), (10, 10, 10)), Times((2.0, 5.0, 4.0), (10, 10, 10))
    assert ours.table(0.0, 1)["units_per_second"] == 10.0
    assert ratio(ours, theirs) == {"median": 2.0, "least": 1.0, "most": 5.0}


def test_what_differs_is_told_and_what_cannot_be_compared_is_refused() -> None:
    assert apart({"ids": [1, 2, 3]}, {"ids": [1, 2]}) == {"ids": 1.0}
    assert apart({"loss": 1.0}, {"loss": -1.0}) == {"loss": 2.0}
    with pytest.raises(TypeError, match="numbers and lists"):
        apart({"name": "a"}, {"name": "b"})


def test_every_work_has_our_side_and_a_peer_and_every_side_a_file() -> None:
    for name, work in WORKS.items():
        assert OURS in work.sides, name
        assert len(work.sides) > 1, name
        assert work.parity, name
        for peer in work.sides.values():
            assert (ROOT / "bench" / "sides" / f"{peer.module}.py").exists()
            assert not peer.environment or (ROOT / "bench" / "peers" / f"{peer.environment}.txt").exists()


def test_the_page_says_whose_times_do_not_count() -> None:
    table = Times((1.0,), (10,)).table(0.5, 1 << 30)
    row = {
        "work": "sft", "about": "a < b", "unit": "tokens", "ours": table, "peers": {"peer": table},
        "ratio": {"peer": {"median": 3.0, "least": 2.0, "most": 4.0}}, "parity": {"peer": {"loss": 1e-6}, "odd": {"loss": 0.3}},
        "unequal": ["odd"], "precision": {"ours": "bfloat16", "peer": "float32"},
    }  # fmt: skip
    machine = {
        "processor": "P", "cores": 2, "threads": 2, "torch": "2", "transformers": "5", "python": "3", "gemm_float32": 1e11,
        "gemm_bfloat16": 2e11, "copy_bytes_per_second": 5e9,
    }  # fmt: skip
    found = page({"machine": machine, "rows": [row]})
    assert "a &lt; b" in found
    assert "<b>3.00</b>" in found
    assert "computes something else" in found


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(SystemExit, match="not made by the benchmark"):
        write(tmp_path)
    assert (tmp_path / "kept.txt").read_text() == "mine"


def test_a_peer_that_cannot_be_had_is_left_out(tmp_path, monkeypatch, capsys):
    def started(peer, folder, log):
        if peer.environment:
            raise subprocess.CalledProcessError(1, ["pip", "install"])
        return Started()

    class Started:
        parity, setting_up = {"ids": [1]}, 0.1
        go = staticmethod(lambda: {"seconds": 1.0, "units": 2.0})
        stop = staticmethod(lambda: 1000)

    monkeypatch.setattr(bench_main, "SideProcess", started)
    row = bench_main.measured(
        "decode-1",
        WORKS["decode-1"],
        tmp_path,
        1,
        {"gemm_float32": 1.0, "copy_bytes_per_second": 1.0, "precision": "float32"},
    )
    assert set(row["peers"]) == {"transformers"}
    assert "llama.cpp-float32 left out, its environment cannot be made" in capsys.readouterr().out


def test_where_bfloat16_is_faster_the_gate_is_in_float32_and_times_are_not(tmp_path, monkeypatch):
    started = []

    class Started:
        def __init__(self, peer, folder, log):
            started.append((peer.module, peer.options.get("dtype", "float32")))
            self.parity = {"ids": [1] if started[-1][1] == "float32" or peer.module == "ours" else [2]}
            self.setting_up, self.go, self.stop = (
                0.1,
                lambda: {"seconds": 1.0, "units": 2.0, "flops": 3.0},
                lambda: 1000,
            )

    monkeypatch.setattr(bench_main, "SideProcess", Started)
    limits = {"gemm_float32": 1.0, "gemm_bfloat16": 4.0, "copy_bytes_per_second": 1.0, "precision": "bfloat16"}
    row = bench_main.measured("decode-8", WORKS["decode-8"], tmp_path, 1, limits)
    assert started == [(name, kind) for kind in ("float32", "bfloat16") for name in ("ours", "generate")]
    assert row["precision"] == {"ours": "bfloat16", "transformers": "float32", "transformers-tuned": "bfloat16"}
    assert row["rounded"] == {"ours": {"ids": 0.0}, "transformers-tuned": {"ids": 1.0}}  # told, and no gate
    assert row["share_of_limit"] == 0.75
    assert set(row["ratio"]) == {"transformers", "transformers-tuned"}


def test_sides_that_do_not_fit_together_are_measured_one_beside_ours(tmp_path, monkeypatch):
    alive, most = set(), []

    class Started:
        setting_up = 0.1

        def __init__(self, peer, folder, log):
            self.peer, self.parity = peer, {"reward": 1.0, "kl": 2.0, "ids": 3}
            alive.add(self)
            most.append(len(alive))

        def go(self):
            return {
                "seconds": 2.0 if self.peer.module == "ours_alignment" else 8.0 if self.peer.options else 6.0,
                "units": 2.0,
            }

        def stop(self):
            alive.discard(self)
            return 1000

    monkeypatch.setattr(bench_main, "SideProcess", Started)
    limits = {"gemm_float32": 1.0, "copy_bytes_per_second": 1.0, "precision": "float32"}
    row = bench_main.measured("ppo", WORKS["ppo"], tmp_path, 3, limits)
    assert max(most) == 2
    assert not alive
    assert {who: ratio["median"] for who, ratio in row["ratio"].items()} == {"trl-default": 3.0, "trl-tuned": 4.0}
    assert list(row["peers"]) == list(row["parity"]) == list(row["memory_ratio"]) == ["trl-default", "trl-tuned"]
    assert row["unequal"] == []


def test_a_side_that_ends_leaves_its_row_out_and_the_next_is_measured(tmp_path, monkeypatch, capsys):
    def measured(name, *rest):
        if name == "decode-8":
            raise BrokenPipeError
        return {"work": name, "unit": "tokens", "ours": {"units_per_second": 2.0}, "ratio": {}, "unequal": []}

    monkeypatch.setattr(bench_main, "write", lambda folder: (folder.mkdir(), (folder / "rows.jsonl").write_text("{}")))
    monkeypatch.setattr(bench_main, "measured", measured)
    monkeypatch.setattr(bench_main, "machine", dict)
    monkeypatch.setattr(bench_main, "page", lambda found: "")
    monkeypatch.setattr(sys, "argv", ["bench", "--work", "decode-8", "decode-1", "--out", str(tmp_path)])
    bench_main.main()
    said = capsys.readouterr().out
    assert "decode-8: left out, a side ended before it was asked to" in said
    assert [row["work"] for row in json.loads((tmp_path / "bench.json").read_text())["rows"]] == ["decode-1"]


def test_precisions_are_those_that_sides_ask_for():
    sides = WORKS["decode-1"].sides
    assert {who: bench_main._given(peer) for who, peer in sides.items()} == {
        "ours": "float32", "transformers": "float32", "llama.cpp-float32": "float32", "llama.cpp-float16": "float16",
    }  # fmt: skip


def test_every_piece_that_is_timed_computes_what_it_replaces():
    found = list(pieces.pairs())
    assert len({pair.name for pair in found}) == len(found)
    for pair in found:
        plain, piece = pair.plain(), pair.piece()
        if plain is not None:  # the way back leaves nothing behind
            assert (piece.double() - plain.double()).norm() < 0.02 * plain.double().norm(), pair.name


def test_a_work_without_its_data_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_main, "write", lambda folder: (folder.mkdir(), (folder / "pairs.jsonl").touch()))
    monkeypatch.setattr(sys, "argv", ["bench", "--work", "choices", "--out", str(tmp_path)])
    monkeypatch.setattr(bench_main, "machine", dict)
    bench_main.main()
    assert capsys.readouterr().out == "choices: left out, its data are not beside the project\n"


def test_a_side_that_is_for_another_device_is_left_out_and_told(capsys):
    there, here = (bench_main.offered("sft-lora", WORKS["sft-lora"], kind) for kind in ("cuda", "cpu"))
    assert "trl-compiled" in there.sides
    assert there.quick["trl-compiled"] == "trl-compiled"
    assert "trl-compiled" not in here.sides
    assert capsys.readouterr().out == (
        "sft-lora: trl-compiled left out, it is for cuda, and this machine computes on cpu\n"
    )
    assert bench_main.offered("qlora", WORKS["qlora"], "cpu") is None
    assert capsys.readouterr().out == "qlora: left out, it is for cuda, and this machine has none\n"
    assert set(bench_main.offered("decode-1", WORKS["decode-1"], "cuda").sides) == {OURS, "transformers"}
    mixed_there, mixed_here = (bench_main.offered("m", WORKS["mixed-adapters"], kind).quick for kind in ("cuda", "cpu"))
    assert (mixed_there, mixed_here) == ({OURS: OURS, "peft-tuned": "peft"}, {})


def test_the_machines_clock():
    first, second, third = seconds(lambda: time.sleep(0.02), 3)
    assert all(0.01 < one < 1 for one in (first, second, third)) == (not torch.cuda.is_available())


@pytest.mark.gpu
def test_a_gpu_is_waited_for_and_its_memory_is_what_counts():
    a = torch.randn(4096, 4096, device="cuda")
    assert 1e-4 < seconds(lambda: a @ a, 3)[-1] < 1  # asking for it takes less
    began = clock._now()
    for _ in range(20):
        a @ a
    asked = time.perf_counter() - began
    assert clock._now() - began > 2 * asked
    assert clock._peak() >= 2 * a.nbytes
    assert gemm(torch.bfloat16) > 4 * gemm(torch.float32) / 3
    assert copying() > 1e11


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """The alignment part of a tiny material."""
    folder, tokenizer = tmp_path_factory.mktemp("material"), spelling.byte_level()
    torch.manual_seed(0)
    model = tiny.llama(tied=True, vocab=len(tokenizer))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")

    def said(n, length):
        return " ".join(WORDS[(n * (i + 2) + i) % 12] for i in range(length))

    rows = [{"prompt": f"say {n}", "chosen": said(n, 4 + n % 9), "rejected": said(n + 1, 3 + n % 7)} for n in range(64)]
    (folder / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    align(folder)
    drawn = torch.randint(4, len(tokenizer), (16, 20)).tolist()
    spelled = [
        {"input_ids": ids[: 8 + n % 9], "completion_mask": [0] * 5 + [1] * (3 + n % 9)} for n, ids in enumerate(drawn)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in spelled))
    return folder


def merged(folder, adapter):
    """The base in float64, with a LoRA of rank 8 and alpha 16 added to its weights."""
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float64)
    found = load_file(folder / adapter / "adapter_model.safetensors") if adapter else {}
    known = dict(model.named_parameters())
    for key in (key for key in found if key.endswith("lora_A.weight")):
        down, up = found[key].double(), found[key.replace("lora_A", "lora_B")].double()
        known[key.removeprefix("base_model.model.").replace("lora_A.", "")].data += 16 / 8 * up @ down
    return model


@torch.no_grad()
def logprob(model, prompt, completion):
    """Σ log p of a completion, one token after the other."""
    logs = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    return sum(logs[len(prompt) - 1 + t, token] for t, token in enumerate(completion))


def test_dpo_begins_where_a_plain_loop_over_the_material_begins(material):
    policy, base = merged(material, "moved"), merged(material, "")
    losses = []
    for row in read(material / "compared.jsonl")[:4]:
        ratios = [
            logprob(policy, row["prompt_ids"], row[name]) - logprob(base, row["prompt_ids"], row[name])
            for name in ("chosen_ids", "rejected_ids")
        ]
        losses.append(-logsigmoid(0.1 * (ratios[0] - ratios[1])).item())
    (first, second), (known, _) = (islice(ours_alignment.dpo(material, known=known), 2) for known in (False, True))
    assert known == pytest.approx(first, rel=1e-5)
    assert first["loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert first["loss"] != pytest.approx(math.log(2), rel=1e-4)
    assert first["norm"] > 0
    assert second == {"units": 4}


def test_a_reward_model_begins_with_the_head_that_the_material_holds(material):
    found = load_file(material / "reward" / "adapter_model.safetensors")
    trunk, head = merged(material, "reward").model, found["base_model.model.score.weight"].double()[0]
    with torch.no_grad():
        rewards = [
            [
                trunk(torch.tensor([row["prompt_ids"] + row[name]])).last_hidden_state[0, -1] @ head
                for name in row
                if name != "prompt_ids"
            ]
            for row in read(material / "compared.jsonl")[:4]
        ]
    wanted = sum(-logsigmoid(a - b).item() for a, b in rewards) / 4
    first, second = islice(ours_alignment.reward(material), 2)
    assert first["loss"] == pytest.approx(wanted, rel=1e-5)
    assert second == {"units": 4}


@pytest.mark.parametrize(("side", "prompts", "each"), [(ours_alignment.grpo, 4, 4), (ours_alignment.ppo, 16, 1)])
def test_an_iteration_begins_with_the_completions_that_are_given(material, side, prompts, each):
    policy, base = merged(material, "moved"), merged(material, "")
    tokenizer = AutoTokenizer.from_pretrained(material / "base")
    asked = [row["prompt_ids"] for row in read(material / "compared.jsonl")[:prompts] for _ in range(each)]
    pairs = list(zip(asked, given(material), strict=True))
    first, second = islice(side(material), 2)
    rewards = [reward_of(tokenizer.decode(ids)) for _, ids in pairs]
    assert first["reward"] == pytest.approx(sum(rewards) / 16, rel=1e-5)
    moved = sum(logprob(policy, prompt, ids) - logprob(base, prompt, ids) for prompt, ids in pairs) / 16
    assert first["kl"] == pytest.approx(float(moved), rel=1e-4, abs=1e-5)
    assert first["ids"] == sum(len(ids) for _, ids in pairs)
    assert first["norm"] > 0
    assert second == {"units": 16}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # what PEFT asks of transformers
@pytest.mark.parametrize("side", [mixed.ours, mixed.peft])
def test_every_row_of_a_mixed_batch_is_for_its_own_adapter(material, side):
    models = [merged(material, f"mixed/{name}") for name in MIXED]
    rows = read(material / "rows.jsonl")
    wanted = sum(logprob(models[n % 4], row["input_ids"][:5], row["input_ids"][5:]) for n, row in enumerate(rows))
    first, second = islice(side(material), 2)
    assert first["total"] == pytest.approx(float(wanted), rel=1e-5)
    assert second == {"units": sum(len(row["input_ids"]) for row in rows)}


def test_a_sweep_is_the_same_in_one_pass_and_one_after_the_other(material):
    """Of every adapter the loss of its third update, and as many tokens each time."""
    (material / "prompts.jsonl").write_text(json.dumps(read(material / "rows.jsonl")[0]) + "\n")
    (first, second), (other, again) = (islice(ours.sweep(material, together=way), 2) for way in (True, False))
    assert first == pytest.approx(other, rel=1e-4)
    assert len(set(first.values())) == 8
    assert second == again == {"units": 8 * 8}


def test_a_trainer_works_while_a_step_is_asked_for_and_at_no_other_time():
    began = []

    class Trainer:
        def add_callback(self, callback):
            self.callback = callback

        def train(self):
            for step in range(2):
                began.append(step)
                self.callback.on_log(None, None, None, logs={"loss": float(step)})

    steps = turns(Trainer())
    assert next(steps) == {"loss": 0.0}
    time.sleep(0.05)
    assert began == [0]
    assert next(steps) == {"loss": 1.0}
    with pytest.raises(RuntimeError, match="ended by itself"):
        next(steps)


def test_what_sides_share(material):
    assert reward_of("a b c d e") == -75.0
    assert reward_of("word " * 20) == 0.0
    assert reward_of("word " * 100) == -100.0
    assert best([1.0, 3.0, 2.0, 0.0, 5.0, 4.0, 4.0, 4.0]) == [1, 0]
    assert list(islice(around(5, 2), 3)) == [(0, 1), (2, 3), (4, 0)]
    assert spare(AutoTokenizer.from_pretrained(material / "base"), material) == "<|endoftext|>"
