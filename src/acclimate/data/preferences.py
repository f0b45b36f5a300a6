"""What people said about completions, as rows hold it: a better and a worse one, a ranking, spans with errors."""

from collections.abc import Mapping

from acclimate.data import turns
from acclimate.data.examples import Feedback, Message, Preference, Ranking, Span
from acclimate.data.problem import Refused
from acclimate.data.values import Raw, finite, found, items, needed, sequence, spelled, text, texts, whole


def preference(row: Raw, where: str) -> Preference:
    """`chosen` and `rejected`, each a text, a turn, or the whole conversation whose last turn it is."""
    chosen, rejected = row["chosen"], row["rejected"]
    prompt = turns.prompt(row["prompt"]) if row.get("prompt") is not None else _shared(chosen, rejected)
    best, worst = _reply(chosen, "chosen", prompt), _reply(rejected, "rejected", prompt)
    if best == worst:
        raise Refused("preference", "has the same text as chosen and rejected; a preference needs two that differ.")
    return Preference(prompt, best, worst, where)


def _shared(chosen: object, rejected: object) -> tuple[Message, ...]:
    """The prompt of two whole conversations: all that they share."""
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise Refused("missing", "has no prompt; each Preference needs one, or two whole conversations that share it.")
    first, second = turns.turns(chosen, "chosen"), turns.turns(rejected, "rejected")
    for index, (one, other) in enumerate(zip(first[:-1], second[:-1])):
        if (one.role, one.content) != (other.role, other.content):
            raise Refused("preference", f"has no shared prompt: chosen and rejected part at [{index}], before the end.")
    if len(first) != len(second):
        raise Refused("preference", f"has {len(first)} chosen and {len(second)} rejected turns; only the last differs.")
    return turns.asked(first[:-1], "chosen")


def _reply(value: object, name: str, prompt: tuple[Message, ...]) -> str:
    """One assistant's answer: as text, as a turn, or as the whole conversation that it ends."""
    if not isinstance(value, list):
        return text(value, name)
    given = [(message.role, message.content) for message in turns.turns(value, name)]
    opening = [(message.role, message.content) for message in prompt]
    rest = given[len(opening) :] if given[: len(opening)] == opening else given
    if [role for role, _ in rest] != ["assistant"]:
        roles = ", ".join(role for role, _ in rest) or "nothing"
        raise Refused("preference", f"has {roles} after the prompt in {name}; one assistant turn is compared.")
    return text(rest[0][1], f"{name}[{len(given) - 1}]")


def ranking(row: Raw, where: str) -> Ranking:
    """`ranking[i]` is the place of `completions[i]`: 1 the best, ties equal, not all of them tied."""
    completions = texts(row["completions"], "completions")
    ranks = tuple(whole(rank, f"ranking[{i}]") for i, rank in enumerate(sequence(row["ranking"], "ranking")))
    if len(completions) != len(ranks):
        raise Refused("ranking", f"has {len(completions)} completions and {len(ranks)} places in ranking; one each.")
    if min(ranks) != 1 or max(ranks) > len(ranks):
        raise Refused("ranking", f"has places {min(ranks)} to {max(ranks)} in ranking; they go from 1 to {len(ranks)}.")
    if max(ranks) == 1:
        raise Refused("ranking", "has every completion in place 1; a ranking puts one before another.")
    return Ranking(turns.prompt(row["prompt"]), completions, ranks, where)


def feedback(row: Raw, where: str) -> Feedback:
    """`spans`, each {start, end, kind, score}: characters of the completion; no span means that all is well."""
    completion = text(row["completion"], "completion")
    spans = tuple(_span(span, f"spans[{i}]", len(completion)) for i, span in enumerate(items(row["spans"], "spans")))
    return Feedback(turns.prompt(row["prompt"]), completion, spans, where)


def _span(span: object, name: str, length: int) -> Span:
    if not isinstance(span, Mapping):
        raise Refused("type", f"has {found(span)} as {name}; a span is an object with start, end, kind and score.")
    start, end, kind = (needed(span, key, "span", f" at {name}") for key in ("start", "end", "kind"))
    if not 0 <= whole(start, f"{name}.start") < whole(end, f"{name}.end") <= length:
        raise Refused(
            "spans", f"has {name} from {start} to {end}; it must hold something of the completion's {length}."
        )
    spelled(span, ("start", "end", "kind"), ("score",), f" at {name}")
    score = span.get("score")
    return Span(start, end, text(kind, f"{name}.kind"), -1.0 if score is None else finite(score, f"{name}.score"))
