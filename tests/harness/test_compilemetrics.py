"""Builds survive their file, and equal builds give equal files."""

from __future__ import annotations

from dataclasses import fields, replace

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.harness.compilemetrics import (
    COMPILE_COLUMNS,
    metrics_row,
    read_metrics,
    write_metrics,
)
from dynbench.harness.crosscompile import Build
from dynbench.harness.ptx import INSTRUCTIONS
from dynbench.harness.rowfiles import StoreError, write_parquet

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.integers(0, 2**40)
BUILDS = st.builds(
    Build,
    **dict.fromkeys(("identity", "module", "kernel", "target", "triton_version", "error"), TEXT),
    **{f.name: NUMBERS for f in fields(Build) if f.type == "int"},
    constants=st.dictionaries(TEXT, st.none() | st.booleans() | st.integers() | TEXT, max_size=3),
    signature=st.dictionaries(TEXT, TEXT, max_size=3),
    uses=st.lists(TEXT, max_size=3).map(tuple),
    products=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=2).map(tuple),
    instructions=st.fixed_dictionaries(dict.fromkeys(INSTRUCTIONS, NUMBERS)),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(BUILDS, max_size=3))
def test_builds_survive_their_file(tmp_path_factory, builds):
    path = tmp_path_factory.mktemp("metrics") / "kernels.parquet"
    write_metrics(builds, path)
    assert read_metrics(path) == builds
    first = path.read_bytes()
    write_metrics([replace(build, seconds=7.0) for build in builds], path)
    assert path.read_bytes() == first


def build() -> Build:
    known = {"constants": {"N": 64}, "signature": {}, "warps": 4, "stages": 2}
    return Build("id", "package.module", "kernel", "sm_90a", triton_version="3.7.1", **known)


def test_every_number_of_a_build_has_its_column():
    """A field that is added to builds must not be forgotten by the file."""
    kept = set(COMPILE_COLUMNS) | {"instructions", "seconds"}
    assert {field.name for field in fields(Build)} <= kept
    assert list(metrics_row(build())) == list(COMPILE_COLUMNS)


def test_other_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "kernels.parquet"
    write_metrics([build()], path)
    table, whole = pq.read_table(path), path.read_bytes()
    older = {b"dynbench.compile_schema_version": b"0"}
    broken = {
        "torn": lambda: path.write_bytes(whole[:1000]),
        "no compile metrics": lambda: write_parquet([], path),
        "schema version 0, here": lambda: pq.write_table(
            table.replace_schema_metadata(older), path
        ),
        "other columns": lambda: pq.write_table(table.drop_columns(["stack_bytes"]), path),
    }
    for name, spoil in broken.items():
        spoil()
        with pytest.raises(StoreError) as error:
            read_metrics(path)
        text = str(error.value)
        assert str(path) in text
        assert "\n" not in text
        assert ("truncated" if name == "torn" else name) in text
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "nothing.parquet")
