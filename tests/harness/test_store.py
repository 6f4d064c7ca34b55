"""Runs on disk: whole, torn, truncated, of another version, resumed, and killed in between."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynbench.harness import rowfiles, store
from dynbench.harness.curves import CURVES_FOLDER, write_curves
from dynbench.harness.rowfiles import StoreError
from dynbench.harness.schema import COLUMNS
from dynbench.harness.store import (
    OutputError,
    RunWriter,
    check_output_root,
    finished_rows,
    frame_of,
    list_runs,
    read_runs,
)


def row(case_id: str, **more) -> dict:
    return {"case_id": case_id, "status": "ok", "latency_ms": 1.5, "samples_ms": [1.0, 2.0], **more}


def make_run(root: Path, *case_ids: str, finish: bool = True) -> Path:
    with RunWriter.create(root, "dynbench run") as writer:
        writer.note(planned_cases=len(case_ids))
        for case_id in case_ids:
            writer.append(row(case_id))
        if finish:
            writer.finish()
        return writer.path


def cases_of(*paths: Path) -> list[str]:
    frame, problems = read_runs(paths)
    assert problems == []
    return list(frame["case_id"])


@pytest.mark.parametrize("finish", [False, True])
def test_rows_are_read_from_journal_and_parquet(tmp_path, finish):
    path = make_run(tmp_path, "a", "b", finish=finish)
    assert (path / "rows.jsonl").exists() is not finish
    assert (path / "rows.parquet").exists() is finish
    assert cases_of(path) == ["a", "b"]
    frame, _ = read_runs([path])
    assert set(frame["run_id"]) == {path.name}
    assert frame["samples_ms"][0] == [1.0, 2.0]
    assert list(frame.columns) == list(COLUMNS)


def test_rows_are_compacted_in_the_order_of_the_plan(tmp_path):
    with RunWriter.create(tmp_path, "dynbench run") as writer:
        for case_id in ("c", "other", "a", "another", "b"):
            writer.append(row(case_id))
        writer.finish(["a", "b", "c"])
        assert cases_of(writer.path) == ["other", "another", "a", "b", "c"]


def test_rows_older_than_a_column_are_read(tmp_path):
    """As those of a run from before `gpu_index`."""
    path = make_run(tmp_path, "a") / "rows.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["gpu_index"]), path)
    frame, problems = read_runs([path])
    assert problems == []
    assert frame["gpu_index"].isna().all()


def test_every_row_is_on_the_disk_when_append_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    with RunWriter.create(tmp_path, "x") as writer:
        for number in range(3):
            writer.append(row(str(number)))
            journal = writer.path / "rows.jsonl"
            assert len(journal.read_bytes().splitlines()) == number + 1
            assert synced[-1] == journal.stat().st_size


def test_curves_are_no_rows(tmp_path):
    path = make_run(tmp_path, "a")
    write_curves([{"case_id": "a", "step": 1}], path / CURVES_FOLDER / "a.parquet")
    assert cases_of(tmp_path) == ["a"]
    assert [run.path for run in list_runs(tmp_path)] == [path]


def test_a_run_says_what_made_it(tmp_path):
    path = make_run(tmp_path, "a")
    facts = json.loads((path / "run.json").read_text())
    assert facts["command"] == "dynbench run"
    assert facts["schema_version"] == 1
    assert facts["planned_cases"] == 1
    assert facts["created_at"].endswith("+00:00")


def test_parquet_holds_its_schema_version(tmp_path):
    path = make_run(tmp_path, "a")
    assert pq.read_schema(path / "rows.parquet").metadata[b"dynbench.schema_version"] == b"1"


def test_a_folder_of_runs_is_one_dataset(tmp_path):
    make_run(tmp_path / "deep" / "er", "a")
    make_run(tmp_path, "b", finish=False)
    single = tmp_path / "baseline.parquet"
    other = make_run(tmp_path.parent / f"{tmp_path.name}-other", "c")
    single.write_bytes((other / "rows.parquet").read_bytes())
    assert sorted(cases_of(tmp_path)) == ["a", "b", "c"]
    assert cases_of(single) == ["c"]
    assert sorted(cases_of(tmp_path, tmp_path, single)) == ["a", "b", "c"]


def test_a_torn_last_line_is_named_and_the_others_kept(tmp_path):
    path = make_run(tmp_path, "a", "b", finish=False)
    journal = path / "rows.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    frame, problems = read_runs([path])
    assert list(frame["case_id"]) == ["a"]
    assert len(problems) == 1
    assert "line 2 is torn" in problems[0]


def test_a_last_line_that_lacks_only_its_end_is_a_row(tmp_path):
    path = make_run(tmp_path, "a", "b", finish=False)
    journal = path / "rows.jsonl"
    journal.write_bytes(journal.read_bytes()[:-1])
    assert cases_of(path) == ["a", "b"]
    with RunWriter.resume(path) as writer:
        writer.append(row("c"))
    assert cases_of(path) == ["a", "b", "c"]


def test_a_line_that_is_no_row_is_named(tmp_path):
    path = make_run(tmp_path, "a", finish=False)
    with (path / "rows.jsonl").open("a") as journal:
        journal.write('[1]\n{"seq_len": "long"}\n{"case_id": "b", "future_column": 1}\n')
    frame, problems = read_runs([path])
    assert list(frame["case_id"]) == ["a", "b"]
    assert ["line 2" in problems[0], "line 3" in problems[1]] == [True, True]


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_parquet_file_is_named_and_skipped(tmp_path, keep):
    good, bad = make_run(tmp_path, "a"), make_run(tmp_path, "b")
    parquet = bad / "rows.parquet"
    content = parquet.read_bytes()
    parquet.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    frame, problems = read_runs([tmp_path])
    assert set(frame["run_id"]) == {good.name}
    assert len(problems) == 1
    assert str(parquet) in problems[0]
    assert "\n" not in problems[0]


def test_a_truncated_parquet_file_does_not_hide_the_journal_beside_it(tmp_path):
    path = make_run(tmp_path, "a")
    with RunWriter.resume(path) as writer:
        writer.append(row("b"))
    (path / "rows.parquet").write_bytes(b"PAR1")
    frame, problems = read_runs([path])
    assert list(frame["case_id"]) == ["b"]
    assert len(problems) == 1


def test_another_schema_version_is_named_and_skipped(tmp_path):
    newer = make_run(tmp_path, "a")
    table = pq.read_table(newer / "rows.parquet")
    changed = table.replace_schema_metadata({"dynbench.schema_version": "99"})
    pq.write_table(changed, newer / "rows.parquet")
    journal = make_run(tmp_path, "b", finish=False)
    facts = json.loads((journal / "run.json").read_text())
    (journal / "run.json").write_text(json.dumps({**facts, "schema_version": 99}))
    frame, problems = read_runs([tmp_path])
    assert frame.empty
    assert len(problems) == 2
    assert all("schema version 99" in problem for problem in problems)


def test_a_journal_without_its_run_file_is_named(tmp_path):
    path = make_run(tmp_path, "a", finish=False)
    (path / "run.json").unlink()
    frame, problems = read_runs([path])
    assert frame.empty
    assert "run.json is missing" in problems[0]


def test_parquet_of_something_else_is_named(tmp_path):
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x": [1]}), other)
    _, problems = read_runs([other, tmp_path / "nowhere", tmp_path.parent / "x.parquet"])
    assert "no file of dynbench" in problems[0]
    assert "does not exist" in problems[1]
    assert len(problems) == 3


def test_a_folder_without_runs_is_named(tmp_path):
    (tmp_path / "notes").mkdir()
    _, problems = read_runs([tmp_path])
    assert problems == [f"{tmp_path}: holds no runs"]


def test_columns_that_came_later_are_empty_in_older_files(tmp_path):
    path = make_run(tmp_path, "a")
    table = pq.read_table(path / "rows.parquet")
    older = table.drop_columns(["activation_rate"]).append_column("retired", [["x"]])
    pq.write_table(older, path / "rows.parquet")
    frame, problems = read_runs([path])
    assert problems == []
    assert frame["activation_rate"].isna().all()
    assert "retired" not in frame


def test_frame_types():
    frame = frame_of([row("a", seq_len=2**60 + 1), row("b", git_dirty=True, reason="why")])
    assert frame["seq_len"].dtype == "Int64"
    assert frame["seq_len"][0] == 2**60 + 1
    assert frame["seq_len"].isna().tolist() == [False, True]
    assert frame["git_dirty"].dtype == "boolean"
    assert frame["latency_ms"].dtype == "float64"
    assert frame["reason"].dtype == object
    assert frame["reason"].tolist() == [None, "why"]
    assert frame_of([]).columns.tolist() == list(COLUMNS)
    assert frame_of([])["seq_len"].dtype == "Int64"


def test_stored_and_made_frames_are_alike(tmp_path):
    path = make_run(tmp_path, "a", "b")
    stored, _ = read_runs([path])
    rows = [{**row(c), "run_id": path.name} for c in "ab"]
    pd.testing.assert_frame_equal(stored, frame_of(rows))


def test_resume_appends_and_the_latest_row_counts(tmp_path):
    path = make_run(tmp_path, "a", "b")
    with RunWriter.resume(path) as writer:
        assert writer.run_id == path.name
        writer.append(row("c"))
        writer.append(row("b", status="error"))
        assert cases_of(path) == ["a", "b", "c"]
        writer.finish()
    assert not (path / "rows.jsonl").exists()
    frame, _ = read_runs([path])
    assert dict(zip(frame["case_id"], frame["status"], strict=True)) == {
        "a": "ok",
        "b": "error",
        "c": "ok",
    }


def test_resume_cuts_a_torn_line_off_first(tmp_path):
    path = make_run(tmp_path, "a", "b", finish=False)
    journal = path / "rows.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    with RunWriter.resume(path) as writer:
        assert set(writer.finished_rows()) == {"a"}
        writer.append(row("b"))
        writer.finish()
    assert cases_of(path) == ["a", "b"]


def test_a_journal_with_lines_that_are_no_rows_is_kept_and_told(tmp_path):
    path = make_run(tmp_path, "a", finish=False)
    for number, case_id in enumerate("bc", start=1):
        with (path / "rows.jsonl").open("a") as journal:
            journal.write('{"case_id": "lost", "seq_len"\n')
        with RunWriter.resume(path) as writer:
            writer.append(row(case_id))
            writer.finish()
        assert '"lost"' in (path / f"rows.damaged-{number}.jsonl").read_text()
    assert not (path / "rows.jsonl").exists()
    frame, problems = read_runs([path])
    assert list(frame["case_id"]) == ["a", "b", "c"]
    assert [problem.partition(": ")[0] for problem in problems] == [
        str(path / f"rows.damaged-{number}.jsonl") for number in (1, 2)
    ]
    assert "remove it if no row of it is wanted" in problems[0]
    for kept in path.glob("rows.damaged-*"):
        kept.unlink()
    assert cases_of(path) == ["a", "b", "c"]


@pytest.mark.parametrize("quick", [False, True])
def test_a_quick_run_is_resumed_as_one(tmp_path, quick):
    with RunWriter.create(tmp_path, "x", quick=quick) as writer:
        path = writer.path
    with pytest.raises(OutputError, match=r"--quick.*leave.*--resume"):
        RunWriter.resume(path, quick=not quick)
    RunWriter.resume(path, quick=quick).close()


def test_skipped_cases_are_not_finished_and_failed_ones_are(tmp_path):
    with RunWriter.create(tmp_path, "x") as writer:
        for status in ("ok", "error", "timeout", "skipped"):
            writer.append(row(status, status=status))
    assert set(finished_rows(writer.path)) == {"ok", "error", "timeout"}


@pytest.mark.parametrize("dies_in", ["write_parquet", "replace", "unlink"])
def test_a_crash_while_compacting_loses_nothing(tmp_path, monkeypatch, dies_in):
    class Crash(BaseException):
        pass

    def crash(*arguments, **more):
        raise Crash

    path = make_run(tmp_path, "a")
    writer = RunWriter.resume(path)
    writer.append(row("b"))
    with monkeypatch.context() as patch:
        if dies_in == "write_parquet":
            patch.setattr(pq, "write_table", crash)
        elif dies_in == "replace":
            patch.setattr(rowfiles.os, "replace", crash)
        else:
            patch.setattr(Path, "unlink", crash)
        with pytest.raises(Crash):
            writer.finish()
    assert cases_of(path) == ["a", "b"]
    with RunWriter.resume(path) as again:
        again.append(row("c"))
        again.finish()
    assert cases_of(path) == ["a", "b", "c"]
    assert sorted(p.name for p in path.iterdir()) == ["rows.parquet", "run.json"]


def test_finishing_twice_or_without_rows_is_fine(tmp_path):
    with RunWriter.create(tmp_path, "x") as writer:
        assert writer.finish() == writer.finish()
    frame, problems = read_runs([writer.path])
    assert frame.empty
    assert problems == [f"{writer.path}: the run holds no rows"]


def test_only_one_process_writes_a_run(tmp_path):
    writer = RunWriter.create(tmp_path, "x")
    with pytest.raises(OutputError, match="another process"):
        RunWriter.resume(writer.path)
    writer.close()
    RunWriter.resume(writer.path).close()


def test_a_row_must_fit_the_schema(tmp_path):
    with RunWriter.create(tmp_path, "x") as writer, pytest.raises(KeyError, match="latncy"):
        writer.append({"latncy_ms": 1.0})
    assert not (writer.path / "rows.jsonl").exists()


def test_a_file_where_a_folder_is_needed(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    for root in (file, file / "below"):
        with pytest.raises(OutputError, match="is not a folder"):
            check_output_root(root)
        with pytest.raises(OutputError, match="is not a folder"):
            RunWriter.create(root, "x")
    assert file.read_text() == "kept"
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError):
        check_output_root(dangling)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(store.os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="is not writable"):
        check_output_root(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_the_system_refuses():
    with pytest.raises(OutputError, match="another folder"):
        RunWriter.create("/proc/dynbench-test", "x")


def test_checking_creates_nothing(tmp_path):
    assert check_output_root(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["nothing", "empty", "version", "parquet", "json"])
def test_what_cannot_be_resumed_is_named(tmp_path, what):
    path = make_run(tmp_path, "a")
    if what == "nothing":
        path = tmp_path / "nowhere"
    elif what == "empty":
        path = tmp_path
    elif what == "version":
        (path / "run.json").write_text('{"schema_version": 99}')
    elif what == "parquet":
        (path / "rows.parquet").write_bytes(b"PAR1")
    else:
        (path / "run.json").write_text("{")
    with pytest.raises(OutputError, match=str(path)):
        RunWriter.resume(path)


def test_a_run_that_cannot_be_resumed_is_not_held(tmp_path):
    """The second try says what is wrong, and not that another process is writing."""
    path = make_run(tmp_path, "a")
    whole = (path / "rows.parquet").read_bytes()
    (path / "rows.parquet").write_bytes(b"PAR1")
    for _ in range(2):
        with pytest.raises(OutputError, match="truncated"):
            RunWriter.resume(path)
    (path / "rows.parquet").write_bytes(whole)
    RunWriter.resume(path).close()


def test_a_full_disk_is_an_output_error(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with RunWriter.create(tmp_path, "x") as writer:
        monkeypatch.setattr(store.os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            writer.append(row("a"))


def test_runs_are_listed_oldest_first(tmp_path):
    first = make_run(tmp_path, "a", "b")
    second = make_run(tmp_path, "c", finish=False)
    for path, created_at in ((first, "2026-01-01"), (second, "2025-01-01")):
        facts = json.loads((path / "run.json").read_text())
        (path / "run.json").write_text(json.dumps({**facts, "created_at": created_at}))
    runs = list_runs(tmp_path)
    assert [run.path for run in runs] == [second, first]
    assert [run.row_count for run in runs] == [1, 2]
    assert [run.finished for run in runs] == [False, True]
    assert runs[1].command == "dynbench run"
    assert list_runs(tmp_path / "nowhere") == []


def test_an_unreadable_run_is_listed_without_rows(tmp_path):
    path = make_run(tmp_path, "a")
    (path / "rows.parquet").write_bytes(b"PAR1")
    (path / "run.json").write_text("{")
    (run,) = list_runs(tmp_path)
    assert (run.run_id, run.row_count, run.finished) == (path.name, 0, False)


def test_unreadable_parquet_raises_where_it_must(tmp_path):
    path = make_run(tmp_path, "a")
    (path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"rows\.parquet"):
        finished_rows(path)


def test_ten_thousand_rows_are_read_in_seconds(tmp_path):
    import time

    rows = [
        {**row(str(i), samples_ms=[1.0] * 50, samples_at_s=[1.0] * 50), "run_id": "r"}
        for i in range(10_000)
    ]
    rowfiles.write_parquet(rows, tmp_path / "big.parquet")
    began = time.perf_counter()
    frame, _ = read_runs([tmp_path / "big.parquet"])
    assert len(frame) == 10_000
    assert time.perf_counter() - began < 5


def test_a_run_that_cannot_say_what_it_is_is_let_go(tmp_path, monkeypatch):
    def full(path, write):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store, "replace_file", full)
        with pytest.raises(OutputError, match="No space left on device") as refusal:
            RunWriter.create(tmp_path, "dynbench run", run_id="cut")
    # The refusal is held, and with it the frame that made the writer.
    with RunWriter(tmp_path / "cut", "cut") as writer:
        writer.append(row("a"))
    assert "cut" in str(refusal.value)
