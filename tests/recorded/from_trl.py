"""What TRL says of inputs that are made from seeds: losses and gradients, as JSON beside this file.

    python -m venv trl && trl/bin/pip install "torch>=2.11,<2.14" trl==1.16.0
    pip download --no-deps trl==0.11.4 && unzip trl-0.11.4-*.whl -d old   # the last release with the first PPO trainer
    trl/bin/python tests/recorded/from_trl.py old/trl

TRL's own functions are called, with a stand-in for the trainer around them. Everything is float64 but where they turn to
float32. `tests/test_trl.py` compares ours with what was recorded; neither needs the other's package.
"""

import ast
import importlib.util
import json
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

HERE = Path(__file__).parent
VOCAB, WATCHED = (
    40,
    ("transformer.h.0.attn.c_attn.bias", "transformer.h.1.mlp.c_proj.weight", "transformer.ln_f.weight"),
)
TEMPERATURE, EPSILON = 0.7, 0.2


def model() -> Any:
    """A GPT-2 of two layers in float64, each tensor drawn from a seed of its own."""
    shape = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": VOCAB, "bos_token_id": 0}
    made = GPT2LMHeadModel(
        GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, pad_token_id=0, eos_token_id=0)
    )
    made.double().eval()
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            draw = torch.Generator().manual_seed(number)
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) * 0.3)
    return made


def numbers(seed: int, *shape: int) -> Tensor:
    """Standard normal, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prompts() -> list[list[int]]:
    """Three prompts of different lengths."""
    draw = torch.Generator().manual_seed(50)
    return [torch.randint(1, VOCAB, (n,), generator=draw).tolist() for n in (3, 5, 4)]


def pairs(alike: bool = False) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen, rejected; all completions of four ids where they are alike."""
    draw = torch.Generator().manual_seed(51)
    sizes = [(4, 4)] * 3 if alike else [(4, 2), (3, 6), (5, 5)]
    ids = lambda n: torch.randint(1, VOCAB, (n,), generator=draw).tolist()  # noqa: E731
    return [(prompt, ids(a), ids(b)) for prompt, (a, b) in zip(prompts(), sizes, strict=True)]


def samples() -> list[tuple[list[int], list[int]]]:
    """Prompt and completion, two of each prompt."""
    return [(prompt, each) for prompt, *both in pairs() for each in both]


# The stand-in


