"""What is watched while it goes on to work."""

from types import ModuleType

import pytest


def called(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[str]:
    """The names of all kernels that `module` calls from now on, through its `_call`."""
    seen: list[str] = []
    plain = module._call
    monkeypatch.setattr(module, "_call", lambda name, *rest, **more: (seen.append(name), plain(name, *rest, **more))[1])
    return seen
