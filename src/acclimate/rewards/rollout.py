"""On-policy data: completions are sampled, scored and turned into what each of their tokens teaches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from operator import eq
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from acclimate.errors import RecipeError
from acclimate.generation.decode import generate
from acclimate.generation.draft import Generated
from acclimate.generation.samplers import Sample
from acclimate.methods.delta import disabled
from acclimate.models import policy
from acclimate.models.collate import collate
from acclimate.models.modes import evaluating
from acclimate.objectives.advantages import gae, whiten
from acclimate.objectives.ppo import Experience
from acclimate.rewards.reward import Completion, Marks, Reward, checked, total
from acclimate.tokens.batch import Batch
from acclimate.tokens.codec import Codec, Encoded
from acclimate.tokens.schedule import passes


@dataclass(frozen=True)
class Rollouts:
    """How completions are sampled, how often each is learned from, and what staying near the reference is worth."""

    prompts: int = 16  # of an iteration
    each: int = 1  # completions of a prompt
    epochs: int = 2  # times that an iteration's completions are gone through
    parts: int = 1  # updates of an epoch
    max_new_tokens: int = 32
    temperature: float = 1.0
    beta: float = 0.05  # of the KL penalty, in reward per nat
    target: float = 0.0  # nats of KL a completion that beta is adapted to; 0: beta stays
    horizon: int = 500  # completions over which it is adapted
    unended: float = 0.0  # added to the score of a completion that its length cut off
    ptx: float = 0.0  # γ of PPO-ptx: the weight of the loss on ordinary text, data.pretrain

    def __post_init__(self) -> None:
        counts = (self.prompts, self.each, self.epochs, self.parts, self.max_new_tokens, self.horizon)
        if min(counts) < 1 or self.temperature <= 0 or min(self.beta, self.target, self.ptx) < 0:
            raise RecipeError(
                "prompts, each, epochs, parts, max_new_tokens and horizon must be at least 1, temperature above 0, and "
                "beta, target and ptx at least 0."
            )
        if self.parts > self.prompts * self.each:
            raise RecipeError(f"{self.prompts} · {self.each} completions cannot be cut into {self.parts} parts.")

    @property
    def updates(self) -> int:
        """Updates of an iteration."""
        return self.epochs * self.parts


def once(how: Rollouts, learner: Any) -> bool:
    """Whether what samples is what learns, and nothing else needs its probabilities: the update finds them itself.

    Where an iteration is one update of an objective without a value head, every ratio is 1 whatever they are.
    """
    priced = how.target or (learner.in_reward and how.beta)
    return how.updates == 1 and not learner.valued and not priced


@dataclass(frozen=True)
class Prompt:
    """A prompt as ids, and the completion's other half: the row it came from."""

    row: Encoded
    text: str
    number: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Buffer:
    """An iteration's completions: prompt and completion as one row each, and (n,) numbers for each written token.

    lengths: written tokens of each row. beta: the penalty's weight that these were made with. told: means over completions.
    """

    rows: tuple[Encoded, ...]
    numbers: tuple[int, ...]
    lengths: tuple[int, ...]
    columns: Mapping[str, Tensor]
    beta: float
    told: Mapping[str, float]

    def part(self, row: int) -> slice:
        """Where the written tokens of a row lie in the columns."""
        start = sum(self.lengths[:row])
        return slice(start, start + self.lengths[row])


COLUMNS = ("logprob", "reference", "advantages", "returns", "values")


def collect(
    model: nn.Module,
    prompts: Sequence[Prompt],
    reward: Reward,
    learner: Any,
    how: Rollouts,
    codec: Codec,
    *,
    beta: float,
    seed: int,
    originals: Mapping[str, Tensor],
    budget: int = 4096,
    stop_check: Callable[[], None] | None = None,
    judge: Reward | None = None,
) -> Buffer:
    """Sample `each` completions of every prompt, score them, and work out what their tokens teach. Nothing trains.

    learner: the objective, which says how advantages are made.
    originals: the base tensors that train, as they were (`delta.snapshot`): the reference where nothing is attached.
    judge: another opinion of the same completions, which is told and teaches nothing.
    """
    asked = [prompt for prompt in prompts for _ in range(how.each)]
    with evaluating(model):
        written = sampled(model, asked, how, codec, seed, stop_check)
        found = [completion(p, w, codec) for p, w in zip(asked, written, strict=True)]
        marks = checked(reward(found), found, type(reward).__name__)
        rows = tuple(joined(p.row, w) for p, w in zip(asked, written, strict=True))
        asked_before = not once(how, learner)
        logprob, values, reference, last = opinions(model, rows, how, codec, originals, budget, asked_before)
    drawn = Drawn(logprob, reference, values, last, tuple(c.ended for c in found))
    columns = lessons(drawn, _earned(marks, found, written, codec, how.unended), learner, beta, how.each)
    scores = torch.tensor([total(m) + (0 if c.ended else how.unended) for m, c in zip(marks, found, strict=True)])
    told = _told(scores, drawn, beta)
    if not asked_before:
        del told["rollout_kl"]  # the update's own metrics have it
    if judge is not None:
        told["judge"] = fmean(total(each) for each in checked(judge(found), found, "judge"))
    return Buffer(rows, tuple(p.number for p in asked), drawn.lengths, columns, beta, told)


