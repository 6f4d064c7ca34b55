"""Rows as text: the progress of a run, and the tables that the command line prints.

Like the rest of the package it knows the row schema and nothing else: a run's events arrive here as
labels, rows and seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dynbench.dashboards.stages import breakdown, parse_stages
from dynbench.dashboards.text import (
    branches_text,
    bytes_text,
    clip,
    count_text,
    length_text,
    number_text,
    time_text,
    times_text,
    visible,
)
from dynbench.harness.schema import COLUMNS, disturbance

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

Record = Mapping[str, Any]

_VARYING = {  # columns shown only where they differ between the rows, with their headings
    "suite": "suite",
    "device": "device",
    "gpu_index": "GPU",
    "task": "task",
    "timer": "timer",
    "dtype": "dtype",
    "batch": "batch",
    "shape": "H/K/D",
    "layers": "layers",
    "train_steps": "steps",
    "inputs": "inputs",
    "variant": "variant",
    "block_size": "block",
    "seed": "seed",
    "branches": "branches",
    "top_n": "top-n",
    "window": "window",
    "query_tile": "R",
    "private_blocks": "m",
    "target_sparsity": "asked sparsity",
}
_MODEL_HEADINGS = {  # of columns that only rows of whole models have
    "tokens_per_s": "tokens/s",
    "first_token_ms": "first token",
    "cache_bytes": "cache",
}
_REMARKABLE = ("task", "branches", "variant")
"""Shown wherever a row has a value: it is not the usual work."""
_CONDITIONS = (  # a resumed run may have gone on elsewhere, or with other code
    "run_id",
    "workload_id",
    "timer",
    "machine_id",
    "gpu_uuid_hash",
    "cpu_threads",
    "torch_version",
    "git_commit",
)
_STATUS_STYLES = {"ok": "green", "incorrect": "bold red", "error": "red", "skipped": "dim"}
_VERDICT_STYLES = {
    "improved": "green",
    "unchanged": "green",
    "ambiguous": "yellow",
    "changed": "yellow",
    "missing": "yellow",
    "invalid": "yellow",
    "incomparable": "dim",
}
_REASON_CHARS = 160
_ID_CHARS = 8  # enough to name a case with
_STAGES = "where the time goes"
_LEARNING = "quality"  # the suite whose rows are trainings


class RunDisplay:
    """Shows a run while it goes on: a progress bar on a terminal, elsewhere one line a row.

    A context manager; ``run_started`` comes first and brings the prediction. ``lane`` names the one
    of several lanes that something happens in.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

        self._console = console
        self._total = 0
        self._ends_at = 0.0
        self._running: dict[str, str] = {}  # what each lane does
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _time_left_column(lambda: self._ends_at - time.monotonic()),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> RunDisplay:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        self._console.print(line, markup=False, soft_wrap=True)

    def run_started(self, total: int, already_done: int, predicted_s: float) -> None:
        """Say how many cases there are and how long they should take."""
        done = f" ({already_done} finished before)" if already_done else ""
        cases = count_text(total, "case")
        self.say(f"{cases}, predicted: {duration_text(predicted_s)}{done}")
        self._total = total
        self._ends_at = time.monotonic() + predicted_s
        self._bar.update(self._task, total=total)

    def case_started(self, label: str, seconds_left: float, lane: str = "") -> None:
        """A case begins."""
        self._ends_at = time.monotonic() + seconds_left
        self._describe(lane, label)

    def stage_started(self, label: str, lane: str = "") -> None:
        """The case enters a stage."""
        self._describe(lane, label)

    def row_finished(self, row: Record, done: int, seconds_left: float, lane: str = "") -> None:
        """A case has its row."""
        self._ends_at = time.monotonic() + seconds_left
        self._running.pop(lane, None)
        self._bar.update(self._task, completed=done)
        if not self._console.is_terminal:
            left = f", {duration_text(seconds_left)} left" if done < self._total else ""
            where = f"{lane}: " if lane else ""
            self.say(f"[{done}/{self._total}] {where}{row_line(row)}{left}")

    def lane_ended(self, lane: str, reason: str) -> None:
        """A lane measures no more."""
        self._running.pop(lane, None)
        self.say(f"{lane} is left out: {reason}")

    def _describe(self, lane: str, label: str) -> None:
        self._running[lane] = f"{lane}: {label}" if lane else label
        description = " | ".join(self._running[name] for name in sorted(self._running))
        self._bar.update(self._task, description=description)


def _time_left_column(seconds_left: Any) -> Any:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class TimeLeft(ProgressColumn):
        def render(self, task: Task) -> Text:
            if task.total is None:
                return Text("")
            return Text(f"{duration_text(max(seconds_left(), 0.0))} left", style="cyan")

    return TimeLeft()


