"""run and plan."""

import json
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from acclimate.cli.voice import voice
from acclimate.errors import InputError, UsageError
from acclimate.recipe import Recipe, load
from acclimate.report.left_out import lines
from acclimate.run.carry import carry
from acclimate.run.leave_out import carry_each, leaves_out
from acclimate.training.folder import RunFolder, claim, new_folder
from acclimate.training.signals import stopping

RUNS = Path("runs")  # below the working directory: where a run lies without --out


def run_recipe(path: Path, overrides: list[str], out: Path | None, resume: bool, quiet: bool) -> None:
    """The verb `run`."""
    recipe = load(path, overrides)
    if resume and out is None:
        raise UsageError("--resume needs --out with the folder of the unfinished run.")
    with stopping() as stop, _folder(recipe, path, out, resume) as run:
        try:
            page = (carry_each if leaves_out(recipe) else carry)(recipe, run, stop, voice(quiet))
        except InputError:
            leave_no_trace(run)
            raise
        found = json.loads(run.report.read_text(encoding="utf-8"))
        if leaves_out(recipe):
            print("\n".join(lines(found)))
        else:
            show(found)
        print(f"report: {page}")


def leave_no_trace(run: RunFolder) -> None:
    """A run whose input was wrong before it computed anything leaves nothing that would be in the way of the next try."""
    if {entry.name for entry in run.path.iterdir()} <= {".lock", "recipe.yaml"}:
        run.recipe.unlink(missing_ok=True)
        (run.path / ".lock").unlink()
        run.path.rmdir()
        if run.path.parent == RUNS:
            with suppress(OSError):  # other runs lie there
                RUNS.rmdir()


def _folder(recipe: Recipe, path: Path, out: Path | None, resume: bool) -> RunFolder:
    if out is None:
        return claim(new_folder(RUNS, path.stem, datetime.now()), resume=False)
    if resume and (out / "recipe.yaml").exists() and path.resolve() != (out / "recipe.yaml").resolve():
        _same(recipe, load(out / "recipe.yaml"), out)
    return claim(out, resume)


def _same(wanted: Recipe, begun: Recipe, out: Path) -> None:
    """A run goes on as it began; what was left open then is settled by now."""
    from acclimate.data.yaml_tables import plain
    from acclimate.run.carry import absolute

    new, old = plain(absolute(wanted)), plain(begun)
    changed = different(new, old, "")
    if changed:
        raise UsageError(
            f"{out} began with another recipe ({', '.join(changed[:4])} differ); give acclimate run {out}/recipe.yaml "
            "--resume, or another --out."
        )


def different(new: object, old: object, path: str) -> list[str]:
    """The entries in which two resolved recipes differ; what the machine settles does not count."""
    if isinstance(new, dict) and isinstance(old, dict):
        return [d for key in new for d in different(new[key], old.get(key), f"{path}.{key}".lstrip("."))]
    settled = path in ("training.precision", "task.chat") and new in (None, "auto")
    return [] if settled or new == old else [path]


def show(report: dict[str, object]) -> None:
    """The scores on standard output, before and after."""
    before, after, changed = (report[key] for key in ("base", "result", "difference"))
    for name, found in after["scores"].items():  # type: ignore[index]
        base, difference = before["scores"][name], changed[name]  # type: ignore[index]
        print(
            f"{name}: {base['value']:.4f} → {found['value']:.4f}  difference {difference['value']:+.4f} "
            f"({difference['low']:+.4f} to {difference['high']:+.4f}), p = {difference['p']:.2g}, n = {found['n']}"
        )
    if forgotten := report["forgetting"]:
        print(
            f"forgetting: perplexity of general text {forgotten['perplexity_base']:.2f} → "  # type: ignore[index]
            f"{forgotten['perplexity_result']:.2f}, general questions {forgotten['instructions_base']['value']:.3f} → "  # type: ignore[index]
            f"{forgotten['instructions_result']['value']:.3f}"  # type: ignore[index]
        )


def plan_recipe(path: Path, overrides: list[str], as_json: bool) -> None:
    """The verb `plan`."""
    from acclimate.run.predict import predict

    forecast = predict(load(path, overrides))
    if as_json:
        print(json.dumps(asdict(forecast)))
        return
    for line in forecast.lines():
        print(line)
