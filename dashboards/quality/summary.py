"""Quality in words, computed from rows: at which setting, how close to dense, how sure.

A configuration is called within reach of its reference only where the whole 95 % interval of the
difference is; beyond it only where the whole interval is beyond.
"""

from __future__ import annotations

from dynbench.dashboards.compare import FOCUS
from dynbench.dashboards.labels import lists_text, machine_text, settings_text, value_text
from dynbench.dashboards.quality.measures import Gap, Measure, estimate_text
from dynbench.dashboards.quality.model import (
    Config,
    QualityGroup,
    best_by_lists,
    count_in_words,
    reference_gap,
    reference_of,
)
from dynbench.dashboards.summary import Answer, FirstScreen, status_counts
from dynbench.dashboards.text import (
    count_text,
    label_text,
    length_text,
    listing,
    percent_text,
    whole_text,
)

_OUTCOMES = {"within": "pays", "beyond": "loses", "unclear": "ties", "single": "ties"}
_KINDS = {"exact": "exact lists", "hybrid": "hybrid lists", "shared": "shared lists"}
_LISTED = 6


def first_screen(group: QualityGroup) -> FirstScreen:
    """What the rows of a group say about the focus provider beside dense attention."""
    told = [(config, _told_gap(group, config)) for config in best_by_lists(group)]
    answers = tuple(_answer(group, config, held) for config, held in told)
    where = _where_sentence(group)  # always: it has what no label repeats
    if not told:
        why = tuple(_why_nothing(group))
        return FirstScreen(_headline_without(group), (), why, lead=(where,))
    config, held = min(told, key=lambda one: _rank(one[0], one[1]))
    lead = (where, *_sentences(group, config, held))
    return FirstScreen(_headline(group, config, held), answers, (), lead=lead)


def task_text(group: QualityGroup) -> str:
    """The task and its size: ``recall at 1k tokens, 2000 steps``."""
    task = label_text(group.task) or "task not recorded"
    seq_len = group.facet.rows["seq_len"].iloc[0]
    steps = value_text(group.facet.rows["train_steps"].iloc[0])
    at = f" at {length_text(float(seq_len))} tokens" if seq_len > 0 else ""
    return f"{task}{at}{f', {steps} steps' if steps else ''}"


def _subject(group: QualityGroup) -> str:
    """The task as a headline begins with it."""
    text = task_text(group)
    return text[0].upper() + text[1:]


def _told_gap(group: QualityGroup, config: Config) -> Gap:
    held = reference_gap(group, config)
    assert held is not None  # best_by_lists has none without
    return held


def _rank(config: Config, held: Gap) -> tuple[bool, float]:
    """Within reach first, then the sparsest; else the nearest."""
    within = held.verdict == "within"
    share = config.mean("attended_share")
    return not within, (1.0 if share is None else share) if within else held.value


def _answer(group: QualityGroup, config: Config, held: Gap) -> Answer:
    kind = _KINDS.get(config.line.lists, config.line.lists)
    lists = lists_text(config.line.settings)
    return Answer(
        heading=f"{kind[0].upper()}{kind[1:]}{'' if config.line.lists == 'exact' else f' {lists}'}",
        verdict=_verdict(group, config, held),
        figure=held.text,
        figure_note=_note(group, config, held),
        outcome=_OUTCOMES[held.verdict],
        sentences=tuple(_sentences(group, config, held)),
        line=config.number,
    )


def _verdict(group: QualityGroup, config: Config, held: Gap) -> str:
    goal = f"{held.measure.close_text} of {_name(reference_of(group, config))}'s"
    goal += f" {held.measure.noun}"
    return {
        "within": f"Within {goal}",
        "beyond": f"Not within {goal}",
        "unclear": f"Not sure to be within {goal}",
        "single": f"One seed: not sure to be within {goal}",
    }[held.verdict]


def _note(group: QualityGroup, config: Config, held: Gap) -> str:
    name = _name(reference_of(group, config))
    show, unit = held.measure.show, _unit(held.measure)
    own, other = show(held.own.mean), show(held.reference.mean)
    return f"of {held.measure.noun} against {name}: {own} against {other}{unit}"


def _headline(group: QualityGroup, config: Config, held: Gap) -> str:
    lists = ", ".join(part for part in (lists_text(config.line.settings), _changed(config)) if part)
    name = f"{label_text(config.line.provider)} ({lists})"
    reference, noun = _name(reference_of(group, config)), held.measure.noun
    goal = f"{held.measure.close_text} of {reference}'s {noun}"
    words = {
        "within": f"is within {goal}",
        "beyond": f"is not within {goal}",
        "unclear": f"is not sure to be within {goal}",
        "single": f"has one seed, so it is not sure to be within {goal}",
    }[held.verdict]
    seeds = count_text(held.own.seeds, "seed")
    left_out = config.mean("sparsity")
    at = "" if left_out is None else f" with {percent_text(left_out)} of the pairs left out"
    return f"{_subject(group)}: {name} {words}{at}: {held.text} ({seeds})"


def _sentences(group: QualityGroup, config: Config, held: Gap) -> list[str]:
    found = [
        _setting_sentence(config),
        _gap_sentence(group, config, held),
        _exact_sentence(group, config),
        _other_sentence(group, config, held.measure),
        _within_sentence(group, config, held.measure),
        _size_sentence(group, config),
        _basis_sentence(group, config, held),
    ]
    return [sentence for sentence in found if sentence]


