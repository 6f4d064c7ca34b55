"""Training curves of a group: means over seeds, step by step, as whole or thinned lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dynbench.dashboards.quality.estimate import means
from dynbench.dashboards.quality.measures import BOUNDS
from dynbench.dashboards.quality.model import Config
from dynbench.harness.curves import CURVES_FOLDER, read_curve_frame
from dynbench.harness.rowfiles import StoreError

STEP_COLUMNS = ("train_loss", "eval_loss", "eval_accuracy")
LAYER_COLUMNS = (
    "activation_rate",
    "gate_compressed",
    "gate_selected",
    "gate_sliding",
)
_COLUMNS = (*STEP_COLUMNS, *LAYER_COLUMNS)
_BOUNDS = {**BOUNDS, "train_loss": BOUNDS["eval_loss"]}

Case = tuple[str, str]
"""``run_id`` and ``case_id``."""

Curves = Mapping[Case, pd.DataFrame]
"""The records of each case, as the curves' schema has them."""


@dataclass(frozen=True)
class MeanCurve:
    """One column of one layer (empty: of the step) over the steps that all seeds have."""

    steps: NDArray[Any]
    mean: NDArray[Any]
    low: NDArray[Any] | None  # None where one seed has a curve
    high: NDArray[Any] | None
    seeds: int

    def thinned(self, limit: int | None) -> MeanCurve:
        """At most ``limit`` steps, evenly spread, the first and the last among them."""
        count = len(self.steps)
        if limit is None or count <= limit:
            return self
        kept = np.unique(np.linspace(0, count - 1, limit).round().astype(int))
        low = None if self.low is None else self.low[kept]
        high = None if self.high is None else self.high[kept]
        return MeanCurve(self.steps[kept], self.mean[kept], low, high, self.seeds)


MeanCurves = Mapping[tuple[str, str], MeanCurve]
"""By layer and column."""


def read_curves_below(paths: Iterable[Path]) -> tuple[dict[Case, pd.DataFrame], list[str]]:
    """The curves of all runs below the paths, or beside those that are files; what was not read."""
    found: dict[Case, pd.DataFrame] = {}
    problems: list[str] = []
    for file in sorted({file for path in paths for file in _files(path)}):
        try:
            records = read_curve_frame(file)
        except StoreError as error:
            problems.append(str(error))
            continue
        for case, held in records.groupby(["run_id", "case_id"], sort=False):
            found[str(case[0]), str(case[1])] = held
    return found, problems


def mean_curves(config: Config, curves: Curves) -> MeanCurves:
    """The curves of a configuration: the mean over its seeds at the steps that all of them have."""
    seeds = [_plain(curves[case]) for case in config.case_ids if case in curves]
    if not seeds:
        return {}
    common = seeds[0].index
    for other in seeds[1:]:
        common = common[common.isin(other.index)]
    values = np.stack([seed.loc[common].to_numpy(dtype="float64") for seed in seeds])
    layers = common.get_level_values("layer").to_numpy()
    steps = common.get_level_values("step").to_numpy()
    found: dict[tuple[str, str], MeanCurve] = {}
    for layer in dict.fromkeys(layers.tolist()):
        of_layer = layers == layer
        for place, column in enumerate(_COLUMNS):
            held = values[:, of_layer, place]
            known = np.isfinite(held).all(axis=0)
            if not known.any():
                continue
            order = np.argsort(steps[of_layer][known], kind="stable")
            mean, half = means(held[:, known][:, order])
            low = high = None
            if half is not None:
                least, most = _BOUNDS[column]
                low, high = np.maximum(mean - half, least), np.minimum(mean + half, most)
            own = steps[of_layer][known][order]
            found[layer, column] = MeanCurve(own, mean, low, high, len(seeds))
    return found


def layers_of(all_curves: Iterable[MeanCurves], columns: Sequence[str]) -> list[str]:
    """Layers with one of the columns, in the order of their first record."""
    return list(
        dict.fromkeys(
            layer for held in all_curves for layer, column in held if layer and column in columns
        )
    )


def spread(items: Sequence[str], limit: int | None) -> list[str]:
    """At most ``limit`` of the items, evenly spread, the first and the last among them."""
    if limit is None or len(items) <= limit:
        return list(items)
    places = np.unique(np.linspace(0, len(items) - 1, limit).round().astype(int))
    return [items[place] for place in places]


def _plain(records: pd.DataFrame) -> pd.DataFrame:
    """The columns drawn by layer and step; of a step that was logged twice the later record."""
    named = records.dropna(subset=["step"]).fillna({"layer": ""})
    held = named.drop_duplicates(["layer", "step"], keep="last")
    return held.set_index(["layer", "step"])[list(_COLUMNS)]


def _files(path: Path) -> Iterable[Path]:
    if path.is_file():
        return (path.parent / CURVES_FOLDER).glob("*.parquet")
    return (file for file in path.rglob("*.parquet") if file.parent.name == CURVES_FOLDER)
