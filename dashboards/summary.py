"""The first screen in words, every number computed from rows.

For each pass, and for exact, hybrid and shared lists apart: from which length the focus provider
pays, at which setting, by how much, at what error, where it does not, and on how many rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynbench.dashboards.compare import FOCUS, Comparison, Gain, best_by_lists
from dynbench.dashboards.frame import distinct
from dynbench.dashboards.labels import (
    lists_text,
    machine_text,
    settings_text,
    shape_text,
    value_text,
)
from dynbench.dashboards.model import Facet, Line, Panel
from dynbench.dashboards.tables import NOT_MEASURED
from dynbench.dashboards.text import (
    count_text,
    label_text,
    length_text,
    listing,
    percent_text,
    plain_text,
    time_text,
    times_text,
)


@dataclass(frozen=True)
class Answer:
    """One verdict: a heading, the figure to remember and the sentences that qualify it."""

    heading: str  # pass and block lists
    verdict: str
    figure: str  # the speed-up at the longest length, or empty
    figure_note: str
    outcome: str  # "pays", "loses", or "ties" where there is no clear difference
    sentences: tuple[str, ...]
    line: int | None = None  # the line that it is about


@dataclass(frozen=True)
class FirstScreen:
    """The words of a facet's first screen."""

    headline: str
    answers: tuple[Answer, ...]
    notes: tuple[str, ...]
    best: Comparison | None = None
    lead: tuple[str, ...] = ()  # where, at which setting and error, and on what it rests


def first_screen(facet: Facet) -> FirstScreen:
    """What the rows of a facet say about the focus provider against the baseline."""
    answers: list[Answer] = []
    notes: list[str] = []
    compared: list[tuple[Panel, Comparison]] = []
    for panel in facet.panels:
        chosen = best_by_lists(panel)
        compared += [(panel, comparison) for comparison in chosen]
        answers += [answer(panel, comparison) for comparison in chosen]
        if not chosen:
            notes += _why_nothing(panel)
    if not compared:
        return FirstScreen(_headline_without(facet), (), tuple(notes))
    panel, best = max(compared, key=lambda item: item[1].rank)
    same_pass = [c for p, c in compared if p is facet.panels[0]]
    if same_pass:  # the forward pass leads where there is one
        panel, best = facet.panels[0], max(same_pass, key=lambda held: held.rank)
    lead = (_where_sentence(facet), *answer(panel, best).sentences)
    return FirstScreen(_headline(panel, best), tuple(answers), tuple(notes), best, lead)


def importance(facet: Facet) -> tuple[bool, int]:
    """Ranks facets: those with an answer, then those with more measured rows."""
    answered = any(best_by_lists(panel) for panel in facet.panels)
    return answered, int((facet.rows["status"] == "ok").sum())


def answer(panel: Panel, comparison: Comparison) -> Answer:
    """The verdict on one line of the focus provider."""
    line, last = comparison.line, comparison.gains[-1]
    baseline = label_text(panel.baseline)
    pays_from = comparison.pays_from
    if last.sign == 0:
        outcome, verdict = "ties", "No clear difference at the longest length compared"
    elif pays_from is None:
        outcome, verdict = "loses", "Does not pay at the longest length compared"
    elif _pays_everywhere(comparison):
        outcome = "pays"
        verdict = f"Pays at every length compared, from {length_text(pays_from)}"
    else:
        outcome, verdict = "pays", f"Pays from {length_text(pays_from)}"
    sentences = [
        _sparsity_sentence(line, last.seq_len, last.point.sparsity),
        _error_sentence(comparison),
        _gains_sentence("It does not pay at", comparison.losses),
        _gains_sentence("No clear difference (quartiles overlap) at", comparison.ties),
        _alone_sentence(panel, line, baseline),
        _failure_sentence(panel, line),
        _evidence_sentence(comparison, baseline),
    ]
    kind = lists_text(line.settings)
    kinds = {
        "exact": "exact lists",
        "hybrid": f"hybrid lists {kind}",
        "shared": f"shared lists {kind}",
    }
    heading = f"{panel.title} · {kinds.get(line.lists, line.label)}"
    return Answer(
        heading=heading,
        verdict=verdict,
        figure=times_text(last.speedup),
        figure_note=_speed_note(comparison, baseline),
        outcome=outcome,
        sentences=tuple(sentence for sentence in sentences if sentence),
        line=line.number,
    )


def status_counts(facet: Facet) -> dict[str, int]:
    """Rows by status, most frequent first, ``ok`` leading."""
    counts = facet.rows["status"].value_counts().to_dict()
    ordered = sorted(counts.items(), key=lambda item: (item[0] != "ok", -item[1], item[0]))
    return {str(status) or "no status": int(count) for status, count in ordered}


def baselines_offered(facet: Facet) -> list[str]:
    """Providers with at least one ok row: what ``--baseline`` could name."""
    return distinct(line.provider for p in facet.panels for line in p.lines if line.points)


def _where_sentence(facet: Facet) -> str:
    """Machine, data type, shape and kind of inputs."""
    first = {str(name): value for name, value in facet.rows.iloc[0].items()}
    words = [
        machine_text(first),
        f"{value_text(first['cpu_threads'])} threads" if first["device"] == "cpu" else "",
        label_text(first["dtype"]),
        shape_text(first),
        f"{label_text(first['inputs'])} inputs" if first["inputs"] else "",
    ]
    return f"Measured on {', '.join(word for word in words if word)}."


