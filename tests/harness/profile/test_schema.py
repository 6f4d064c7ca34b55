"""Files of profiles: they come back whole, they are found, and they are no rows of a run."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynbench.harness.profile.schema import (
    KERNELS_FILE,
    PROFILE_COLUMNS,
    read_profile,
    read_profiles,
    write_profile,
)
from dynbench.harness.rowfiles import StoreError
from dynbench.harness.store import RunWriter, read_runs

ROW = dict.fromkeys(PROFILE_COLUMNS) | {
    "profile_id": "p",
    "tool": "ncu",
    "kernel": "gemm",
    "calls": 2.0,
    "registers": 168,
    "dram_read_bytes": 1e9,
    "git_dirty": True,
    "seq_len": 8192,
}


def write(folder, name="p", **values):
    path = folder / "profiles" / name / KERNELS_FILE
    path.parent.mkdir(parents=True)
    write_profile([{**ROW, "profile_id": name, **values}], path)
    return path


def test_rows_come_back_as_they_were(tmp_path):
    assert read_profile(write(tmp_path)) == [ROW]


def test_profiles_are_found_below_a_run_and_beside_it_and_read_once(tmp_path):
    with RunWriter.create(tmp_path, "dynbench run", run_id="run") as writer:
        writer.finish()
    write(tmp_path / "run", "b")
    write(tmp_path, "a")
    write(tmp_path / "elsewhere", "c")
    write(tmp_path / "run" / "no", "d").rename(tmp_path / "run" / KERNELS_FILE)
    for paths in ([tmp_path / "run"], [tmp_path / "run", tmp_path / "run"]):
        rows, problems = read_profiles(paths)
        assert [row["profile_id"] for row in rows] == ["a", "b"]
        assert not problems
    assert [row["profile_id"] for row in read_profiles([tmp_path])[0]] == ["a", "b", "c"]


def test_a_run_with_profiles_reads_as_before(tmp_path):
    with RunWriter.create(tmp_path, "dynbench run", run_id="run") as writer:
        writer.append({"case_id": "c", "status": "ok"})
        writer.finish()
    write(tmp_path / "run")
    write(tmp_path)
    frame, problems = read_runs([tmp_path])
    assert len(frame) == 1
    assert not problems


@pytest.mark.parametrize("how", ["torn", "foreign", "newer"])
def test_a_file_that_cannot_be_read_is_named_and_the_others_are(tmp_path, how):
    path = write(tmp_path, "bad")
    if how == "torn":
        path.write_bytes(path.read_bytes()[:100])
    else:
        metadata = {} if how == "foreign" else {"dynbench.profile_schema_version": "99"}
        schema = pa.schema([("a", pa.int64())], metadata=metadata)
        pq.write_table(pa.table({"a": [1]}, schema=schema), path)
    write(tmp_path, "good")
    with pytest.raises(StoreError, match="bad"):
        read_profile(path)
    rows, problems = read_profiles([tmp_path])
    assert [row["profile_id"] for row in rows] == ["good"]
    assert len(problems) == 1
