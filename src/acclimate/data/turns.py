"""Conversations: how turns are spelled (role and content, or ShareGPT's from and value) and in what order they come."""

from collections.abc import Mapping

from acclimate.data.examples import Message
from acclimate.data.problem import Refused
from acclimate.data.values import SHORT, Raw, found, needed, sequence, spelled, text
from acclimate.errors import unknown

ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "human": "user",  # ShareGPT's names
    "gpt": "assistant",
}
NEXT = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def conversation(value: object, name: str) -> tuple[Message, ...]:
    """Turns to learn from: in order, ended by an assistant, at least one of them trained."""
    messages = _ordered(turns(value, name), name)
    if messages[-1].role != "assistant":
        last = f"{name}[{len(messages) - 1}]"
        raise Refused("roles", f"ends with {messages[-1].role} at {last}; an assistant must answer last.")
    if not any(message.train for message in messages if message.role == "assistant"):
        raise Refused("roles", f"has no assistant turn to train on in {name}; every one says train: false.")
    return messages


def prompt(value: object, name: str = "prompt") -> tuple[Message, ...]:
    """What is asked: one text, or turns up to the one that an assistant is to answer."""
    if not isinstance(value, list):
        return (Message("user", text(value, name)),)
    return asked(turns(value, name), name)


def asked(messages: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    """`messages` if an assistant could answer now."""
    if not messages or _ordered(messages, name)[-1].role not in ("user", "tool"):
        last = f"ends with {messages[-1].role}" if messages else "has no turn"
        raise Refused("roles", f"has a prompt that {last}; an assistant answers a user or a tool.")
    return messages


def turns(value: object, name: str) -> tuple[Message, ...]:
    """The turns of a list, whatever their order."""
    return tuple(_turn(turn, f"{name}[{index}]") for index, turn in enumerate(sequence(value, name)))


def _ordered(messages: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    before = ""
    for index, message in enumerate(messages):
        if message.role not in NEXT[before]:
            place = f"after {before}" if before else "first"
            possible = " or ".join(NEXT[before])
            raise Refused("roles", f"has {message.role} {place} at {name}[{index}]; there it can be {possible}.")
        before = message.role
    return messages


def _turn(turn: object, name: str) -> Message:
    if not isinstance(turn, Mapping):
        raise Refused("type", f"has {found(turn)} as {name}; a turn is an object with role and content.")
    who, what = ("from", "value") if "from" in turn or "value" in turn else ("role", "content")
    given = text(needed(turn, who, "turn", f" at {name}"), f"{name}.{who}")
    if given not in ROLES:
        raise Refused("roles", f"has an unknown role at {name}. " + unknown("role", given[:SHORT], ROLES))
    role = ROLES[given]
    if turn.get("tool_calls") or turn.get("function_call"):
        raise Refused("roles", f"calls a tool beside its text at {name}; write the call into {what}.")
    train = _trained(turn, role, name)
    content = needed(turn, what, "turn", f" at {name}")
    if content == "" and (role in ("system", "tool") or not train):  # there, silence says something
        return Message(role, "", train)
    return Message(role, text(content, f"{name}.{what}"), train)


def _trained(turn: Raw, role: str, name: str) -> bool:
    key = "train" if turn.get("train") is not None else "weight"
    if turn.get(key) is None:
        spelled(turn, ("role", "content", "from", "value"), ("train", "weight"), f" at {name}")
        return True
    value = turn[key]
    if not (isinstance(value, bool) if key == "train" else value in (0, 1)):
        possible = "true or false" if key == "train" else "0 or 1"
        raise Refused("type", f"has {found(value)} as {name}.{key}; it is {possible}.")
    if value and role != "assistant":
        raise Refused("roles", f"asks to train on a {role} turn at {name}; only an assistant's is learned.")
    return bool(value)
