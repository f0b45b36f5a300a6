"""The paged optimizer: AdamW's bits, in pages that are not resident between steps, resumed in place; no file is left."""

import re
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from acclimate.errors import TrainingError
from acclimate.training import optim, paged

SHAPES = {"matrix": (33, 7), "bias": (5,), "one": (1,), "wide": (64, 64)}


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape).to(dtype)) for name, shape in SHAPES.items()}


def stepped(made: torch.optim.Optimizer, own: dict[str, nn.Parameter], steps: range) -> None:
    """Steps of noise, at a rate of their own; the third leaves one parameter without a gradient."""
    for step in steps:
        noise = torch.Generator().manual_seed(step)
        for name, parameter in own.items():
            grad = torch.randn(parameter.shape, generator=noise).to(parameter.dtype)
            parameter.grad = None if (step, name) == (3, "bias") else grad
        for group in made.param_groups:
            group["lr"] = 0.01 / step
        made.step()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_and_states_are_adamws_bit_for_bit_and_so_after_a_resumption(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    plain, ours = parameters(dtype), parameters(dtype)
    straight = optim.adamw(plain, 0.01, decay=0.3)
    stepped(straight, plain, range(1, 8))
    first = optim.adamw(ours, 0.01, decay=0.3, pages=tmp_path)
    stepped(first, ours, range(1, 5))
    kept = {name: tensor.clone() for name, tensor in optim.state(first, ours).items()}
    second = optim.adamw(ours, 0.01, decay=0.3, pages=tmp_path)
    optim.restore(second, ours, kept)
    stepped(second, ours, range(5, 8))
    assert same(optim.state(second, ours), optim.state(straight, plain))
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    assert isinstance(second, paged.PagedAdamW)
    assert [len(group["params"]) for group in second.param_groups] == [2, 2]


def test_states_of_a_plain_run_go_into_pages_and_back(tmp_path: Path) -> None:
    plain, ours = parameters(), parameters()
    before, after = optim.adamw(plain, 0.01), optim.adamw(ours, 0.01, pages=tmp_path)
    stepped(before, plain, range(1, 3))
    places = {name: tensor.data_ptr() for name, tensor in optim.state(after, ours).items()}
    optim.restore(after, ours, optim.state(before, plain))
    assert same(optim.state(after, ours), optim.state(before, plain))
    assert {name: tensor.data_ptr() for name, tensor in optim.state(after, ours).items()} == places


def test_the_file_has_no_name(tmp_path: Path) -> None:
    made = optim.adamw(own := parameters(), 0.01, pages=tmp_path)
    stepped(made, own, range(1, 3))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, up to multiples of 64: 33 · 7 take 960 bytes, 5 and 1 take 64 each, 64 · 64 take 16,384; all twice."""
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(34_943))
    with pytest.raises(TrainingError, match=r"take 34,944 bytes; the disk of .* has 34,943 left"):
        optim.adamw(parameters(), 0.01, pages=tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(34_944))
    optim.adamw(parameters(), 0.01, pages=tmp_path)


def resident(path: Path) -> int:
    """Bytes of this process's memory that are mapped from files of the folder, from proc(5)'s smaps."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    (kilobytes,) = re.findall(rf" {re.escape(str(path))}/.*\n(?:(?!Rss).*\n)*Rss: +(\d+) kB", text)
    return 1024 * int(kilobytes)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="smaps is Linux's")
def test_between_steps_no_state_is_resident(tmp_path: Path) -> None:
    """Two million numbers have 16 MB of states: all of it in memory while somebody reads it, none after a step."""
    own = {"weight": nn.Parameter(torch.randn(1000, 2000))}
    made = optim.adamw(own, 0.01, pages=tmp_path)
    own["weight"].grad = torch.ones(1000, 2000)
    made.step()
    assert resident(tmp_path) == 0
    first = optim.state(made, own)
    assert float(first["weight/exp_avg"].sum()) == pytest.approx(0.1 * 2e6, rel=1e-4)
    assert float(first["weight/exp_avg_sq"].sum()) == pytest.approx(0.001 * 2e6, rel=1e-4)
    assert resident(tmp_path) == pytest.approx(16e6, rel=0.01)
    made.step()
    assert resident(tmp_path) == 0