def rows_table(
    frame: pd.DataFrame, *, baseline: str = "sdpa", among: pd.DataFrame | None = None
) -> Table:
    """The rows of ``frame`` as a compact table.

    Settings appear as columns only where they differ between rows, what only models have where a
    row has it. A training's latency is its duration, and its loss and accuracy stand in place of a
    speed-up, which compares medians with
    the ``baseline`` provider's row of the same workload under the same conditions (those of
    _CONDITIONS), looked for in ``among`` (``frame`` itself if None). It is empty without one, and
    where there are several, which differ in their settings: none of them is the baseline.
    """
    rows = _records(frame)
    varying = _varying(rows)
    of_models = [name for name in _MODEL_HEADINGS if any(row[name] is not None for row in rows)]
    learned = [row["suite"] == _LEARNING for row in rows]
    headings = [
        "T",
        "latency [q1, q3]",
        *([] if learned and all(learned) else [f"vs {baseline}"]),
        *(["loss", "accuracy"] if any(learned) else []),
        *(_MODEL_HEADINGS[name] for name in of_models),
        *("peak memory", "case", "status"),
    ]
    table = _table(["provider", "pass", *(_VARYING[name] for name in varying)], headings)
    references_ms: dict[tuple[Any, ...], list[float]] = {}
    for row in rows if among is None else _records(among):
        comparable = row["provider"] == baseline and row["suite"] != _LEARNING
        if comparable and row["status"] == "ok":
            references_ms.setdefault(_conditions(row), []).append(row["latency_ms"])
    for row in rows:
        found_ms = references_ms.get(_conditions(row), [])
        reference_ms = found_ms[0] if len(found_ms) == 1 else None
        _add(
            table,
            [row["provider"], row["pass"], *(_plain(row[name]) for name in varying)],
            length_text(row["seq_len"]),
            latency_text(row),
            *([] if learned and all(learned) else [_speedup(reference_ms, row["latency_ms"])]),
            *(learned_texts(row) if any(learned) else ()),
            *(_model_text(name, row[name]) for name in of_models),
            bytes_text(row["peak_memory_bytes"]),
            (row["case_id"] or "")[:_ID_CHARS],
            status=row["status"],
            reason=row["reason"] or _disturbed(row),
        )
    return table


def stages_table(frame: pd.DataFrame) -> Table | None:
    """Where the time of each row goes; None where no row says it.

    Shares are of the whole call's median; ``other`` is what it has beyond the sum of the stages.
    """
    rows = _records(frame)
    found = [(row, breakdown(parse_stages(row["stages_ms"]), row["latency_ms"])) for row in rows]
    told = [(row, parts) for row, parts in found if parts is not None]
    if not told:
        return None
    varying = _varying(rows)
    names = ["provider", "pass", *(_VARYING[name] for name in varying)]
    table = _table(names, ("T", "median", "sum of stages", _STAGES))
    for row, parts in told:
        _add(
            table,
            [row["provider"], row["pass"], *(_plain(row[name]) for name in varying)],
            length_text(row["seq_len"]),
            time_text(parts.whole_ms),
            time_text(parts.sum_ms),
            ", ".join(
                f"{name} {time_text(ms)} ({parts.share_text(ms)})" for name, ms in parts.with_other
            ),
        )
    return table


def plan_table(rows: Sequence[Record], seconds: Sequence[float]) -> Table:
    """Planned cases (the columns known before measuring) and the seconds predicted for each."""
    complete = [_with_shape(dict.fromkeys(COLUMNS) | dict(row)) for row in rows]
    varying = _varying(complete)
    table = _table(
        ["case", "provider", "pass", *(_VARYING[name] for name in varying)], ("T", "predicted")
    )
    for row, predicted_s in zip(complete, seconds, strict=True):
        names = [row["case_id"], row["provider"], row["pass"]]
        cells = [*names, *(_plain(row[name]) for name in varying)]
        _add(table, cells, length_text(row["seq_len"]), duration_text(predicted_s))
    return table


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Plain names and texts; the last column wraps."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings[:-1]:
        table.add_column(heading, no_wrap=True)
    table.add_column(headings[-1], overflow="fold")
    for row in rows:
        _add(table, row)
    return table


def facts_table(facts: Record) -> Table:
    """What is known about a machine (columns of the row and ``available_memory_bytes``)."""
    rows = [
        (name.removesuffix("_bytes").replace("_", " "), _fact_text(name, value))
        for name, value in facts.items()
        if value is not None and not name.endswith(("_hash", "_id"))
    ]
    return text_table(("this machine", ""), rows)


