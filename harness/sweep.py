"""The sweep grammar of the command line: lists of lengths, integers and shares.

Lengths know two suffixes, ``k`` = 1024 and ``m`` = 1024². A list is made of parts with commas
between them; a part is a single value or a range::

    8k              one value
    8k,12k,128k     several values
    8k..128k        doubling: 8k, 16k, 32k, 64k, 128k
    8k..128k:x4     times four: 8k, 32k, 128k
    8k..32k:+8k     plus 8k: 8k, 16k, 24k, 32k

A range holds its start and every step up to its end; the end itself is in it only if a step lands
there. The order given is kept and repeated values are dropped.
"""

from __future__ import annotations

import re

MAX_VALUE = 2**40
"""Largest integer the grammar accepts: anything above is a slip of the keyboard."""

MAX_VALUES = 1000
"""Most values one text may stand for."""

_VALUE = re.compile(r"(\d+)([km]?)", re.IGNORECASE)
_RANGE = re.compile(r"(?P<start>.+?)\.\.(?P<end>[^:]+)(?::(?P<kind>[x+])(?P<step>.+))?")
_SCALE = {"": 1, "k": 1024, "m": 1024 * 1024}
_INT_EXAMPLE = "8k..128k, 8k..128k:x4, 8k..128k:+8k or 8k,12k"


class SweepError(ValueError):
    """A sweep text that cannot be read. One line: the option, the bad part and a good example."""


def parse_lengths(text: str, *, name: str = "--seq") -> list[int]:
    """Lengths in tokens, each at least 1: ``"8k..32k"`` gives ``[8192, 16384, 32768]``.

    ``name`` is the option named in the error. Raises SweepError.
    """
    return parse_ints(text, name=name, low=1)


def parse_ints(
    text: str, *, name: str = "value", low: int = 0, high: int = MAX_VALUE, example: str = ""
) -> list[int]:
    """Integers between ``low`` and ``high``, in the same grammar as lengths.

    ``example`` replaces the example in the error message. Raises SweepError.
    """
    example = example or _INT_EXAMPLE
    values: list[int] = []
    for part in _parts(text, name, example):
        for value in _expand(part, name, example):
            if not low <= value <= high:
                bound = f"at least {low}" if value < low else f"at most {high}"
                raise SweepError(f"{name}: '{part}' must be {bound}; write for example {example}")
            values.append(value)
        if len(values) > MAX_VALUES:
            raise SweepError(
                f"{name}: '{part}' makes more than {MAX_VALUES} values; take a larger step, "
                f"for example {example}"
            )
    return list(dict.fromkeys(values))


def parse_floats(text: str, low: float, high: float, *, name: str = "value") -> list[float]:
    """Numbers from ``low`` to ``high``, both included, with commas between them: ``"0.5,0.75"``.

    Raises SweepError.
    """
    example = f"{low + (high - low) / 2:g},{low + (high - low) * 0.75:g}"
    values: list[float] = []
    for part in _parts(text, name, example):
        try:
            value = float(part)
        except ValueError:
            raise SweepError(
                f"{name}: '{part}' is no number; write for example {example}"
            ) from None
        if not low <= value <= high:  # also refuses nan
            raise SweepError(
                f"{name}: '{part}' must lie between {low:g} and {high:g}; "
                f"write for example {example}"
            )
        values.append(value)
    return list(dict.fromkeys(values))


def format_length(value: int) -> str:
    """The shortest text that parses back to ``value``: 8192 is ``8k``, 1000 is ``1000``."""
    for suffix in ("m", "k"):
        if value and value % _SCALE[suffix] == 0:
            return f"{value // _SCALE[suffix]}{suffix}"
    return str(value)


def _parts(text: str, name: str, example: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        what = "is empty" if not text.strip() else f"'{text}' has an empty part"
        raise SweepError(f"{name}: {what}; write for example {example}")
    return parts


def _expand(part: str, name: str, example: str) -> list[int]:
    match = _RANGE.fullmatch(part)
    if match is None:
        return [_value(part, part, name, example)]
    start = _value(match["start"], part, name, example)
    end = _value(match["end"], part, name, example)
    kind = match["kind"] or "x"
    step = _value(match["step"] or "2", part, name, example)
    if start > end:
        raise SweepError(
            f"{name}: the range '{part}' starts above its end; write for example {example}"
        )
    if step < (2 if kind == "x" else 1) or (kind == "x" and start == 0):
        raise SweepError(f"{name}: the range '{part}' never moves; write for example {example}")
    values = [start]
    while len(values) <= MAX_VALUES:
        following = values[-1] * step if kind == "x" else values[-1] + step
        if following > end:
            break
        values.append(following)
    return values


def _value(text: str, part: str, name: str, example: str) -> int:
    match = _VALUE.fullmatch(text.strip())
    if match is None or not text.isascii():
        raise SweepError(
            f"{name}: cannot read '{text.strip()}' in '{part}'; write for example {example}"
            if text.strip() != part
            else f"{name}: cannot read '{part}'; write for example {example}"
        )
    value = int(match[1]) * _SCALE[match[2].lower()] if len(match[1]) < 16 else MAX_VALUE + 1
    if value > MAX_VALUE:
        raise SweepError(f"{name}: '{part}' is too large; write for example {example}")
    return value
