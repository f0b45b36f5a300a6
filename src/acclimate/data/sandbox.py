"""Jinja for templates that came from somewhere else: immutable, and bounded in size, iterations and output."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from jinja2 import ChainableUndefined, StrictUndefined, TemplateError, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from acclimate.errors import DataError, unknown

LONGEST_TEMPLATE = 100_000  # characters
LONGEST_TEXT = 10_000_000  # characters of one rendering
MOST_ITERATIONS = 1_000_000  # of all loops of one rendering together
MOST_SECONDS = 10.0


class _Sandbox(ImmutableSandboxedEnvironment):
    """Immutable, and a product, power or format cannot make a string that fills the memory."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not _small(left, right):
            raise SecurityError("a power of numbers this large is not allowed")
        if operator == "%" and isinstance(left, str):
            raise SecurityError("formatting with % is not allowed; write {{ … }}")
        if operator == "*" and _product(left, right) > LONGEST_TEXT:
            raise SecurityError("a text this long is not allowed")
        return super().call_binop(context, operator, left, right)


def _small(left: Any, right: Any) -> bool:
    return all(isinstance(x, int | float) and abs(x) <= 10_000 for x in (left, right)) and abs(right) <= 16


def _product(left: Any, right: Any) -> int:
    text, times = (left, right) if hasattr(left, "__len__") else (right, left)
    return len(text) * times if hasattr(text, "__len__") and isinstance(times, int) else 0


class Rendered:
    """A compiled template: call it with the names it may use."""

    def __init__(self, source: str, strict: bool = True) -> None:
        if len(source) > LONGEST_TEMPLATE:
            raise DataError(f"A template of {len(source):,} characters is too long; {LONGEST_TEMPLATE:,} are allowed.")
        self.environment = _environment(StrictUndefined if strict else ChainableUndefined)
        try:
            tree = self.environment.parse(source)
            self.names = frozenset(find_undeclared_variables(tree))
            for loop in tree.find_all(nodes.For):
                loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
            code = self.environment.compile(tree)
        except TemplateSyntaxError as error:
            raise DataError(f"The template is not valid Jinja: {error.message} (line {error.lineno}).") from None
        self.template = self.environment.template_class.from_code(
            self.environment, code, self.environment.globals.copy()
        )

    def __call__(self, values: Mapping[str, Any]) -> str:
        budget = _Budget()
        pieces: list[str] = []
        length = 0
        try:
            for piece in self.template.generate({**values, "_budget": budget}):
                pieces.append(piece)
                length += len(piece)
                if length > LONGEST_TEXT:
                    raise SecurityError("the text grows too long")
                budget.check()
        except UndefinedError as error:
            raise DataError(f"The template cannot be filled: {error.message}. {_present(values)}") from None
        except TemplateError as error:
            raise DataError(f"The template cannot be filled: {error.message}.") from None
        except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError) as error:
            raise DataError(f"The template cannot be filled: {type(error).__name__}: {error}.") from None
        return "".join(pieces)


def _present(values: Mapping[str, Any]) -> str:
    return f"There is: {', '.join(sorted(values))}."


class _Budget:
    """How many iterations and seconds one rendering has left."""

    def __init__(self) -> None:
        self.left, self.end = MOST_ITERATIONS, time.monotonic() + MOST_SECONDS

    def check(self) -> None:
        if self.left < 0:
            raise SecurityError("its loops run too often")
        if time.monotonic() > self.end:
            raise SecurityError(f"it takes longer than {MOST_SECONDS:.0f} seconds")

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0 or self.left % 1000 == 0:
            self.check()


@pass_context
def _counted(context: Any, items: Iterable[Any]) -> Iterator[Any]:
    budget = context.get("_budget")
    for item in items:
        budget.spend()
        yield item


def _environment(undefined: type[Undefined]) -> _Sandbox:
    # whitespace rules as chat templates are written for
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=undefined,
        extensions=["jinja2.ext.loopcontrols"],
    )
    environment.filters["_counted"] = _counted
    environment.filters["tojson"] = _tojson
    for filling in ("center", "indent", "format", "wordwrap"):
        environment.filters.pop(filling, None)
    environment.globals = {k: v for k, v in environment.globals.items() if k in ("range", "dict", "namespace")}
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _no_clock
    return environment


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=min(indent, 8) if indent else None)


def _refuse(message: str) -> str:
    raise SecurityError(message)


def _no_clock(form: str) -> str:
    raise SecurityError("it asks for today's date, so that the same text would differ tomorrow")


@lru_cache(maxsize=64)
def compiled(source: str, *, strict: bool = True) -> Rendered:
    """The template, compiled once. `strict` refuses names that have no value; chat templates test for them instead."""
    return Rendered(source, strict)


def require(source: str, names: Iterable[str], where: str) -> None:
    """Refuse a template that names a column that the data does not have."""
    have = set(names)
    for name in sorted(
        compiled(source).names - have - {"raise_exception", "strftime_now", "range", "namespace", "dict"}
    ):
        raise DataError(f"{where}: " + unknown("column of the data", name, have))
