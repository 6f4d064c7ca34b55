"""From rows of suite ``quality`` to what may be compared: groups of configurations over seeds.

A *group* is everything that must be equal before two trainings may stand in one figure: what keeps
a facet apart, less what makes a machine fast alone, and task, length, steps and layers. Within it a
*configuration* is everything but the seed.

A configuration's variant has two parts: its *recipe* says how the model is trained, and the rest is
an *ablation*. What is compared has one recipe, but that dense attention has every block anyway.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from dynbench.dashboards import frame as frames
from dynbench.dashboards.compare import FOCUS
from dynbench.dashboards.frame import number
from dynbench.dashboards.labels import line_labels, order_key
from dynbench.dashboards.model import Facet, Failure, Line, Panel
from dynbench.dashboards.quality.estimate import Estimate, estimate
from dynbench.dashboards.quality.measures import ACCURACY, BOUNDS, LOSS, MEASURES, Gap, Measure, gap
from dynbench.dashboards.text import label_text, plain_text
from dynbench.dashboards.theme import STYLE_COUNT, Style, base_name, style_of

GROUP_COLUMNS = (*frames.QUALITY_FACET_COLUMNS, "task", "train_steps", "length")
"""Rows that differ in one of these never share a figure of quality."""

SPARSITY_COLUMNS = ("top_n", "target_sparsity")
"""Configurations that differ in these alone are one curve over the attended share."""

_DENSE_WARMUP = "dense_warmup"
_RECIPE = (_DENSE_WARMUP, "length_warmup", "lr", "optimizer")

_LATE = ("backend", "provider_version", "parameters")  # unknown to a row that failed early
_KEY = tuple("key_top_n" if n == "top_n" else n for n in frames.LINE_COLUMNS if n not in _LATE)


@dataclass(frozen=True)
class Config:
    """One configuration: its rows differ in the seed alone, the newest of each seed counts."""

    line: Line
    estimates: Mapping[str, Estimate]  # of the columns of measures.BOUNDS, over seeds
    cases: tuple[int, ...]  # the place of each seed's row among all rows of the report
    case_ids: tuple[tuple[str, str], ...]  # run_id and case_id of each, which lead to its curves
    parameters: float | None = None
    eval_count: float | None = None

    @property
    def number(self) -> int:
        """Of its line."""
        return self.line.number

    @property
    def label(self) -> str:
        """Of its line."""
        return self.line.label

    @property
    def variant(self) -> str:
        """What was changed in the model and its training; empty where nothing."""
        return str(self.line.settings["variant"])

    @property
    def recipe(self) -> str:
        """The part of the variant that says how it is trained."""
        return _part(self.variant, _RECIPE)

    @property
    def dense_recipe(self) -> str:
        """The same, as dense attention can have it."""
        return _part(self.recipe, (_DENSE_WARMUP,), inside=False)

    @property
    def ablation(self) -> str:
        """The part of the variant that changes the model or its loss; empty where nothing does."""
        return ablation(self.variant)

    @property
    def curve(self) -> str:
        """Equal for configurations that differ in SPARSITY_COLUMNS alone."""
        kept = [n for n in frames.LINE_COLUMNS if n not in SPARSITY_COLUMNS]
        return str([self.line.settings[name] for name in kept])

    def mean(self, column: str) -> float | None:
        """The mean of a column over seeds."""
        held = self.estimates.get(column)
        return None if held is None else held.mean


@dataclass(frozen=True)
class QualityGroup:
    """Configurations that may be compared.

    ``facet`` holds the rows and the lines as the rest of the report takes them.
    """

    number: int
    facet: Facet
    configs: tuple[Config, ...]  # those with a number, in the order of the tables
    denses: tuple[Config, ...] = ()  # dense attention, one for each recipe
    by_number: Mapping[int, Config] = field(default_factory=dict)
    common: str = ""  # the part of the variant that all lines have, which no label repeats

    @property
    def task(self) -> str:
        """What the models learn."""
        return str(self.facet.rows["task"].iloc[0])

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What there are numbers of, the one that decides first."""
        held = [m for m in MEASURES if any(m.column in c.estimates for c in self.configs)]
        return tuple(sorted(held, key=lambda measure: measure is not self.measure))

    @property
    def measure(self) -> Measure:
        """What decides: of a text the loss, of questions with an answer the accuracy."""
        answers = any(ACCURACY.column in config.estimates for config in self.configs)
        return ACCURACY if answers and self.task != "text" else LOSS

    @property
    def dense(self) -> Config | None:
        """Dense attention, trained the plain way if it was; None without any."""
        return next((c for c in self.denses if not c.recipe), next(iter(self.denses), None))

    def dense_for(self, config: Config) -> Config | None:
        """Dense attention of the same recipe."""
        return next((c for c in self.denses if c.recipe == config.dense_recipe), None)

    def exact_for(self, config: Config) -> Config | None:
        """Exact lists with the same settings else: the provider's own, or plain NSA's."""
        if config.line.lists not in ("hybrid", "shared"):
            return None
        same = ("top_n", "block_size", "window", "branches")
        wanted = [str(config.line.settings[name]) for name in same]
        found = [
            other
            for other in self.configs
            if other.line.lists == "exact"
            and other.recipe == config.recipe
            and [str(other.line.settings[n]) for n in same] == wanted
        ]
        # NSA has plain projections, so there is nothing that a change of synthesis would change
        plain = _part(config.ablation, ("synthesis",), inside=False)
        for provider, ablation in ((config.line.provider, config.ablation), ("nsa", plain)):
            for other in found:
                if other.line.provider == provider and other.ablation == ablation:
                    return other
        return None

    def gap(self, config: Config, reference: Config | None, measure: Measure) -> Gap | None:
        """How much worse the configuration is than the reference; None against itself."""
        if reference is None or reference is config:
            return None
        column = measure.column
        return gap(measure, config.estimates.get(column), reference.estimates.get(column))


