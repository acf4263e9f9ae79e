"""Reading fields of a row strictly: each raises :class:`RowProblem` with what was found and what was wanted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast, get_args

from rlhf_pipeline.data.formats import RowProblem
from rlhf_pipeline.records import Message, Messages, Role

T = TypeVar("T")
LARGEST = 2**31 - 1
"""What every database keeps as a whole number."""

LATEST = 2**47
"""Milliseconds; as a date it is in the year 6429."""


def kind_of(value: Any) -> str:
    """A value's type in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "missing"}
    return names.get(type(value), "a number")


def _wrong(value: Any, at: str, wanted: str) -> RowProblem:
    return RowProblem("wrong type", f"{at} is {kind_of(value)}, wanted {wanted}")


def mapping(value: Any, at: str) -> Mapping[str, Any]:
    """An object."""
    if not isinstance(value, Mapping):
        raise _wrong(value, at, "an object")
    return value


def sequence(value: Any, at: str) -> Sequence[Any]:
    """A list."""
    if not isinstance(value, list | tuple):
        raise _wrong(value, at, "a list")
    return value


def text(value: Any, at: str) -> str:
    """A text of any characters."""
    if not isinstance(value, str):
        raise _wrong(value, at, "text")
    return value


def word(value: Any, at: str, longest: int = 64) -> str:
    """A short text of ASCII letters, digits and signs, or none at all: a digest, a version."""
    found = text(value, at)
    if len(found) > longest or not found.isascii() or not found.isprintable():
        raise RowProblem("wrong type", f"{at} is {found!r:.40}, wanted at most {longest} ASCII characters")
    return found


def json_object(value: Any, at: str) -> Mapping[str, Any]:
    """An object of what JSON has; Python's JSON takes NaN and Infinity, which databases do not."""
    found = mapping(value, at)
    try:
        json.dumps(found, allow_nan=False)
    except ValueError:
        raise RowProblem("not JSON", f"{at} holds NaN or Infinity") from None
    return found


def texts(value: Any, at: str) -> tuple[str, ...]:
    """A list of texts."""
    return tuple(text(item, f"{at}[{i}]") for i, item in enumerate(sequence(value, at), start=1))


def whole(value: Any, at: str, low: int = 0, high: int = LARGEST) -> int:
    """A whole number within limits, both included."""
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not is_whole:
        raise RowProblem("wrong type", f"{at} is {value!r:.40}, wanted a whole number")
    if not low <= value <= high:
        raise RowProblem("out of range", f"{at} is {value!r:.40}, wanted {low} to {high}")
    return int(value)


def number(value: Any, at: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number within limits, both included."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowProblem("wrong type", f"{at} is {value!r:.40}, wanted a number")
    if not low <= value <= high:
        raise RowProblem("out of range", f"{at} is {value:g}, wanted {low:g} to {high:g}")
    return float(value)


def flag(value: Any, at: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise _wrong(value, at, "true or false")
    return value


def one_of(value: Any, at: str, options: Any) -> Any:
    """One of the values of a ``Literal`` or of a collection."""
    known = get_args(options) or tuple(options)
    if value not in known:
        raise RowProblem("unknown value", f"{at} is {value!r:.40}, wanted one of {', '.join(map(str, known))}")
    return value


def optional(read: Callable[..., T], value: Any, at: str, *limits: Any) -> T | None:
    """None where there is none."""
    return None if value is None else read(value, at, *limits)


def conversation(value: Any, at: str) -> Messages:
    """``[{"role", "content"}, …]`` that ends with the user's turn; the characters are kept whatever they are."""
    messages = []
    for index, item in enumerate(sequence(value, at), start=1):
        row = mapping(item, f"{at}[{index}]")
        role = cast(Role, one_of(row.get("role"), f"{at}[{index}].role", Role))
        messages.append(Message(role, text(row.get("content"), f"{at}[{index}].content")))
    if not messages or messages[-1].role != "user":
        found = f"its last message is the {messages[-1].role}'s" if messages else f"{at} is empty"
        raise RowProblem("prompt does not end with the user", found)
    return tuple(messages)


def places(value: Any, at: str, count: int) -> tuple[int, ...]:
    """Distinct places of ``count`` responses."""
    found = tuple(whole(item, f"{at}[{i}]", 0, count - 1) for i, item in enumerate(sequence(value, at), start=1))
    if len(set(found)) < len(found):
        raise RowProblem("a response stands twice", f"{at} is {list(found)}")
    return found