def _fact_text(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return bytes_text(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "packages":
        return ", ".join(f"{package} {version}" for package, version in json.loads(value).items())
    return str(value)


def row_line(row: Record) -> str:
    """One row in one line: what ran, how it ended, how long it took, how much memory it needed."""
    name = f"{row['suite']}/{row['provider']} {row['pass']} T={length_text(row['seq_len'])}"
    if (row["query_tile"] or 1) > 1:
        name += f" R={row['query_tile']} m={row['private_blocks']}"
    if row["branches"]:
        name += f" ({branches_text(row['branches'])})"
    if row["suite"] == _LEARNING:
        name += f" {row['task']} seed {row['seed']}"
        name += f" ({row['variant']})" if row["variant"] else ""
    if row["latency_ms"] is not None:
        name += f": {latency_text(row)}, peak {bytes_text(row['peak_memory_bytes'])}"
    if row["tokens_per_s"] is not None:
        name += f", {_model_text('tokens_per_s', row['tokens_per_s'])} tokens/s"
    loss, accuracy = learned_texts(row)
    if loss:
        name += f", loss {loss}, accuracy {accuracy}"
    if row["status"] == "ok":
        disturbed = _disturbed(row)
        return f"{name} ({disturbed})" if disturbed else name
    return f"{name}: {row['status']}: {visible(row['reason'] or '')}"


def _disturbed(row: Record) -> str:
    found = disturbance(row)
    return f"disturbed, {found}" if found else ""


def learned_texts(row: Record) -> tuple[str, str]:
    """Held-out loss in nats and accuracy of a training's row; empty where it has none."""
    loss, accuracy = row["eval_loss"], row["eval_accuracy"]
    return (
        "" if loss is None else f"{loss:.4f}",
        "" if accuracy is None else f"{100 * accuracy:.2f} %",
    )


def latency_text(row: Record) -> str:
    """Median and quartiles in one unit, such as ``12.3 ms [12.1, 12.6]``; empty without samples."""
    median_ms = row["latency_ms"]
    if median_ms is None:
        return ""
    scale = 1000 if median_ms >= 1000 else 1 if median_ms >= 0.1 else 0.001
    quartiles = (row["latency_q1_ms"], row["latency_q3_ms"])
    spread = ", ".join(number_text(q / scale) for q in quartiles if q is not None)
    return f"{time_text(median_ms)} [{spread}]"


def verdicts_table(verdicts: Sequence[Record]) -> Table:
    """Verdicts of a gate or of a comparison (their fields as a record), in the order given."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("verdict", no_wrap=True)
    table.add_column("case", overflow="fold")
    for heading in ("baseline", "candidate", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for verdict in verdicts:
        name = str(verdict["verdict"])
        style = "bold red" if verdict["blocks"] else _VERDICT_STYLES.get(name, "")
        why = "; ".join((verdict["reason"], *verdict["notes"]))
        table.add_row(
            Text(name, style=style),
            Text(visible(f"{verdict['label']} [{verdict['case_id'][:8]}]")),
            time_text(verdict["baseline_ms"]),
            time_text(verdict["candidate_ms"]),
            change_text(verdict["change"], verdict["low"], verdict["high"]),
            Text(clip(visible(why), 2 * _REASON_CHARS)),
        )
    return table


def change_text(change: float | None, low: float | None, high: float | None) -> str:
    """A relative change with its bounds, such as ``+4.9 % (+3.8, +6.1)``; empty for None."""
    if change is None:
        return ""
    bounds = "" if low is None or high is None else f" ({100 * low:+.1f}, {100 * high:+.1f})"
    return f"{100 * change:+.1f} %{bounds}"


def duration_text(seconds: float) -> str:
    """A time to wait, such as ``40 s``, ``12 min`` or ``1 h 5 min``."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        if heading in ("status", _STAGES):
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    return table


def _add(
    table: Table, names: Sequence[str], *cells: str, status: str = "", reason: str | None = None
) -> None:
    from rich.text import Text

    texts = [Text(visible(cell)) for cell in (*names, *cells)]
    if status:
        line = f"{status}: {clip(visible(reason), _REASON_CHARS)}" if reason else status
        calm = status != "ok" or not reason
        texts.append(Text(line, style=_STATUS_STYLES.get(status, "yellow") if calm else "yellow"))
    table.add_row(*texts)


def _conditions(row: Record) -> tuple[Any, ...]:
    return tuple(row[name] for name in _CONDITIONS)


def _speedup(reference_ms: float | None, latency_ms: float | None) -> str:
    return times_text(reference_ms / latency_ms) if reference_ms and latency_ms else ""


def _model_text(name: str, value: float | None) -> str:
    """A column of _MODEL_HEADINGS in its unit."""
    if name == "first_token_ms":
        return time_text(value)
    return bytes_text(value) if name == "cache_bytes" else number_text(value)


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def _varying(rows: Sequence[Record]) -> list[str]:
    values = {name: {row[name] for row in rows} - {None} for name in _VARYING}
    return [name for name in _VARYING if len(values[name]) > (0 if name in _REMARKABLE else 1)]


def _with_shape(row: Record) -> dict[str, Any]:
    return {**row, "shape": f"{row['q_heads']}/{row['kv_heads']}/{row['head_dim']}"}


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries of scalars: null is None, whole numbers stay whole beside nulls."""
    import pandas as pd

    names = [name for name, column in COLUMNS.items() if column.kind not in ("floats", "strings")]
    return [
        _with_shape(
            {str(name): None if pd.isna(value) else value for name, value in record.items()}
        )
        for record in frame[names].to_dict("records")
    ]