def quality_groups(plain: pd.DataFrame, asked: str | None = None) -> list[QualityGroup]:
    """The groups of all rows of suite ``quality``, in the order of their first row.

    ``plain`` is what ``frame.prepare`` made of all rows, ``asked`` the baseline that was named: the
    reference of quality where it is dense, else the first dense provider of the usual order.
    """
    rows = plain[plain["suite"] == frames.QUALITY_SUITE].copy()
    if rows.empty:
        return []
    rows["group"] = rows.groupby(list(GROUP_COLUMNS), dropna=False, sort=False).ngroup()
    rows = _with_late_columns(rows)
    keys = ["group", "pass", *_KEY, *_LATE]
    rows["line"] = rows.groupby(keys, dropna=False, sort=False).ngroup()
    styles = _styles(rows)
    return [
        _group(int(str(number)), held, styles, asked)
        for number, held in rows.groupby("group", sort=True)
    ]


def best_by_lists(group: QualityGroup) -> list[Config]:
    """For each kind of block lists, the configuration of the focus provider to speak of.

    That is the one that attends to least among those within reach of dense attention, else the one
    that is nearest to it. Kinds are never mixed. Ablations count only where nothing else was
    trained: then those of the change that most configurations have.
    """
    sparse = [c for c in group.configs if c.line.base == FOCUS and c.line.is_sparse]
    changes = Counter(config.ablation for config in sparse)
    told_of = max(changes, key=lambda change: (not change, changes[change]), default="")
    own = [config for config in sparse if config.ablation == told_of]
    found = []
    for lists in sorted({config.line.lists for config in own}):
        ranked = []
        for config in (c for c in own if c.line.lists == lists):
            told = reference_gap(group, config)
            if told is not None:
                share = config.mean("attended_share")
                within = told.verdict == "within"
                rank = (0.0, 1.0 if share is None else share) if within else (1.0, told.value)
                ranked.append((rank, config.number, config))
        if ranked:
            found.append(min(ranked, key=lambda held: held[:2])[2])
    return found


def reference_of(group: QualityGroup, config: Config) -> Config | None:
    """What a configuration is judged against: dense attention, without it exact lists."""
    return group.dense_for(config) or group.exact_for(config)


def reference_gap(group: QualityGroup, config: Config) -> Gap | None:
    """How much worse than ``reference_of``, in the measure that decides."""
    return group.gap(config, reference_of(group, config), group.measure)


