"""AdamW whose states lie in a file and come into memory for their own update only."""

import math
import mmap
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acclimate.errors import TrainingError

STATES = ("exp_avg", "exp_avg_sq")


class PagedAdamW(torch.optim.AdamW):
    """The numbers of AdamW bit for bit, its two states a parameter in pages. Dettmers et al. 2023, arXiv:2305.14314, 3.

    The paper moves the states between the GPU and the host as the GPU fills up. Here they always live on the host, in a
    mapped file, and one parameter's come to its device and go again at each step: less memory on either side, and the
    time to move 16 bytes a float32 number and step. The file has no name, so it is gone with the process however that
    ends. Raises TrainingError where the disk has no room for it.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], rate: float, betas: tuple[float, float], eps: float, folder: Path
    ) -> None:
        super().__init__(groups, lr=rate, betas=betas, eps=eps, fused=True)
        owned = [p for group in self.param_groups for p in group["params"]]
        self._pages = _file(folder, sum(_room(p) for p in owned) * len(STATES))
        place = 0
        for parameter in owned:
            self.state[parameter]["step"] = torch.tensor(0.0)
            for key in STATES:
                self.state[parameter][key] = _view(self._pages, place, parameter)
                place += _room(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; no state stays resident after it."""
        groups = self.param_groups
        try:
            for group in groups:
                for parameter in group["params"]:
                    self.param_groups = [{**group, "params": [parameter]}]
                    self._update(parameter)
        finally:
            self.param_groups = groups

    def _update(self, parameter: nn.Parameter) -> None:
        home = self.state[parameter]
        near = {key: tensor.to(parameter.device) for key, tensor in home.items()}
        self.state[parameter] = near
        super().step()
        for key in home:
            home[key].copy_(near[key])  # on the CPU the tensor itself, of which nothing is copied
        self.state[parameter] = home
        self._pages.madvise(mmap.MADV_DONTNEED)


def _room(parameter: Tensor) -> int:
    """Bytes of one state, up to the next multiple of 64: any number may begin there."""
    return math.ceil(parameter.nbytes / 64) * 64


def _file(folder: Path, size: int) -> mmap.mmap:
    if (free := shutil.disk_usage(folder).free) < size:
        raise TrainingError(
            f"The states of the paged optimizer take {size:,} bytes; the disk of {folder} has {free:,} left. "
            "Set training.paged to false, or give a folder on another disk with --out."
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        return mmap.mmap(file.fileno(), size)


def _view(pages: mmap.mmap, place: int, like: Tensor) -> Tensor:
    return torch.frombuffer(pages, dtype=like.dtype, count=like.numel(), offset=place).view(like.shape)
