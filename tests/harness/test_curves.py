"""Training curves survive their file, and what does not fit the schema is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.harness.curves import (
    CURVE_COLUMNS,
    CURVES_FOLDER,
    read_curve_frame,
    read_curves,
    write_curves,
)
from dynbench.harness.rowfiles import StoreError, write_parquet
from dynbench.harness.store import read_runs

VALUES = {
    "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(allow_nan=False),
}
RECORDS = st.fixed_dictionaries(
    {}, optional={c.name: st.none() | VALUES[c.kind] for c in CURVE_COLUMNS.values()}
)


@settings(max_examples=30)
@given(st.lists(RECORDS, max_size=4), st.lists(RECORDS, max_size=2))
def test_records_survive_their_files(tmp_path_factory, first, second):
    run = tmp_path_factory.mktemp("run")
    assert read_curves(run) == []
    write_curves(second, run / CURVES_FOLDER / "b.parquet")
    write_curves(first, run / CURVES_FOLDER / "a.parquet")
    empty = dict.fromkeys(CURVE_COLUMNS)
    assert read_curves(run) == [empty | record for record in (*first, *second)]


def test_a_misspelt_column_is_named(tmp_path):
    with pytest.raises(KeyError, match="trian_loss"):
        write_curves([{"step": 1, "trian_loss": 2.0}], tmp_path / "a.parquet")
    assert not list(tmp_path.iterdir())


def test_files_of_something_else_are_refused_in_one_line(tmp_path):
    folder = tmp_path / CURVES_FOLDER
    folder.mkdir()
    write_parquet([], folder / "rows.parquet")
    with pytest.raises(StoreError, match=r"rows\.parquet: .*this dynbench reads 1") as caught:
        read_curves(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_is_a_frame_with_all_columns(tmp_path):
    file = tmp_path / CURVES_FOLDER / "a.parquet"
    write_curves([{"step": 1, "layer": "", "train_loss": 2.0}, {"step": 2, "layer": ""}], file)
    frame = read_curve_frame(file)
    assert list(frame.columns) == list(CURVE_COLUMNS)
    assert frame["step"].tolist() == [1, 2]
    assert frame["train_loss"].isna().tolist() == [False, True]
    assert frame["gate_sliding"].dtype == float


def test_curves_beside_rows_are_not_read_as_rows(tmp_path):
    write_curves([{"step": 1}], tmp_path / "run" / CURVES_FOLDER / "a.parquet")
    write_parquet([], tmp_path / "run" / "rows.parquet")
    _, problems = read_runs([tmp_path])
    assert not [line for line in problems if "a.parquet" in line]