@dataclass(frozen=True)
class Drawn:
    """What the models say of each completion: (length,) under the policy, the reference and the value head.

    last: () each, the value after the last token. ended: whether the completion ended by itself.
    """

    logprob: Sequence[Tensor]
    reference: Sequence[Tensor]
    values: Sequence[Tensor]
    last: Sequence[Tensor]
    ended: tuple[bool, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Written tokens of each completion."""
        return tuple(len(row) for row in self.logprob)

    @property
    def kl(self) -> list[Tensor]:
        """(length,) each: log π − log reference."""
        return [now - then for now, then in zip(self.logprob, self.reference, strict=True)]


def lessons(drawn: Drawn, earned: Sequence[Tensor], learner: Any, beta: float, each: int) -> dict[str, Tensor]:
    """COLUMNS, (n,) each, over the tokens of all completions. earned: (length,) each, the score that a token brings."""
    penalty, grid = beta if learner.in_reward else 0.0, Grid(drawn.lengths)
    rewards = [score - penalty * kl for score, kl in zip(earned, drawn.kl, strict=True)]
    returns: Sequence[Tensor] = [torch.zeros_like(v) for v in drawn.values]
    if learner.grouped:
        group = torch.arange(len(rewards)) // each
        better = learner.better(torch.stack([r.sum() for r in rewards]), group)
        advantages = [b.expand(n) for b, n in zip(better, drawn.lengths, strict=True)]
    else:
        over = [ended or learner.truncated == "ends" for ended in drawn.ended]
        last = torch.stack([torch.zeros_like(v) if done else v for done, v in zip(over, drawn.last, strict=True)])
        values = grid.of(drawn.values)
        raw = gae(grid.of(rewards), values, grid.mask, last, learner.gamma, learner.lam)
        returns, advantages = grid.apart(raw + values), grid.apart(whiten(raw, grid.mask))
    parts = (drawn.logprob, drawn.reference, advantages, returns, drawn.values)
    return {name: torch.cat(list(part)) for name, part in zip(COLUMNS, parts, strict=True)}


def sampled(
    model: nn.Module,
    prompts: Sequence[Prompt],
    how: Rollouts,
    codec: Codec,
    seed: int,
    stop_check: Callable[[], None] | None = None,
) -> list[Generated]:
    """A completion of every prompt, drawn from the policy at its temperature and nothing cut off from it (G17)."""
    return generate(
        model,
        [prompt.row.source or prompt.row.ids for prompt in prompts],
        Sample(temperature=how.temperature),
        terminators=codec.terminators,
        max_new=how.max_new_tokens,
        pad=codec.pad,
        seed=seed,
        stop_check=stop_check,
    )


def completion(prompt: Prompt, written: Generated, codec: Codec) -> Completion:
    """What a reward is shown."""
    return Completion(
        prompt.text, codec.decode(written.ids), written.finish == "stop", prompt.fields, f"prompt {prompt.number}"
    )


def joined(prompt: Encoded, written: Generated) -> Encoded:
    """Prompt and completion as one row; what was drawn is scored, its terminator included."""
    drawn = (*written.ids, written.end) if written.end >= 0 else written.ids
    ids, scored = (*prompt.ids, *drawn), (False,) * len(prompt.ids) + (True,) * len(drawn)
    return prompt._replace(ids=ids, scored=scored)


def experiences(
    model: nn.Module, buffer: Buffer, chosen: Sequence[int], how: Rollouts, codec: Codec, budget: int, own: bool = False
) -> list[Experience]:
    """The rows `chosen` of a buffer as batches of at most `budget` tokens. own: of a buffer whose policy learns `once`."""
    cut = passes(chosen, [row.size for row in buffer.rows], budget)
    made = []
    for part in cut:
        batch = _batch(model, [buffer.rows[i] for i in part], codec, [buffer.numbers[i] for i in part])
        of = {name: torch.cat([buffer.columns[name][buffer.part(i)] for i in part]) for name in COLUMNS}
        moved: dict[str, Any] = {name: column.to(batch.ids.device) for name, column in of.items()}
        moved |= {"logprob": None} if own else {}
        made.append(Experience(batch, temperature=how.temperature, beta=buffer.beta, **moved))
    return made


def adapted(beta: float, kl: float, how: Rollouts) -> float:
    """β after an iteration with a mean of `kl` nats a completion. Ziegler et al. 2019, arXiv:1909.08593, section 2.2.

    >>> round(adapted(0.1, 12.0, Rollouts(target=6.0, prompts=50, horizon=500)), 6)  # 0.1 · (1 + 0.2 · 50 / 500)
    0.102
    """
    if not how.target:
        return beta
    error = min(0.2, max(-0.2, kl / how.target - 1))
    return beta * (1 + error * how.prompts * how.each / how.horizon)


@dataclass(frozen=True)
class Grid:
    """Rows of different lengths as a rectangle, and back."""

    lengths: tuple[int, ...]

    @property
    def mask(self) -> Tensor:
        """(rows, time) True = a token."""
        return torch.arange(max(self.lengths))[None] < torch.tensor(self.lengths)[:, None]

    def of(self, parts: Sequence[Tensor]) -> Tensor:
        """(rows, time), 0 behind the end of a row."""
        return nn.utils.rnn.pad_sequence(list(parts), batch_first=True)

    def apart(self, grid: Tensor) -> list[Tensor]:
        """The rows, each as long as it is."""
        return [row[:length] for row, length in zip(grid, self.lengths, strict=True)]


def undressed(row: Encoded, codec: Codec) -> Encoded:
    """The row without an adapter's soft tokens, which the reference does not know."""
    soft = {*codec.front, *codec.back}
    kept = [place for place, token in enumerate(row.ids) if token not in soft]
    ids, scored = tuple(row.ids[place] for place in kept), tuple(row.scored[place] for place in kept)
    return row._replace(ids=ids, scored=scored, source=tuple(token for token in row.source if token not in soft))


def _batch(model: nn.Module, rows: Sequence[Encoded], codec: Codec, numbers: Sequence[int] = ()) -> Batch:
    return collate(model, rows, codec.pad, numbers, share=True)


@torch.no_grad()
def opinions(
    model: nn.Module,
    rows: Sequence[Encoded],
    how: Rollouts,
    codec: Codec,
    originals: Mapping[str, Tensor],
    budget: int,
    own: bool = True,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Of every row: log-probabilities, values and the reference's log-probabilities, (length,) each, and the value after.

    own: whether the policy is asked; else the reference's stand for its own, and the values are 0.
    """
    empty = torch.zeros(0)
    logprob, values, reference, last = ([empty] * len(rows) for _ in range(4))
    kept = {**originals, **{n: p.data for n, p in model.named_parameters() if n.startswith(policy.VALUE)}}
    for part in passes(range(len(rows)), [row.size for row in rows], budget):
        with disabled(model, kept):
            plain = _batch(model, [undressed(rows[i], codec) for i in part], codec)
            then = policy.score(model, plain, how.temperature)
        now, after = then, then.logprob.new_zeros(len(part))
        if own:
            now, after = policy.score_to_the_end(model, _batch(model, [rows[i] for i in part], codec), how.temperature)
        for place, i in enumerate(part):
            mine = plain.owner == place
            logprob[i], values[i] = now.logprob[mine].cpu(), now.value[mine].cpu()
            reference[i], last[i] = then.logprob[mine].cpu(), after[place].cpu()
    return logprob, values, reference, last


def _earned(
    marks: Sequence[Marks], found: Sequence[Completion], written: Sequence[Generated], codec: Codec, unended: float
) -> list[Tensor]:
    """The score of every token: a mark lands on the token that writes the character before its end."""
    earned = []
    for given, done, drawn in zip(marks, found, written, strict=True):
        row, stands = torch.zeros(len(drawn.ids) + (drawn.end >= 0)), settled(drawn.ids, done.text, codec)
        for end, score in given:
            row[place_of(end, stands) if end < len(done.text) else -1] += score
        row[-1] += 0.0 if done.ended else unended
        earned.append(row)
    return earned


def settled(ids: Sequence[int], text: str, codec: Codec) -> list[int]:
    """How many characters of `text`, what the ids spell, stand as they will after each of them.

    A character of several tokens stands after the last of them: until then decoding shows another one in its place.
    """
    return [sum(takewhile(bool, map(eq, codec.decode(ids[: t + 1]), text))) for t in range(len(ids))]


def place_of(end: int, stands: Sequence[int]) -> int:
    """The first token after which the first `end` characters stand; `stands` is what `settled` gives.

    >>> place_of(2, [0, 1, 4])
    2
    """
    return next((t for t, count in enumerate(stands) if count >= end), len(stands) - 1)


def _told(scores: Tensor, drawn: Drawn, beta: float) -> dict[str, float]:
    return {
        "reward": float(scores.mean()),
        "reward_sd": float(scores.std(unbiased=False)),
        "rollout_kl": float(torch.stack([row.sum() for row in drawn.kl]).mean()),
        "length": sum(drawn.lengths) / len(drawn.lengths),
        "ended": sum(drawn.ended) / len(drawn.ended),
        "beta": beta,
    }
