"""Numbers and strings as readers see them.

Every string of a row passes through this module before it reaches the page: what cannot be seen
(control characters, marks that turn the reading direction) is spelt out, what is too long is cut.
Escaping for HTML is the templates' own (autoescape); escaping for plotly is ``plot_text``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

LABEL_CHARS = 72
"""Longest label of a line in figures and tables."""

CELL_CHARS = 600
"""Longest free text in a table cell."""

COMMAND_CHARS = 2000
"""Longest command shown."""

_UNSEEN = re.compile(
    "[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\ufff9-\ufffb]"
)
_SPACES = re.compile(r"[\t\n\r\f\v]+")


def visible(text: str) -> str:
    """``text`` on one line, its unseen characters spelt out (``<U+202E>`` in angle quotes)."""
    if text.isascii() and text.isprintable():  # nearly all text of a report
        return text.strip()
    return _spell_out(_SPACES.sub(" ", text).strip())


def visible_lines(text: str) -> str:
    """``visible`` for text of several lines, such as a traceback."""
    return "\n".join(visible_indented(line) for line in text.splitlines())


def visible_indented(line: str) -> str:
    """``visible`` for one line whose leading spaces matter."""
    return _spell_out(line.replace("\t", "    "))


def clip(text: str, limit: int) -> str:
    """``text``, cut to ``limit`` characters with a note of how many more there are."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit} more characters)"


def label_text(text: str) -> str:
    """A short label for figures, tables and selectors."""
    shown = visible(text[: 4 * LABEL_CHARS])
    return shown if len(shown) <= LABEL_CHARS else f"{shown[: LABEL_CHARS - 1]}…"


def branches_text(branches: str | None) -> str:
    """The branches of a row that leaves one out, as ``compressed + selected``; else empty."""
    return label_text((branches or "").replace(",", " + "))


def cell_text(text: str) -> str:
    """Free text of a table cell."""
    return clip(visible(text), CELL_CHARS)


def command_text(text: str) -> str:
    """A command to copy."""
    return clip(visible(text), COMMAND_CHARS)


def plot_text(text: str) -> str:
    """A string for plotly, which would read some HTML tags and entities in it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def number_text(value: float | None, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits and no exponent above 1e-4; empty for None."""
    if value is None or not math.isfinite(value):
        return ""
    if value == 0:
        return "0"
    text = f"{value:.{digits - 1}e}"
    if abs(value) < 1e-4:
        return text
    magnitude = int(text.partition("e")[2])  # after rounding: 9.999 has that of 10.0
    return f"{value:.{max(0, digits - 1 - magnitude)}f}"


def plain_text(value: float | None, digits: int = 3) -> str:
    """``number_text`` without trailing zeros: for settings, tolerances and ticks."""
    text = number_text(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def whole_text(value: float | None) -> str:
    """A count without decimals; empty for None."""
    return "" if value is None else str(round(value))


def length_text(seq_len: float | None) -> str:
    """Tokens in units of 1024, such as ``128k``; other lengths stay plain, empty for None."""
    if seq_len is None or not math.isfinite(seq_len):
        return ""
    tokens = round(seq_len)
    for unit, suffix in ((1024**2, "m"), (1024, "k")):
        if tokens >= unit and tokens % unit == 0:
            return f"{tokens // unit}{suffix}"
    return str(tokens)


def near_length_text(seq_len: float) -> str:
    """An interpolated length, such as ``11.3k``."""
    if seq_len >= 1024:
        return f"{number_text(seq_len / 1024)}k"
    return number_text(seq_len)


def time_text(milliseconds: float | None) -> str:
    """A duration in the unit that fits, such as ``3.10 ms`` or ``28.1 s``; empty for None."""
    if milliseconds is None:
        return ""
    if milliseconds >= 1000:
        return f"{number_text(milliseconds / 1000)} s"
    if milliseconds < 0.1:
        return f"{number_text(milliseconds * 1000)} µs"
    return f"{number_text(milliseconds)} ms"


def bytes_text(size_bytes: float | None, show: Callable[[float], str] = number_text) -> str:
    """Bytes in the binary unit that fits, such as ``32.0 MiB``; empty for None."""
    if size_bytes is None:
        return ""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{show(size)} {unit}"
        size /= 1024
    return f"{show(size)} TiB"


def percent_text(share: float | None) -> str:
    """A share in percent, such as ``93.1 %``; empty for None."""
    return "" if share is None else f"{number_text(100 * share)} %"


def times_text(ratio: float | None) -> str:
    """A ratio, such as ``9.41×``; empty for None."""
    return "" if ratio is None else f"{number_text(ratio)}×"


def count_text(count: int, noun: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listing(parts: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _spell_out(text: str) -> str:
    return _UNSEEN.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", text)
