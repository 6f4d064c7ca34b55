"""The log of a training run: parquet, one row per step and layer."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

LOG_FOLDER = "log"

# name, parquet type, meaning. A column that a row has nothing for is null.
COLUMNS = (
    ("step", "int64", "optimizer step, from 1"),
    ("layer", "string", 'name of the layer in the model; "" in the row of the step itself'),
    ("learning_rate", "float64", "of the first parameter group"),
    ("total", "float64", "the loss that was trained"),
    ("main", "float64", "cross-entropy of the next character, nats"),
    ("surprise", "float64", "SML, before its weight"),
    ("kl", "float64", "KL divergence, nats a weight, before its weight"),
    ("sars", "float64", "SARS meta loss, nats, before its weight"),
    ("fars", "float64", "FARS loss, before its weight"),
    ("alignment", "float64", "alignment of the choice of blocks, nats, before its weight"),
    ("gradient_norm", "float64", "norm of all gradients together, before clipping"),
    ("eval_loss", "float64", "cross-entropy on held-out data, where it was evaluated, nats"),
    ("eval_accuracy", "float64", "accuracy on held-out data, where it was evaluated"),
    ("neurons", "int64", "neurons of a routed layer, or its experts"),
    ("activation_rate", "float64", "share of weights > 0 over its tokens and neurons"),
    ("dead_neurons", "int64", "neurons or experts that opened for no token of the batch"),
    ("gate_compressed", "float64", "mean gate of the compressed branch"),
    ("gate_selected", "float64", "mean gate of the selected branch"),
    ("gate_sliding", "float64", "mean gate of the sliding branch"),
    ("selected_blocks", "float64", "mean number of blocks in a query's list, if any"),
)


class TrainingLog:
    """Rows collected in memory and written as one parquet file per checkpoint interval.

    Files are immutable and appear under their final name when complete. Each holds the steps of one
    interval, so resuming from a checkpoint removes the files that came after it.

    Args:
        folder: where the run lives; files go to its subfolder ``log``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / LOG_FOLDER
        self._rows: list[dict[str, Any]] = []

    def add(self, step: int, rows: Iterable[dict[str, Any]]) -> None:
        """Keep ``rows`` of one step; each names its columns as in ``COLUMNS``."""
        self._rows += [{"step": step} | row for row in rows]

    def write(self) -> None:
        """Write what was added since the last time, if anything was."""
        if not self._rows:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.folder.mkdir(parents=True, exist_ok=True)
        first, last = self._rows[0]["step"], self._rows[-1]["step"]
        path = self.folder / f"{first:09d}-{last:09d}.parquet"
        partial = path.with_suffix(".partial")
        pq.write_table(pa.Table.from_pylist(self._rows, schema=_schema()), partial)
        os.replace(partial, path)
        self._rows = []

    def forget_after(self, step: int) -> None:
        """Remove the files of intervals that ended after ``step``."""
        for path in self.folder.glob("*.parquet"):
            if int(path.stem.split("-")[1]) > step:
                path.unlink()


def read_log(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """All rows of a run in the order of their steps; columns as in ``COLUMNS``.

    Raises:
        FileNotFoundError: the folder holds no log.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted((Path(folder) / LOG_FOLDER).glob("*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no training log; name the folder given to fit as out")
    return pa.concat_tables([pq.read_table(path) for path in paths]).to_pandas()


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind, _ in COLUMNS])
