"""bench.html: one table, self-contained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2.sandbox import SandboxedEnvironment


def page(found: Mapping[str, Any]) -> str:
    """The page of what `bench.json` holds."""
    text = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    return SandboxedEnvironment(autoescape=True).from_string(text).render(machine=found["machine"], rows=found["rows"])
