"""The adapters beneath a folder, by what they say of themselves."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from acclimate.errors import SourceError, UsageError
from acclimate.interchange import delta_weights, peft
from acclimate.methods import artifact

_WEIGHTS = (artifact.WEIGHTS, peft.WEIGHTS, delta_weights.WEIGHTS)


@dataclass(frozen=True)
class Kept:
    """An adapter or a difference on disk. date: of its weights, UTC; bytes: of all its files."""

    path: Path
    model: str
    method: str
    date: str
    bytes: int


def shelf(folder: Path) -> list[Kept]:
    """All adapters in `folder` and below, by path. Raises UsageError where there is no such folder."""
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.")
    found = {path.parent: path for name in _WEIGHTS for path in folder.rglob(name)}
    return [_kept(place, found[place]) for place in sorted(found)]


def _kept(place: Path, weights: Path) -> Kept:
    method, model = _said(place, weights)
    date = datetime.fromtimestamp(weights.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M")
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return Kept(place, model, method, date, size)


def _said(place: Path, weights: Path) -> tuple[str, str]:
    """The method and the name of the base; PEFT's own folders say less, damaged ones nothing."""
    ours = (place / artifact.FACTS).exists()
    try:
        facts = artifact.read_facts(place / (artifact.FACTS if ours else peft.CONFIG))
    except SourceError:
        return "damaged", ""
    if not ours:
        return str(facts.get("peft_type", "unknown")).lower(), str(facts.get("base_model_name_or_path") or "")
    method = facts.get("method")
    name = method.get("name") if isinstance(method, dict) else facts.get("format", "unknown")
    return str(name), str(facts.get("model", ""))
