"""The outcome as markdown: what GitHub shows beside a job (its step summary)."""

from __future__ import annotations

from pathlib import Path

from dynbench.harness.gate.outcome import Outcome
from dynbench.harness.gate.verdicts import CaseVerdict, Verdict

_SHOWN_FIRST = (
    Verdict.REGRESSED,
    Verdict.INVALID,
    Verdict.MISSING,
    Verdict.AMBIGUOUS,
    Verdict.CHANGED,
    Verdict.IMPROVED,
    Verdict.INCOMPARABLE,
    Verdict.UNCHANGED,
)
_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>|#~"} | {"\n": " ", "\r": " "})


def append_summary(outcome: Outcome, path: Path) -> None:
    """Append the summary to a file, as GitHub wants it. Raises OSError."""
    with path.open("a", encoding="utf-8") as file:
        file.write(markdown(outcome))


def markdown(outcome: Outcome) -> str:
    """Headline, what was compared, and a table; unchanged cases are folded away."""
    lines = [
        f"## dynbench gate: {_text(outcome.headline)}",
        "",
        f"Baseline: {_text(outcome.baseline)}. Candidate: {_text(outcome.candidate)}.",
        "",
        *(f"- {_text(note)}" for note in outcome.notes),
        *[""] * bool(outcome.notes),
    ]
    order = {verdict: place for place, verdict in enumerate(_SHOWN_FIRST)}
    verdicts = sorted(outcome.verdicts, key=lambda v: (not v.blocks, order[v.verdict]))
    loud = [v for v in verdicts if v.verdict != Verdict.UNCHANGED]
    quiet = [v for v in verdicts if v.verdict == Verdict.UNCHANGED]
    lines += [*_table(loud), ""] if loud else []
    if quiet:
        lines += [f"<details><summary>{len(quiet)} unchanged</summary>", "", *_table(quiet), ""]
        lines += ["</details>", ""]
    return "\n".join(lines) + "\n"


def _table(verdicts: list[CaseVerdict]) -> list[str]:
    return [
        "| verdict | case | baseline | candidate | change | why |",
        "|---|---|---|---|---|---|",
        *(_line(verdict) for verdict in verdicts),
    ]


def _line(verdict: CaseVerdict) -> str:
    name = f"**{verdict.verdict}**" if verdict.blocks else verdict.verdict.value
    accepted = " (accepted)" if verdict.accepted else ""
    change = "" if verdict.change is None else f"{100 * verdict.change:+.1f} %"
    if verdict.low is not None and verdict.high is not None:
        change += f" ({100 * verdict.low:+.1f} to {100 * verdict.high:+.1f})"
    why = "; ".join((verdict.reason, *verdict.notes))
    cells = (
        f"{name}{accepted}",
        _text(verdict.label),
        _milliseconds(verdict.baseline_ms),
        _milliseconds(verdict.candidate_ms),
        change,
        _text(why),
    )
    return f"| {' | '.join(cells)} |"


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.4g} ms"


def _text(text: str) -> str:
    """Text of a row, without what markdown or HTML would read in it."""
    return text.translate(_SPECIAL)
