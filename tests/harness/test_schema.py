"""The row: what it takes, what it refuses, and that it survives both forms of storage."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.harness.rowfiles import read_journal, read_parquet, write_parquet
from dynbench.harness.schema import COLUMNS, SECTIONS, Status, arrow_schema, complete_row
from dynbench.harness.store import RunWriter

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
BY_KIND = {
    "string": TEXT,
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": FLOATS,
    "bool": st.booleans(),
    "floats": st.lists(FLOATS, max_size=4),
    "strings": st.lists(TEXT, max_size=4),
}


def _strategy(name: str, kind: str) -> st.SearchStrategy:
    return st.sampled_from([s.value for s in Status]) if name == "status" else BY_KIND[kind]


ROWS = st.fixed_dictionaries(
    {}, optional={c.name: _strategy(c.name, c.kind) for c in COLUMNS.values()}
)


@settings(max_examples=30, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=3))
def test_rows_survive_journal_and_parquet(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    with RunWriter.create(folder, "command") as writer:
        written = [writer.append(row) for row in rows]
        from_journal, problems = read_journal(writer.path / "rows.jsonl")
    write_parquet(written, folder / "rows.parquet")
    assert problems == []
    assert from_journal == written
    assert read_parquet(folder / "rows.parquet") == written


def test_a_row_has_every_column():
    row = complete_row({"status": Status.OK, "latency_ms": 3})
    assert list(row) == list(COLUMNS)
    assert row["status"] == "ok"
    assert isinstance(row["latency_ms"], float)
    assert all(row[name] is None for name in COLUMNS if name not in ("status", "latency_ms"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_missing(value):
    row = complete_row({"rms_error": value})
    assert row["rms_error"] is None
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"latency": 1.0}, KeyError),
        ({"seq_len": 1.5}, TypeError),
        ({"seq_len": True}, TypeError),
        ({"git_dirty": 1}, TypeError),
        ({"latency_ms": "fast"}, TypeError),
        ({"samples_ms": 1.0}, TypeError),
        ({"status": "fine"}, ValueError),
        ({"top_n": 2**63}, ValueError),
        ({"seed": -(2**63) - 1}, ValueError),
    ],
)
def test_a_wrong_value_is_refused(values, error):
    with pytest.raises(error):
        complete_row(values)


def test_a_number_that_no_parquet_file_takes_is_a_named_line_of_a_journal(tmp_path):
    journal = tmp_path / "rows.jsonl"
    journal.write_text('{"case_id": "a", "top_n": 99999999999999999999}\n{"case_id": "b"}\n')
    rows, problems = read_journal(journal)
    assert [row["case_id"] for row in rows] == ["b"]
    assert len(problems) == 1
    assert "line 1 is no row: column top_n takes 64 bits" in problems[0]


def test_every_column_is_declared_once_and_explained():
    names = [column.name for section in SECTIONS.values() for column in section]
    assert len(names) == len(set(names))
    assert all(column.meaning.endswith(".") for column in COLUMNS.values())


def test_names_that_scripts_rely_on():
    promised = (
        "run_id case_id workload_id machine_id suite provider pass status reason device gpu_name "
        "cpu_name cpu_threads timer dtype batch seq_len q_heads kv_heads head_dim top_n window "
        "query_tile private_blocks sparsity attended_share latency_ms samples_ms compile_ms "
        "peak_memory_bytes flops bytes arithmetic_intensity rms_error dense_error git_commit "
        "started_at command"
    )
    assert set(promised.split()) <= set(COLUMNS)


def test_parquet_schema_follows_the_table():
    schema = arrow_schema()
    assert schema.names == list(COLUMNS)
    assert schema.field("seq_len").type == pa.int64()
    assert schema.field("samples_ms").type == pa.list_(pa.float64())
    assert schema.metadata == {b"dynbench.schema_version": b"1"}