def _setting_sentence(config: Config) -> str:
    setting, left_out = settings_text(config.line.settings), config.mean("sparsity")
    lists = lists_text(config.line.settings)
    words = ", ".join(part for part in (lists, setting) if part)
    told = "" if left_out is None else f"; it leaves out {percent_text(left_out)} of the pairs"
    recipe = label_text(config.recipe.replace(",", ", "))
    changed = _changed(config)
    more = f"; changed: {changed}" if changed else ""
    return f"Setting: {words}{told}{more}{f'; trained with {recipe}' if recipe else ''}."


def _changed(config: Config) -> str:
    return label_text(config.ablation.replace(",", ", "))


def _gap_sentence(group: QualityGroup, config: Config, held: Gap) -> str:
    name = _name(reference_of(group, config))
    return f"Difference to {name}: {held.text} of {held.measure.noun} ({held.interval_text})."


def _exact_sentence(group: QualityGroup, config: Config) -> str:
    exact = group.exact_for(config)
    if exact is None or exact is reference_of(group, config):
        return ""
    parts = [
        f"{held.text} of {measure.noun} ({held.interval_text})"
        for measure in group.measures
        if (held := group.gap(config, exact, measure)) is not None
    ]
    same = f"Difference to exact lists of the same settings ({_name(exact)}): "
    return f"{same}{listing(parts)}." if parts else ""


def _other_sentence(group: QualityGroup, config: Config, told: Measure) -> str:
    reference = reference_of(group, config)
    parts = [
        f"{m.noun} {estimate_text(config.estimates[m.column], m.show)} against "
        f"{estimate_text(reference.estimates[m.column], m.show)}{_unit(m)}"
        for m in group.measures
        if m is not told
        and reference is not None
        and m.column in config.estimates
        and m.column in reference.estimates
    ]
    return f"Beside it: {listing(parts)}." if parts else ""


def _within_sentence(group: QualityGroup, config: Config, measure: Measure) -> str:
    """How many settings of this kind of lists are within reach, and which."""
    own = [
        c
        for c in group.configs
        if c.line.base == FOCUS
        and c.line.lists == config.line.lists
        and c.variant == config.variant
    ]
    gaps = [(c, held) for c in own if (held := reference_gap(group, c)) is not None]
    if len(gaps) < 2:
        return ""
    within = [(c, held) for c, held in gaps if held.verdict == "within"]
    kinds = f"{count_text(len(gaps), 'setting')} of these lists"
    if not within:
        return f"Of {kinds} none is sure to be within {measure.close_text}."
    within.sort(key=lambda one: one[0].mean("attended_share") or 1.0)
    named = [f"{_short(c)} ({held.text})" for c, held in within[:_LISTED]]
    more = f" and {len(within) - _LISTED} more" if len(within) > _LISTED else ""
    return f"Of {kinds} within {measure.close_text}: {'; '.join(named)}{more}."


def _size_sentence(group: QualityGroup, config: Config) -> str:
    """Parameters on both sides, where they differ."""
    reference = reference_of(group, config)
    if reference is None or config.parameters is None or reference.parameters is None:
        return ""
    if config.parameters == reference.parameters:
        return ""
    own, other = count_in_words(config.parameters), count_in_words(reference.parameters)
    return f"Parameters: {own} against {other} of {_name(reference)}."


def _basis_sentence(group: QualityGroup, config: Config, held: Gap) -> str:
    name = _name(reference_of(group, config))
    seeds = f"{count_text(held.own.seeds, 'seed')} against {held.reference.seeds} of {name}"
    asked = whole_text(config.eval_count)
    return f"Basis: {seeds}{f', {asked} held-out answers each' if asked else ''}."


def _where_sentence(group: QualityGroup) -> str:
    first = {str(name): value for name, value in group.facet.rows.iloc[0].items()}
    layers, width = value_text(first["layers"]), value_text(first["model_dim"])
    words = [
        f"{layers} layers" if layers else "",
        f"width {width}" if width else "",
        f"batch {value_text(first['batch'])}" if value_text(first["batch"]) else "",
        label_text(first["dtype"]),
        machine_text(first),
    ]
    common = label_text(group.common.replace(",", ", "))
    all_with = f", all with {common}" if common else ""
    return f"Trained on {task_text(group)}: {', '.join(word for word in words if word)}{all_with}."


def _headline_without(group: QualityGroup) -> str:
    counts = status_counts(group.facet)
    if not group.configs:
        told = ", ".join(f"{count} {label_text(status)}" for status, count in counts.items())
        return f"{_subject(group)}: no training has a number ({told})"
    return f"{_subject(group)}: {count_text(len(group.configs), 'configuration')} trained"


def _why_nothing(group: QualityGroup) -> list[str]:
    if not group.configs:
        return []
    if not any(c.line.base == FOCUS and c.line.is_sparse for c in group.configs):
        return [f"None of them is {FOCUS} with block lists, so nothing is compared in words."]
    return ["No dense attention and no exact lists were trained the same way to compare with."]


def _short(config: Config) -> str:
    asked = settings_text(config.line.settings).split(" blocks")[0]
    left_out = percent_text(config.mean("sparsity"))
    parts = (lists_text(config.line.settings), asked, left_out and f"{left_out} left out")
    return ", ".join(part for part in parts if part)


def _name(config: Config | None) -> str:
    return "" if config is None else label_text(config.label)


def _unit(measure: Measure) -> str:
    return " nats" if measure.relative else ""
