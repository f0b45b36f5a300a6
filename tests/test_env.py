"""What `acclimate env` says was decided for this machine."""

import json

import pytest
import torch
from typer.testing import CliRunner

from acclimate.cli.main import app
from acclimate.methods import grouped
from acclimate.models import compiled, varlen

CUDA = ("cuda_attention", "cuda_norms_and_gates", "cuda_adapters", "cuda_decoding")


def said() -> dict[str, object]:
    told: dict[str, object] = json.loads(CliRunner().invoke(app, ["env", "--json"]).stdout)
    return told


def test_of_a_gpu_only_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not [name for name in said() if name.startswith("cuda")]


@pytest.mark.parametrize(
    ("capability", "wanted"),
    [
        ((7, 5), ("piece by piece", "one after the other")),
        ((8, 0), ("all documents in one call, of 16 bits a number", "one after the other")),
        ((9, 0), ("all documents in one call, of 16 bits a number", "by grouped products in bfloat16")),
    ],
)
def test_what_a_gpu_of_that_kind_is_given(monkeypatch, capability, wanted):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    for module in (varlen, grouped):
        monkeypatch.setattr(module, "offered", module.offered.__wrapped__)
    assert (varlen.describe(), grouped.describe()) == wanted


@pytest.mark.gpu
def test_on_a_gpu_it_is_told():
    found = said()
    assert set(CUDA) <= found.keys()
    assert (found["cuda_norms_and_gates"] == "compiled by PyTorch") == compiled.offered()