def _headline(panel: Panel, best: Comparison) -> str:
    last = best.gains[-1]
    line, baseline = best.line, label_text(panel.baseline)
    name = f"{label_text(line.provider)} ({lists_text(line.settings) or 'lists not recorded'})"
    at = f"{length_text(last.seq_len)} tokens"
    speed = f"{times_text(last.speedup)} its speed at {at}, {panel.title.lower()}"
    if last.sign == 0:
        return f"{name} shows no clear difference from {baseline}: {speed}"
    if best.pays_from is None:
        return f"{name} does not pay against {baseline}: {speed}"
    where = (
        "at every length compared"
        if _pays_everywhere(best)
        else f"from {length_text(best.pays_from)} tokens on"
    )
    return (
        f"{name} pays against {baseline} {where}: {times_text(last.speedup)} as fast at {at}, "
        f"{panel.title.lower()}"
    )


def _pays_everywhere(comparison: Comparison) -> bool:
    return all(gain.sign > 0 for gain in comparison.gains)


def _headline_without(facet: Facet) -> str:
    counts = status_counts(facet)
    if not counts.get("ok"):
        return f"No case could be measured: {_counts_text(counts)}"
    focus = [line for panel in facet.panels for line in panel.lines if line.base == FOCUS]
    if not focus:
        return f"{count_text(counts['ok'], 'case')} measured, none of {FOCUS}"
    if not any(line.points for line in focus):
        return f"{count_text(counts['ok'], 'case')} measured, but {FOCUS} has no number"
    return (
        f"{count_text(counts['ok'], 'case')} measured, without a baseline to compare {FOCUS} with"
    )


def _why_nothing(panel: Panel) -> list[str]:
    focus = [line for line in panel.lines if line.base == FOCUS]
    baseline = label_text(panel.baseline)
    if not panel.baseline_lengths:
        rows = [line for line in panel.lines if line.provider == panel.baseline]
        if rows:
            return [f"{panel.title}: {baseline} has rows, but none is ok, so there is no speed-up."]
        return [
            f"{panel.title}: there is no row of the baseline {baseline}, so there is no speed-up."
        ]
    lengths = {point.seq_len for line in focus for point in line.points}
    if lengths & panel.baseline_lengths:
        return [
            f"{panel.title}: {baseline} has several lines and none selects as much as {FOCUS}, or "
            "several do, so there is no speed-up."
        ]
    if lengths:
        return [f"{panel.title}: {FOCUS} and {baseline} have no length in common."]
    return []


def _counts_text(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {label_text(status)}" for status, count in counts.items())


def _speed_note(comparison: Comparison, baseline: str) -> str:
    last = comparison.gains[-1]
    times = f"{time_text(last.point.latency_ms)} against {time_text(last.baseline_ms)}"
    return f"the speed of {baseline} at {length_text(last.seq_len)} tokens: {times}"


def _sparsity_sentence(line: Line, seq_len: int, sparsity: float | None) -> str:
    setting = settings_text(line.settings)
    measured = (
        f"it leaves out {percent_text(sparsity)} of the causal pairs at {length_text(seq_len)}"
        if sparsity is not None
        else ""
    )
    if setting and measured:
        return f"Setting: {setting}; {measured}."
    return (
        f"Setting: {setting}."
        if setting
        else measured[:1].upper() + measured[1:] + "." * bool(measured)
    )


def _error_sentence(comparison: Comparison) -> str:
    worst = comparison.largest_error
    if worst is None:
        return "Error: not recorded."
    allowed = (
        f" ({plain_text(worst.rms_tolerance)} allowed) against its own reference"
        if worst.rms_tolerance
        else ""
    )
    sentence = f"Error: RMS at most {plain_text(worst.rms_error)}{allowed}"
    distance = comparison.gains[-1].point.dense_error
    if distance is not None:
        at = length_text(comparison.gains[-1].seq_len)
        sentence += f"; distance to dense attention {plain_text(distance)} at {at}"
    return f"{sentence}."


def _gains_sentence(words: str, gains: Sequence[Gain]) -> str:
    parts = [f"{length_text(gain.seq_len)} ({times_text(gain.speedup)})" for gain in gains]
    return f"{words} {listing(parts)}." if parts else ""


def _alone_sentence(panel: Panel, line: Line, baseline: str) -> str:
    """Lengths where only this line has a number although the baseline was tried."""
    failures = {
        seq_len: failure.status
        for other in panel.lines
        if other.provider == panel.baseline
        for seq_len, failure in other.failed_lengths.items()
        if seq_len not in panel.baseline_lengths
    }
    alone = [
        f"{length_text(p.seq_len)} ({baseline}: {label_text(failures[p.seq_len])}; "
        f"here {time_text(p.latency_ms)})"
        for p in line.points
        if p.seq_len in failures
    ]
    return f"It alone has a number at {listing(alone)}." if alone else ""


def _failure_sentence(panel: Panel, line: Line) -> str:
    statuses = {s: label_text(failure.status) for s, failure in line.failed_lengths.items()}
    statuses |= dict.fromkeys(set(panel.lengths) - line.lengths, NOT_MEASURED)
    parts = [f"{length_text(seq_len)} ({status})" for seq_len, status in sorted(statuses.items())]
    return f"It has no number at {listing(parts)}." if parts else ""


def _evidence_sentence(comparison: Comparison, baseline: str) -> str:
    lengths = count_text(len(comparison.gains), "length")
    return (
        f"Basis: {lengths}, {count_text(comparison.cases, 'case')} and "
        f"{count_text(comparison.samples, 'sample')}, those of {baseline} included."
    )