class Fused(nn.Module):
    """The model as TRL 1.16's trainers ask it: log-probabilities of the labels, 0 where there is none."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any) -> Any:
        logits = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
        wanted, logs = labels[:, 1:], logits.log_softmax(-1)
        chosen = logs.gather(-1, wanted.clamp(min=0)[..., None]).squeeze(-1)
        zero = torch.zeros_like(chosen)
        return SimpleNamespace(
            log_probs=chosen.where(wanted >= 0, zero), entropy=zero, mean_logits=zero, is_top1=zero > 0
        )


def trainer(inner: Any, **options: Any) -> Any:
    """All that TRL's functions ask of the trainer that they are methods of."""
    same = lambda x, **_: x  # noqa: E731
    around = SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same, reduce=same)
    usual = {"aux_loss_enabled": False, "_metrics": defaultdict(lambda: defaultdict(list)), "_total_train_tokens": 0}
    return SimpleNamespace(model=inner, accelerator=around, _tp_size=1, **usual, **options)


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def completions(rows: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    """Rows as the collators make them: ids, what is real, what is the completion."""
    ids, mask = padded([prompt + answer for prompt, answer in rows])
    _, of_prompt = padded([prompt + [0] * len(answer) for prompt, answer in rows])
    asked = torch.tensor([[t < len(prompt) for t in range(ids.shape[1])] for prompt, _ in rows])
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": of_prompt * ~asked}


def told(inner: Any, loss: Tensor) -> dict[str, Any]:
    """The loss and its gradient on the tensors that are watched."""
    inner.zero_grad()
    loss.backward()
    known = dict(inner.named_parameters())
    return {"loss": loss.item(), "gradient": {name: known[name].grad.flatten().tolist() for name in WATCHED}}


# TRL 1.16


def of_dpo(kind: str, alike: bool) -> dict[str, Any]:
    from trl.trainer.dpo_trainer import DPOTrainer

    inner, rows = model(), pairs(alike)
    both = [(p, a) for p, a, _ in rows] + [(p, b) for p, _, b in rows]
    reference = -5 + numbers(60, 6)
    options = {
        "ld_alpha": None,
        "precompute_ref_logps": True,
        "f_divergence_type": "reverse_kl",
        "use_weighting": False,
    }
    asking = trainer(inner, beta=0.3, label_smoothing=0.0, loss_types=[kind], loss_weights=[1.0], **options)
    given = {**completions(both), "ref_chosen_logps": reference[:3], "ref_rejected_logps": reference[3:]}
    return told(inner, DPOTrainer._compute_loss(asking, Fused(inner), given, False))


def of_kto() -> dict[str, Any]:
    """The completion of the next prompt says how far the policy is."""
    from trl.trainer.kto_trainer import KTOTrainer

    inner, rows = model(), samples()
    others = [(prompt, rows[(i + 2) % 6][1]) for i, (prompt, _) in enumerate(rows)]
    asking = trainer(inner, beta=0.3, calculate_KL=True, precompute_ref_logps=True, loss_type="kto")
    asking.desirable_weight, asking.undesirable_weight = 1.2, 0.8
    asking._compute_kl_logps = lambda *given: KTOTrainer._compute_kl_logps(asking, *given)
    given = {
        **completions(rows),
        **{f"KL_{name}": value for name, value in completions(others).items()},
        "label": torch.tensor([True, False] * 3),
        "ref_logps": -5 + numbers(61, 6),
        "ref_KL_logps": -20 + numbers(62, 6),
    }
    found = told(inner, KTOTrainer._compute_loss(asking, Fused(inner), given, False))
    return {**found, "kl": asking._metrics["eval"]["kl"][0]}


def means(inner: Any, average: bool, get: Any) -> tuple[Tensor, Tensor]:
    """Log-probabilities of chosen and rejected by TRL's own function."""
    rows = pairs()
    found = []
    for given in (completions([(p, a) for p, a, _ in rows]), completions([(p, b) for p, _, b in rows])):
        logits = inner(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
        labels = given["input_ids"].masked_fill(given["completion_mask"] == 0, -100)
        found.append(get(logits, labels, average_log_prob=average))
    return found[0], found[1]


def of_simpo() -> dict[str, Any]:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    inner = model()
    asking = trainer(inner, alpha=0.0, beta=2.0, simpo_gamma=0.6, loss_type="simpo", label_smoothing=0.0)
    losses, *_ = CPOTrainer.cpo_loss(asking, *means(inner, True, CPOTrainer.get_batch_logps))
    return told(inner, losses.mean())


def of_orpo() -> dict[str, Any]:
    """The odds ratio's part alone, which is float32 there."""
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    inner = model()
    asking = trainer(inner, beta=0.4)
    losses, *_ = ORPOTrainer.odds_ratio_loss(asking, *means(inner, True, ORPOTrainer.get_batch_logps))
    return told(inner, -losses.mean())


def by_row(inner: Any, ids: Tensor, mask: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the last `keep` ids, row by row and unpadded, and zeros in the place of entropies."""
    found = torch.zeros(len(ids), keep, dtype=torch.float64)
    for r, (row, real) in enumerate(zip(ids, mask.bool(), strict=True)):
        n = int(real[-keep:].sum())
        logs = (inner(input_ids=row[real][None]).logits[0, :-1] / TEMPERATURE).log_softmax(-1)
        drawn = logs.gather(1, row[real][1:, None]).squeeze(1)
        found = found.index_put((torch.tensor(r), torch.arange(n)), drawn[-n:])
    return found, torch.zeros_like(found)


def on_policy(inner: Any, **options: Any) -> tuple[Any, dict[str, Tensor]]:
    """A trainer and its inputs: prompts padded on the left, completions on the right."""
    asking = trainer(inner, **options)
    asking._get_per_token_logps_and_entropies = lambda m, i, a, keep, **_: (*by_row(m, i, a, keep), None)
    rows = samples()
    flipped, real = padded([prompt[::-1] for prompt, _ in rows])
    answers, written = padded([answer for _, answer in rows])
    given = {"prompt_ids": flipped.flip(1), "prompt_mask": real.flip(1)}
    return asking, {**given, "completion_ids": answers, "completion_mask": written}


def of_grpo() -> dict[str, Any]:
    from trl.trainer.grpo_trainer import GRPOTrainer

    inner = model()
    off = {"use_vllm": False, "off_policy_mask_threshold": None, "_entropy_bonus_enabled": False}
    asking, given = on_policy(inner, beta=0.1, loss_type="grpo", importance_sampling_level="token", **off)
    asking.args, asking.top_entropy_quantile = SimpleNamespace(delta=None, use_bias_correction_kl=False), 1.0
    asking.epsilon_low = asking.epsilon_high = EPSILON
    with torch.no_grad():
        now, _ = by_row(inner, *joined(given), given["completion_ids"].shape[1])
    given |= {"old_per_token_logps": now + 0.3 * numbers(70, *now.shape), "advantages": numbers(72, 6)}
    given |= {"ref_per_token_logps": now + 0.3 * numbers(71, *now.shape)}
    return told(inner, GRPOTrainer._compute_loss(asking, inner, given))


def of_rloo() -> dict[str, Any]:
    """With a clip so wide that nothing is clipped: ours has none."""
    from trl.trainer.rloo_trainer import RLOOTrainer

    inner = model()
    asking, given = on_policy(inner, epsilon_low=1e9, epsilon_high=1e9)
    with torch.no_grad():
        now, _ = by_row(inner, *joined(given), given["completion_ids"].shape[1])
    old = ((now + 0.3 * numbers(70, *now.shape)) * given["completion_mask"]).sum(1)
    return told(
        inner, RLOOTrainer._compute_loss(asking, inner, given | {"old_logps": old, "advantages": numbers(72, 6)})
    )


def joined(given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    both = [torch.cat([given[f"prompt_{what}"], given[f"completion_{what}"]], 1) for what in ("ids", "mask")]
    return both[0], both[1]


def of_reward() -> dict[str, Any]:
    """The loss of six scores and its gradient on them."""
    from trl.trainer.reward_trainer import RewardTrainer

    scores = numbers(80, 6).requires_grad_()
    asking = trainer(SimpleNamespace(training=False), args=SimpleNamespace(center_rewards_coefficient=None))
    loss = RewardTrainer.compute_loss(
        asking, lambda **_: SimpleNamespace(logits=scores), {"attention_mask": torch.ones(1)}
    )
    loss.backward()
    return {"loss": loss.item(), "gradient": scores.grad.tolist()}


# TRL 0.11.4: the functions alone, since that release does not meet the transformers of today


def functions(old: Path, wanted: dict[str, set[str]]) -> Any:
    """A module of the functions and classes that are called so in TRL's files, methods included."""
    found = [
        node
        for path, names in wanted.items()
        for node in ast.walk(ast.parse((old / path).read_text()))
        if getattr(node, "name", "") in names
    ]
    head = "from __future__ import annotations\nimport warnings, torch, numpy as np\nimport torch.nn.functional as F\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pieces.py"
        path.write_text(head + "\n".join(map(ast.unparse, found)))
        spec = importlib.util.spec_from_file_location("pieces", path)
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
    return made


def of_ppo(old: Path) -> dict[str, Any]:
    trl = functions(
        old,
        {
            "core.py": {"masked_mean", "masked_var", "masked_whiten", "clip_by_value", "entropy_from_logits"},
            "trainer/utils.py": {"AdaptiveKLController"},
            "trainer/ppo_trainer.py": {"compute_rewards", "_kl_penalty", "compute_advantages", "loss"},
        },
    )
    trl.flatten_dict = dict
    options = SimpleNamespace(
        kl_penalty="kl", whiten_rewards=False, gamma=0.9, lam=0.8, cliprange=0.2, cliprange_value=0.15, vf_coef=0.1,
        ratio_threshold=1e9,
    )  # fmt: skip
    asking = SimpleNamespace(config=options, kl_ctl=SimpleNamespace(value=0.2))
    asking._kl_penalty = lambda *given: trl._kl_penalty(asking, *given)
    lengths, scores = (4, 1, 6), numbers(90, 3)
    mask = (torch.arange(6)[None] < torch.tensor(lengths)[:, None]).long()
    logprob, reference, values = numbers(91, 3, 3, 6)
    rewards, _, _ = trl.compute_rewards(asking, scores, logprob, reference, mask)
    _, advantages, returns = trl.compute_advantages(asking, values, rewards, mask)
    now, value = (numbers(92, 2, 3, 6) * 0.3 + torch.stack([logprob, values])).requires_grad_()
    steady = torch.ones(3, 6, 2, dtype=torch.float64)
    policy, critic, _ = trl.loss(asking, logprob, values, steady, value, now, mask, advantages, returns)
    gradient = torch.autograd.grad(policy + critic, (now, value))
    controller = trl.AdaptiveKLController(0.1, 6.0, 500)
    betas = []
    for kl in (12.0, 6.6, 1.0, 5.9):
        controller.update(kl, 50)
        betas.append(float(controller.value))
    kept = mask.bool()
    columns = {"rewards": rewards, "advantages": advantages, "returns": returns}
    return {
        **{name: column[kept].tolist() for name, column in columns.items()},
        "loss": (policy + critic).item(),
        "gradient": [part[kept].tolist() for part in gradient],
        "betas": betas,
    }


def main(old: Path) -> None:
    found = {
        "dpo": of_dpo("sigmoid", False),
        "ipo": of_dpo("ipo", True),
        "kto": of_kto(),
        "simpo": of_simpo(),
        "orpo": of_orpo(),
        "grpo": of_grpo(),
        "rloo": of_rloo(),
        "reward": of_reward(),
    }
    for name, made, by in (("trl", found, version("trl")), ("trl_ppo", {"ppo": of_ppo(old)}, "0.11.4")):
        (HERE / f"{name}.json").write_text(json.dumps({"trl": by, "torch": torch.__version__, **made}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
