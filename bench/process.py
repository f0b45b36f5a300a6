"""A side as a process of its own, in the environment that it needs."""

import json
import subprocess
import sys
import venv
from hashlib import sha256
from pathlib import Path
from typing import Any

from bench.works import Peer

ROOT = Path(__file__).parents[1]
RUN = (
    "import sys, json; from importlib import import_module; from pathlib import Path; from bench.turns import serve; "
    "m = import_module('bench.sides.' + sys.argv[1]); serve(m.WORKS[sys.argv[2]](Path(sys.argv[3]), **json.loads(sys.argv[4])))"
)


class SideProcess:
    """Starts the side; `go` has it work once. What it writes to stderr goes to `log`."""

    def __init__(self, peer: Peer, folder: Path, log: Path) -> None:
        command = [
            interpreter(peer.environment),
            "-c",
            RUN,
            peer.module,
            peer.function,
            str(folder),
            json.dumps(dict(peer.options)),
        ]
        self._log = log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        ready = self._answer()
        self.parity: dict[str, Any] = ready["parity"]
        self.setting_up: float = ready["seconds"]

    def go(self) -> dict[str, float]:
        """Seconds and units of one repetition; of ours also its flops and the bytes of weights that it has to read."""
        return self._ask("go")

    def stop(self) -> int:
        """Ends the side; the most memory that it held, in bytes."""
        said = self._ask("stop")
        self._process.wait(timeout=600)
        self._log.close()
        return int(said["peak_memory_bytes"])

    def _ask(self, word: str) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"A side ended by itself; see {self._log.name}.")
        found: dict[str, Any] = json.loads(line)
        return found


def interpreter(environment: str) -> str:
    """The python of a peer's environment, which is made when it is first needed and whenever its list of versions changes."""
    if not environment:
        return sys.executable
    wanted = ROOT / "bench" / "peers" / f"{environment}.txt"
    folder = ROOT / ".bench" / f"{environment}-{sha256(wanted.read_bytes()).hexdigest()[:8]}"
    python = folder / "bin" / "python"
    if not (folder / "whole").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", wanted], check=True)
        (folder / "whole").touch()
    return str(python)
