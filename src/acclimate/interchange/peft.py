"""Low-rank and (IA)³ adapters in the format of Hugging Face PEFT, both ways: what vLLM and most other tools read.

    adapter_config.json         the kind, rank, alpha, which modules
    adapter_model.safetensors   base_model.model.<module>.lora_A.weight (r, d_in) and .lora_B.weight (d_out, r),
                                DoRA's .lora_magnitude_vector (d_out,); (IA)³'s .ia3_l, (d_out, 1) or (1, d_in)

Which modules carry the change is read off the tensors, so every way of saying it (a list of endings, an expression,
"all-linear", single layers) is understood. PEFT has options that our methods have no word for; they are refused by
name, and so is every option that this file has never heard of, unless it is off.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from acclimate.errors import SourceError
from acclimate.methods.artifact import read_facts, read_tensors, tensors, write_tensors
from acclimate.methods.delta import Switch, carriers
from acclimate.methods.dora import Decomposed, DoRA
from acclimate.methods.ia3 import IA3, InputScale, OutputScale
from acclimate.methods.lora import LoRA, LowRank
from acclimate.methods.qlora import QLoRA
from acclimate.methods.rslora import RsLoRA
from acclimate.methods.targets import width

Known = LoRA | RsLoRA | DoRA | IA3 | QLoRA

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_RIDES: dict[type, tuple[type, ...]] = {
    LoRA: (LowRank,),
    RsLoRA: (LowRank,),
    QLoRA: (LowRank,),
    DoRA: (Decomposed,),
    IA3: (OutputScale, InputScale),
}
_THEIRS = {"a": "lora_A.weight", "b": "lora_B.weight", "m": "lora_magnitude_vector"}
_KEY = re.compile(r"base_model\.model\.(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector|ia3_l)")
_READ = {
    "LORA": {"r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias", "init_lora_weights"},
    "IA3": {"feedforward_modules", "init_ia3_weights"},  # the tensors' shapes say which scale an input
}
_WORDS = {"LORA": "lora_A and lora_B matrices and magnitudes", "IA3": "ia3_l rows and columns"}
_NO_MATTER = {  # who made it, which modules (the tensors say so), and how training began
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("peft_version", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_core", "qalora_group_size"),
    "runtime_config",
}
# Other ways to begin change the base model as well (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA), or the formula (MiCA).
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


def expresses(model: nn.Module, method: object, name: str = "default") -> bool:
    """Whether PEFT has a word for all that the adapter `name` of `model`, trained by `method`, holds."""
    riding = [cast(Switch, module.delta)[name] for module in carriers(model, name).values()]
    return all(type(delta) in _RIDES.get(type(method), ()) for delta in riding)


def write(model: nn.Module, method: Known, folder: Path, base_name: str, name: str = "default") -> None:
    """Write the adapter `name` of `model` into the existing `folder`, as PEFT does; `base_name` is the model's.

    An (IA)³ of part of a matrix becomes one of all of it, with ones: PEFT has no other.
    """
    carrying = carriers(model, name)
    chosen = target_modules(model, list(carrying))
    config: dict[str, object] = {
        "task_type": _task(model),
        "base_model_name_or_path": base_name,
        "target_modules": chosen,
        "fan_in_fan_out": any(width(module).transposed for module in carrying.values()),
        "inference_mode": True,
        "modules_to_save": None,
    }
    if isinstance(method, IA3):
        scales = {path: cast(Switch, module.delta)[name] for path, module in carrying.items()}
        config |= _about_ia3(chosen, [path for path, scale in scales.items() if isinstance(scale, InputScale)], scales)
        found = {f"{path}.ia3_l": _as_matrix(scale) for path, scale in scales.items()}
    else:
        config |= _about_lora(method)
        letters = "abm" if isinstance(method, DoRA) else "ab"
        own = tensors(model, name)
        found = {f"{path}.{_THEIRS[key]}": own[f"{path}.delta.{key}"] for path in carrying for key in letters}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_tensors({f"base_model.model.{key}": tensor for key, tensor in found.items()}, folder / WEIGHTS)


def read(folder: Path) -> tuple[Known, dict[str, Tensor]]:
    """The method and its tensors, named as `artifact.fill` wants them, of an adapter that PEFT wrote.

    Raises SourceError for what is absent, damaged or a pickle, and for what no method of ours can express.
    """
    if not (folder / WEIGHTS).is_file():
        pickled = f" Its {PICKLE} is a pickle, which can run code: load it with PEFT and save_pretrained it again."
        raise SourceError(f"{folder} holds no {WEIGHTS}.{pickled if (folder / PICKLE).exists() else ''}")
    where = str(folder / CONFIG)
    config = read_facts(folder / CONFIG)
    _refuse(config, where)
    found = _by_module(read_tensors(folder / WEIGHTS), str(folder / WEIGHTS), str(config["peft_type"]))
    if config["peft_type"] == "IA3":
        inputs = {path for path, _ in found if found[path, "ia3_l"].shape[0] == 1}
        scaled = IA3(tuple(path for path, _ in found if path not in inputs), tuple(sorted(inputs)))
        return scaled, {f"{path}.delta.l": tensor.flatten() for (path, _), tensor in found.items()}
    ours = {theirs: key for key, theirs in _THEIRS.items()}
    method = _low_rank(config, tuple(dict.fromkeys(path for path, _ in found)), where)
    return method, {f"{path}.delta.{ours[theirs]}": tensor for (path, theirs), tensor in found.items()}


def _low_rank(config: Mapping[str, object], targets: tuple[str, ...], where: str) -> Known:
    rank = _number(config, "r", 8, where)
    if rank < 1 or rank != int(rank):
        raise SourceError(f"{where}: r is {rank}; it must be a whole number from 1.")
    alpha, dropout = float(_number(config, "lora_alpha", 8, where)), float(_number(config, "lora_dropout", 0, where))
    if config.get("use_dora"):
        stable = math.sqrt(rank) if config.get("use_rslora") else 1  # PEFT has both at once
        return DoRA(int(rank), alpha * stable, dropout, targets)
    return (RsLoRA if config.get("use_rslora") else LoRA)(int(rank), alpha, dropout, targets)


def _about_lora(method: LoRA | RsLoRA | DoRA | QLoRA) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "r": method.rank,
        "lora_alpha": int(method.alpha) if float(method.alpha).is_integer() else method.alpha,
        "lora_dropout": method.dropout,
        "bias": "none",
        "init_lora_weights": True,
        "use_dora": isinstance(method, DoRA),
        "use_rslora": isinstance(method, RsLoRA),
    }


def _about_ia3(chosen: Sequence[str] | str, inputs: Sequence[str], scaled: Iterable[str]) -> dict[str, object]:
    """PEFT wants feedforward_modules among target_modules, and takes them for endings even within a word."""
    endings = [] if isinstance(chosen, str) else [e for e in chosen if any(f".{n}".endswith(f".{e}") for n in inputs)]
    exact = [path for path in scaled if path.endswith(tuple(endings))] == list(inputs)
    expression = "|".join(re.escape(path) for path in inputs)
    return {"peft_type": "IA3", "feedforward_modules": endings if exact else expression, "init_ia3_weights": True}


def _as_matrix(scale: nn.Module) -> Tensor:
    return scale.l.detach()[None] if isinstance(scale, InputScale) else cast(OutputScale, scale).scale.detach()[:, None]


def target_modules(model: nn.Module, chosen: Sequence[str]) -> list[str] | str:
    """What PEFT calls target_modules: the shortest endings that fit the chosen modules and no other one of `model`.

    Where none do, whole names; and where even a whole name is another one's ending, an expression.
    """
    others = [n for n, _ in model.named_modules() if "delta" not in n.split(".") and n not in set(chosen)]
    for length in range(1, 1 + max(name.count(".") + 1 for name in chosen)):
        endings = sorted({".".join(name.split(".")[-length:]) for name in chosen})
        if not any(f".{other}".endswith(tuple(f".{ending}" for ending in endings)) for other in others):
            return endings
    return "|".join(re.escape(name) for name in chosen)


def _task(model: nn.Module) -> str | None:
    """PEFT would add a head of its own to a classifier, so only generating models name their task."""
    generates = getattr(model, "can_generate", None)
    if generates is None or not generates():
        return None
    return "SEQ_2_SEQ_LM" if getattr(model.config, "is_encoder_decoder", False) else "CAUSAL_LM"


def _refuse(config: Mapping[str, object], where: str) -> None:
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in _READ:
        raise SourceError(f"{where}: peft_type is {kind!r}; only 'LORA' and 'IA3' can be read.")
    if config.get("bias", "none") != "none":
        raise SourceError(f"{where}: bias is {config['bias']!r}, so biases were trained too; only 'none' can be read.")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        raise SourceError(
            f"{where}: init_lora_weights is {config['init_lora_weights']!r}, which changed the base model too; save "
            "it with PEFT's path_initial_model_for_weight_conversion, which writes a plain LoRA."
        )
    for option in sorted(config.keys() - _READ[kind] - _NO_MATTER):
        if config[option]:
            raise SourceError(
                f"{where}: {option} is {json.dumps(config[option])[:80]}, which our {kind} cannot express; "
                "merge the adapter with PEFT and use the merged model."
            )


def _by_module(found: Mapping[str, Tensor], where: str, kind: str) -> dict[tuple[str, str], Tensor]:
    """(module, PEFT's word) → tensor, of the shapes that `kind` has."""
    parted: dict[tuple[str, str], Tensor] = {}
    for key, tensor in sorted(found.items()):
        match = _KEY.fullmatch(key)
        if match is None or not _fits(match[2], tensor, kind):
            raise SourceError(f"{where} holds {key}, {tuple(tensor.shape)}; only {_WORDS[kind]} can be read.")
        parted[match[1], match[2]] = tensor
    if not parted:
        raise SourceError(f"{where} holds no tensors.")
    return parted


def _fits(word: str, tensor: Tensor, kind: str) -> bool:
    if kind == "IA3":
        return word == "ia3_l" and tensor.ndim == 2 and 1 in tensor.shape
    return word != "ia3_l" and tensor.ndim == (1 if word == _THEIRS["m"] else 2)


def _number(config: Mapping[str, object], option: str, default: float, where: str) -> float:
    value = config.get(option, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SourceError(f"{where}: {option} is {value!r}; it must be a number.")
    return value
