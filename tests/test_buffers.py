"""Memory for large tensors that is kept: nothing overlaps, nothing is lost, and a step takes what the one before it took."""

import os
import random
import resource
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from acclimate.cli.inspect import show_environment
from acclimate.methods import Full
from acclimate.methods.delta import trainable
from acclimate.models import buffers, building, precision
from acclimate.models.collate import collate
from acclimate.models.load import load
from acclimate.objectives import LM
from acclimate.tokens.codec import Encoded
from acclimate.training import optim
from acclimate.training.fit import fit
from tests import spelling
from tests.runs import ROOT

KEPT = not isinstance(buffers.kept(), str)
kept = pytest.mark.skipif(not KEPT, reason=f"not kept here: {buffers.kept()}")
MB = 1 << 20


def alone(code, **given):
    """What that code prints in a process of its own."""
    words = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, **given)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@kept
def test_blocks_do_not_overlap_whoever_takes_them():
    """Four threads take, mark, check and free blocks of 200 KB to 4 MB, 64-byte aligned; in the end all is given back."""
    before = buffers.held()[0]

    def work(seed):
        drawn, live = random.Random(seed), []
        for turn in range(400):
            if live and drawn.random() < 0.5:
                tensor, mark = live.pop(drawn.randrange(len(live)))
                assert bool((tensor == mark).all())
            else:
                tensor = torch.empty(drawn.randrange(50_000, MB), dtype=torch.int32)
                assert tensor.data_ptr() % 64 == 0
                live.append((tensor.fill_(seed * 1000 + turn), seed * 1000 + turn))
        return sum(bool((tensor == mark).all()) for tensor, mark in live) == len(live)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert buffers.held()[0] == before


@kept
def test_holes_that_touch_become_one():
    """Three neighbours freed in any order take a block of their size together, at the same place."""
    buffers.give_back()
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)):
        parts = [torch.empty(3 * MB, dtype=torch.uint8) for _ in range(3)]
        wall = torch.empty(MB, dtype=torch.uint8)
        start = parts[0].data_ptr()
        if [part.data_ptr() - start for part in parts] != [0, 3 * MB, 6 * MB]:
            pytest.skip("other tensors lie between")
        for i in order:
            parts[i] = None
        whole = torch.empty(9 * MB, dtype=torch.uint8)
        assert whole.data_ptr() == start
        del whole, wall


def steps(lengths):
    """Updates of a model of 27 MB in full, on rows of these many tokens."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8192, num_key_value_heads=2, tie_word_embeddings=True, **sizes))
    Full().install(model)
    rows = [[Encoded(tuple(range(5, 5 + n)), (False,) * 8 + (True,) * (n - 8))] * 4 for n in lengths]
    made = ([collate(model, four, 0)] for four in rows)
    return fit(model.train(), made, LM(), optim.adamw(trainable(model), 1e-4), rate=lambda _: 1e-4)


@kept
def test_a_step_takes_no_new_memory():
    """From the third update on, of the longest rows so far or shorter: tensors reach no further, and few pages are new.

    The count of faults fails where the buffers silently stop being used: without them it is some thousands a step.
    """
    reached, faults = [], []
    buffers.give_back()
    for _ in steps([256, 256, 256, 200, 256, 131, 256]):
        reached.append(buffers.held()[1])
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    assert reached[0] > 60 * MB
    assert reached[-1] <= 1.02 * reached[1]
    assert faults[-1] - faults[1] < 5 * 300


@kept
def test_loading_a_model_is_when_it_begins(tmp_path):
    model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, vocab_size=320))
    model.save_pretrained(tmp_path)
    spelling.byte_level().save_pretrained(tmp_path)
    code = f"""
        import torch
        from acclimate.models.load import load
        early = torch.ones(2 ** 20)
        load({str(tmp_path)!r})
        from acclimate.models import buffers
        late = torch.ones(2 ** 20)
        print(buffers.held()[0], int(early.sum()))
        del early
        early = late.clone()
        lazy = torch._lazy_clone(late)
        lazy += 1
        small = torch.ones(10).resize_(2 ** 20).resize_(10)
        small.untyped_storage().resize_(40)
        print(buffers.held()[0], int(lazy.sum()), int(small.sum()))
        del early, late, lazy
        print(buffers.held()[0])
    """
    first, ones, second, twos, ten, last = map(int, alone(code))
    assert (ones, twos, ten) == (2**20, 2**21, 10)
    assert (first, second, last) == (4 * MB, 12 * MB, 0)
    assert load(str(tmp_path)).model is not None


@kept
def test_holes_go_back_to_the_system():
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")  # noqa: E731
    stays = torch.ones(MB)
    torch.ones(64 * MB)
    full = resident()
    buffers.give_back()
    assert full - resident() > 200 * MB
    assert bool((stays == 1).all())
    assert bool((torch.zeros(64 * MB) == 0).all())  # holes serve again


@kept
def test_a_child_process_has_its_own():
    """fork while other threads take and free: the child's first block is not waited for forever."""
    code = """
        import os, threading, torch
        from acclimate.models import buffers
        assert not isinstance(buffers.kept(), str)
        stop = threading.Event()
        def work():
            while not stop.is_set():
                torch.empty(2 ** 20)
        threads = [threading.Thread(target=work) for _ in range(3)]
        [thread.start() for thread in threads]
        mine = torch.full((2 ** 20,), 3, dtype=torch.uint8)
        for _ in range(20):
            child = os.fork()
            if child == 0:
                theirs = torch.empty(2 ** 20, dtype=torch.uint8)
                os._exit(int(mine[5]))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        stop.set()
        print("done")
    """
    assert alone(code) == ["done"]


@kept
def test_where_there_is_no_room_the_allocator_before_serves():
    code = """
        import torch
        from acclimate.models import buffers
        buffers.addresses = lambda: 8 * 2 ** 20
        blocks = [torch.full((3 * 2 ** 20,), i, dtype=torch.uint8) for i in range(2)]
        assert not isinstance(buffers.kept(), str)
        blocks += [torch.full((3 * 2 ** 20,), i, dtype=torch.uint8) for i in range(2, 7)]
        print(buffers.held()[0], *[int(block.sum()) for block in blocks])
        del blocks
        print(buffers.held()[0])
    """
    said = [int(word) for word in alone(code)]
    assert said == [6 * MB, *[i * 3 * MB for i in range(7)], 0]


def test_without_a_compiler_or_addresses_pytorchs_own_stays_and_env_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "rate", lambda dtype: 1e9)
    with monkeypatch.context() as changed:
        changed.setattr(building, "COMPILER", "no-such-compiler")
        buffers.kept.cache_clear()
        show_environment(as_json=False)
        assert "PyTorch's (no-such-compiler is not installed)" in capsys.readouterr().out
        assert buffers.held() == (0, 0)
        buffers.give_back()
    buffers.kept.cache_clear()
    code = """
        import resource, torch
        from acclimate.models import buffers
        resource.setrlimit(resource.RLIMIT_AS, (2 ** 34, 2 ** 34))
        buffers.addresses = lambda: 2 ** 40
        print(buffers.describe())
        torch.ones(2 ** 20)
    """
    found = " ".join(alone(code))
    assert found.startswith("PyTorch's (no addresses can be reserved" if KEPT else "PyTorch's (")