def drawn_configs(group: QualityGroup, limit: int) -> list[Config]:
    """At most ``limit`` configurations, in the order they had.

    Kept are dense attention, those that the first screen speaks of and their exact references, then
    the best of each provider, kind of lists and variant in turn.
    """
    if len(group.configs) <= limit:
        return list(group.configs)
    told = best_by_lists(group)
    references = [find(config) for config in told for find in (group.dense_for, group.exact_for)]
    first = [group.dense, *told, *references]
    kinds: dict[tuple[str, str, str], list[Config]] = defaultdict(list)
    for config in sorted(group.configs, key=lambda config: _badness(group, config)):
        kinds[config.line.provider, config.line.lists, config.variant].append(config)
    turns = sorted(
        (turn, place, config.number)
        for place, held in enumerate(kinds.values())
        for turn, config in enumerate(held)
    )
    chosen = dict.fromkeys(c.number for c in first if c is not None)
    chosen |= dict.fromkeys(number for *_, number in turns)
    kept = set(list(chosen)[:limit])
    return [config for config in group.configs if config.number in kept]


def _badness(group: QualityGroup, config: Config) -> float:
    held = config.estimates.get(group.measure.column)
    if held is None:
        return float("inf")
    return held.mean if group.measure.lower_is_better else -held.mean


