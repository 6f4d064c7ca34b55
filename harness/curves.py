"""Training curves of a run: a parquet file of its own beside the run's rows.

One record for each logged step of a case, and one more for each layer that was looked into at that
step. ``case_id`` leads to the case's row, which holds what the training reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynbench.harness.rowfiles import read_version, write_rows
from dynbench.harness.schema import Column, arrow_schema_of

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

CURVES_SCHEMA_VERSION = 1
"""Raised when a column comes, goes or changes its meaning."""

CURVES_FOLDER = "curves"
"""Of a run: one file a case, ``<case_id>.parquet``, written when the case ends."""

_VERSION_KEY = "dynbench.curves_schema_version"

CURVE_SECTIONS: dict[str, tuple[Column, ...]] = {
    "identity": (
        Column("run_id", "string", "The run."),
        Column("case_id", "string", "The case whose training this is."),
        Column("step", "int", "Optimizer step, from 1."),
        Column("layer", "string", "Layer of the model; empty in the record of the step itself."),
    ),
    "step": (
        Column("at_s", "float", "When the step ended, after the training began.", "s"),
        Column("learning_rate", "float", "Of the first parameter group."),
        Column("train_loss", "float", "Cross-entropy of the batch.", "nats"),
        Column("total_loss", "float", "The same with auxiliary losses and their weights."),
        Column("surprise", "float", "Surprise minimisation, before its weight."),
        Column("kl", "float", "KL divergence, before its weight.", "nats"),
        Column("sars", "float", "Surprise-aware routing shaping, before its weight.", "nats"),
        Column("fars", "float", "Fisher-aware routing shaping, before its weight."),
        Column("alignment", "float", "Of the choice of blocks, before its weight.", "nats"),
        Column("gradient_norm", "float", "Norm of all gradients, before clipping."),
        Column("eval_loss", "float", "As in the row, where it was evaluated at this step.", "nats"),
        Column("eval_accuracy", "float", "As in the row, where it was evaluated at this step."),
    ),
    "layer": (
        Column("neurons", "int", "Neurons of a routed layer, or its experts."),
        Column("activation_rate", "float", "Share of weights above 0, over tokens and neurons."),
        Column("dead_neurons", "int", "Neurons that opened for no token of the batch."),
        Column("gate_compressed", "float", "Mean gate of the compressed branch."),
        Column("gate_selected", "float", "Mean gate of the selected branch."),
        Column("gate_sliding", "float", "Mean gate of the sliding branch."),
        Column("selected_blocks", "float", "Blocks in a query's list, averaged, if any."),
    ),
}
"""All columns by section, in the order of the file."""

CURVE_COLUMNS: dict[str, Column] = {
    column.name: column for section in CURVE_SECTIONS.values() for column in section
}


def write_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write records to ``path`` whole or not at all; columns that a record lacks are null.

    Raises KeyError for a column that the schema does not know.
    """
    unknown = sorted({name for record in records for name in record} - set(CURVE_COLUMNS))
    if unknown:
        raise KeyError(f"columns unknown to the schema of curves: {', '.join(unknown)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = arrow_schema_of(CURVE_COLUMNS.values(), _VERSION_KEY, CURVES_SCHEMA_VERSION)
    write_rows(records, path, schema)


def read_curves(run: Path) -> list[dict[str, Any]]:
    """All records of a run's folder, cases in the order of their ids; none where it has none.

    Raises StoreError for a file that is damaged or of another schema version.
    """
    records: list[dict[str, Any]] = []
    for path in sorted((run / CURVES_FOLDER).glob("*.parquet")):
        rows = _checked_table(path).to_pylist()
        records += [{name: row.get(name) for name in CURVE_COLUMNS} for row in rows]
    return records


def read_curve_frame(path: Path) -> pd.DataFrame:
    """The records of one file as a frame with every column of the schema, missing numbers NaN.

    Raises StoreError for a file that is damaged or of another schema version.
    """
    return _checked_table(path).to_pandas().reindex(columns=list(CURVE_COLUMNS))


def _checked_table(path: Path) -> pa.Table:
    remedy = "read it with the version that wrote it"
    return read_version(path, _VERSION_KEY, CURVES_SCHEMA_VERSION, "curve", remedy)
