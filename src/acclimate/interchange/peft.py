"""LoRA adapters in the format of Hugging Face PEFT, both ways: what vLLM and most other tools read.

    adapter_config.json         rank, alpha, which modules
    adapter_model.safetensors   base_model.model.<module>.lora_A.weight (r, d_in) and .lora_B.weight (d_out, r)

Which modules carry the change is read off the tensors, so every way of saying it (a list of endings, an expression,
"all-linear", single layers) is understood. PEFT has options that `LoRA` has no word for; they are refused by name, and
so is every option that this file has never heard of, unless it is off.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from acclimate.errors import SourceError
from acclimate.methods.artifact import read_facts, read_tensors, tensors, write_tensors
from acclimate.methods.delta import carriers
from acclimate.methods.lora import LoRA
from acclimate.methods.targets import width

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "bias", "init_lora_weights"}
_NO_MATTER = {  # who made it, which modules (the tensors say so), and how training began
    *("task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
    *(
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
    ),
}
# Other ways to begin change the base model as well (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA), or the formula (MiCA).
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


def write(model: nn.Module, method: LoRA, folder: Path, base_name: str, name: str = "default") -> None:
    """Write the adapter `name` of `model` into the existing `folder`, as PEFT does; `base_name` is the model's."""
    carrying = carriers(model, name)
    config = {
        "peft_type": "LORA",
        "task_type": _task(model),
        "base_model_name_or_path": base_name,
        "r": method.rank,
        "lora_alpha": int(method.alpha) if float(method.alpha).is_integer() else method.alpha,
        "lora_dropout": method.dropout,
        "target_modules": target_modules(model, list(carrying)),
        "fan_in_fan_out": any(width(module).transposed for module in carrying.values()),
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }
    own = tensors(model, name)
    found = {
        f"base_model.model.{path}.lora_{letter.upper()}.weight": own[f"{path}.delta.{letter}"]
        for path in carrying
        for letter in "ab"
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_tensors(found, folder / WEIGHTS)


def read(folder: Path) -> tuple[LoRA, dict[str, Tensor]]:
    """The method and its tensors, named as `artifact.fill` wants them, of an adapter that PEFT wrote.

    Raises SourceError for what is absent, damaged or a pickle, and for what `LoRA` cannot express.
    """
    if not (folder / WEIGHTS).is_file():
        pickled = f" Its {PICKLE} is a pickle, which can run code: load it with PEFT and save_pretrained it again."
        raise SourceError(f"{folder} holds no {WEIGHTS}.{pickled if (folder / PICKLE).exists() else ''}")
    where = str(folder / CONFIG)
    config = read_facts(folder / CONFIG)
    _refuse(config, where)
    found = _renamed(read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
    rank = _number(config, "r", 8, where)
    if rank < 1 or rank != int(rank):
        raise SourceError(f"{where}: r is {rank}; it must be a whole number from 1.")
    alpha = float(_number(config, "lora_alpha", 8, where))
    if config.get("use_rslora"):
        alpha *= math.sqrt(rank)  # rank-stabilised LoRA, arXiv:2312.03732, scales by alpha / √r
    targets = dict.fromkeys(key.rpartition(".delta.")[0] for key in found)
    return LoRA(int(rank), alpha, float(_number(config, "lora_dropout", 0, where)), tuple(targets)), found


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
    if config.get("peft_type") != "LORA":
        raise SourceError(f"{where}: peft_type is {config.get('peft_type')!r}; only 'LORA' can be read.")
    if config.get("bias", "none") != "none":
        raise SourceError(f"{where}: bias is {config['bias']!r}, so biases were trained too; only 'none' can be read.")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        raise SourceError(
            f"{where}: init_lora_weights is {config['init_lora_weights']!r}, which changed the base model too; save "
            "it with PEFT's path_initial_model_for_weight_conversion, which writes a plain LoRA."
        )
    for option in sorted(config.keys() - _READ - _NO_MATTER):
        if config[option]:
            raise SourceError(
                f"{where}: {option} is {json.dumps(config[option])[:80]}, which this LoRA cannot express; "
                "merge the adapter with PEFT and use the merged model."
            )


def _renamed(found: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """PEFT's names → artifact names, of matrices only."""
    renamed = {}
    for key, tensor in sorted(found.items()):
        match = _KEY.fullmatch(key)
        if match is None or tensor.ndim != 2:
            raise SourceError(
                f"{where} holds {key}, {tuple(tensor.shape)}; only lora_A and lora_B matrices can be read."
            )
        renamed[f"{match[1]}.delta.{match[2].lower()}"] = tensor
    if not renamed:
        raise SourceError(f"{where} holds no tensors.")
    return renamed


def _number(config: Mapping[str, object], option: str, default: float, where: str) -> float:
    value = config.get(option, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SourceError(f"{where}: {option} is {value!r}; it must be a number.")
    return value