def _with_late_columns(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that failed before these were known take them where the others know one value."""
    others = ["group", "pass", *_KEY]
    for name in _LATE:
        values = rows[name].where(rows[name] != "")
        rows[name] = values
        grouped = rows.groupby(others, dropna=False)[name]
        alone = grouped.transform("nunique") == 1
        filled = values.where(values.notna() | ~alone, grouped.transform("first"))
        rows[name] = filled if name == "parameters" else filled.fillna("")
    return rows


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    columns = ["line", "pass", "parameters", *frames.LINE_COLUMNS]
    return [
        {str(name): value for name, value in first.items()}
        for first in rows[columns].drop_duplicates("line").to_dict("records")
    ]


def _styles(rows: pd.DataFrame) -> dict[str, Style]:
    """Dash and marker by configuration: the same one looks alike in every group of the report, and
    as long as there are markers, those of one provider in a group differ in theirs."""
    group_of: dict[int, int] = dict(zip(rows["line"], rows["group"], strict=True))
    groups: dict[str, set[int]] = defaultdict(set)
    firsts: dict[str, dict[str, Any]] = {}
    for record in sorted(_records(rows), key=lambda record: order_key(record, "")):
        look = _look(record)
        firsts.setdefault(look, record)
        groups[look].add(group_of[record["line"]])
    styles: dict[str, Style] = {}
    left: dict[str, list[int]] = defaultdict(lambda: list(range(STYLE_COUNT)))
    taken: dict[tuple[str, int], set[str]] = defaultdict(set)
    for look, record in firsts.items():
        provider = record["provider"]
        base = base_name(provider)
        here = [taken[base, group] for group in groups[look]]
        numbers = left[base] or [len(styles)]
        free = (n for n in numbers if all(style_of(provider, n).symbol not in t for t in here))
        number_ = next(free, numbers[0])
        if number_ in left[base]:
            left[base].remove(number_)
        styles[look] = style_of(provider, number_)
        for symbols in here:
            symbols.add(styles[look].symbol)
    return styles


def _look(record: Mapping[str, Any]) -> str:
    return str([record[name] for name in frames.LINE_COLUMNS if name not in _LATE])


def _group(
    number_: int, rows: pd.DataFrame, styles: Mapping[str, Style], asked: str | None
) -> QualityGroup:
    records = _records(rows)
    common = _common([str(record["variant"]) for record in records])
    labels = _labels(records, common)
    baseline = _baseline(rows, asked)
    newest = rows.sort_values("started_at", kind="stable")  # runs are read in the order of names
    failures = _failures(newest)
    lines = {
        record["line"]: Line(
            number=int(record["line"]),
            provider=record["provider"],
            lists=record["lists"],
            settings={name: record[name] for name in frames.LINE_COLUMNS},
            label=labels[record["line"]],
            style=styles[_look(record)],
            failures=tuple(failures.get(record["line"], ())),
        )
        for record in sorted(records, key=lambda record: order_key(record, baseline))
    }
    counted = newest[newest["status"] == "ok"].drop_duplicates(["line", "seed"], keep="last")
    by_line = dict(iter(counted.groupby("line", sort=False)))
    held = ((line, by_line[place]) for place, line in lines.items() if place in by_line)
    configs = tuple(_config(line, own) for line, own in held)
    configs = tuple(c for c in configs if any(m.column in c.estimates for m in MEASURES))
    panels = tuple(
        Panel(str(pass_), baseline, tuple(lines[n] for n in lines if n in set(own["line"])))
        for pass_, own in rows.groupby("pass", sort=True)
    )
    return QualityGroup(
        number=number_,
        facet=Facet(number_, rows, panels, baseline),
        configs=configs,
        denses=tuple(c for c in configs if c.line.provider == baseline and _is_dense(c)),
        by_number={config.number: config for config in configs},
        common=common,
    )


def _is_dense(config: Config) -> bool:
    return config.line.lists == "dense" and not config.ablation


def ablation(variant: str) -> str:
    """The part of a variant that changes the model or its loss; empty where nothing does."""
    return _part(variant, _RECIPE, inside=False)


def _part(variant: str, names: Sequence[str], *, inside: bool = True) -> str:
    """The changes of a variant that are of these names, or of all others."""
    changes = (change for change in variant.split(",") if change)
    return ",".join(c for c in changes if (c.partition("=")[0] in names) == inside)


def _baseline(rows: pd.DataFrame, asked: str | None) -> str:
    """The dense provider that quality is compared with."""
    plain = rows["variant"].map(ablation) == ""
    dense = set(rows[(rows["lists"] == "dense") & plain & (rows["status"] == "ok")]["provider"])
    wanted = (*([asked] if asked else []), *frames.DEFAULT_BASELINES, *sorted(dense))
    return next((name for name in wanted if name in dense), frames.DEFAULT_BASELINES[0])


def _common(variants: Sequence[str]) -> str:
    """The changes that all variants have."""
    shared = set.intersection(*(set(variant.split(",")) for variant in variants))
    return ",".join(change for change in variants[0].split(",") if change in shared)


def _labels(records: list[dict[str, Any]], common: str) -> dict[int, str]:
    """Labels of the lines, without the changes that all have; sizes are named where nothing else
    tells two apart."""
    names = [change.partition("=")[0] for change in common.split(",")]
    labels = line_labels(
        [{**r, "variant": _part(str(r["variant"]), names, inside=False)} for r in records]
    )
    alike: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        alike[_look(record)].append(record)
    for held in alike.values():
        if len({record["parameters"] for record in held}) > 1:
            for record in held:
                size = count_in_words(number(record["parameters"]))
                name = labels[record["line"]].rpartition(" #")[0] or labels[record["line"]]
                labels[record["line"]] = label_text(f"{name} · {size} parameters")
    return labels


def count_in_words(count: float | None) -> str:
    """A large count, such as ``1.23 M``; empty for None."""
    if count is None:
        return ""
    for unit, word in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{plain_text(count / unit)} {word}"
    return plain_text(count)


def _config(line: Line, rows: pd.DataFrame) -> Config:
    estimates = {}
    seeds = rows["seed"].tolist() if rows["seed"].notna().all() else None
    for column, bounds in BOUNDS.items():
        values = rows[column]
        if line.lists == "dense" and column in ("attended_share", "sparsity"):
            values = values.fillna(1.0 if column == "attended_share" else 0.0)
        held = estimate(values.tolist(), bounds, seeds)
        if held is not None:
            estimates[column] = held
    return Config(
        line=line,
        estimates=estimates,
        cases=tuple(int(place) for place in rows.index),
        case_ids=tuple(zip(rows["run_id"], rows["case_id"], strict=True)),
        parameters=number(rows["parameters"].iloc[-1]),
        eval_count=number(rows["eval_count"].iloc[-1]),
    )


def _failures(rows: pd.DataFrame) -> dict[int, list[Failure]]:
    found: dict[int, list[Failure]] = defaultdict(list)
    failed = rows[rows["status"] != "ok"].drop_duplicates(["line", "status"], keep="last")
    for place, line, length, status, reason in failed[
        ["line", "length", "status", "reason"]
    ].itertuples():
        found[line].append(Failure(int(length), status, reason, None, place))
    return found
