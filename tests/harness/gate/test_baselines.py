"""Saved baselines: what is kept, what is refused, and what accepting a slow-down covers."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from dynbench.harness.gate import baselines
from dynbench.harness.gate.errors import InvalidData, NothingToCompare, SettingsError
from dynbench.harness.gate.verdicts import CaseVerdict, Verdict

TODAY = date(2030, 1, 1)
SLOWER = CaseVerdict(
    "ab" * 8, "attention/nsa", Verdict.REGRESSED, "slower", True, change=0.1, low=0.08, high=0.12
)


def rows_of(make_row, **columns):
    return [
        make_row(i % 2, run_id=f"run-{i // 2}", git_commit="c0ffee", **columns) for i in range(6)
    ]


def test_a_baseline_keeps_every_process(make_row, tmp_path):
    saved = baselines.save(tmp_path, "main", rows_of(make_row), ["a", "b"])
    assert (saved.facts["cases"], saved.facts["runs"]) == (2, 3)
    assert saved.facts["commits"] == ["c0ffee"]
    found = baselines.find(tmp_path, "main")
    assert found.facts == saved.facts
    assert sorted(row["run_id"] for row in baselines.read(found)) == sorted(
        ["run-0", "run-1", "run-2"] * 2
    )
    assert [b.name for b in baselines.listed(tmp_path)] == ["main"]


def test_the_promoted_baseline_is_the_default(make_row, tmp_path):
    with pytest.raises(NothingToCompare, match="dynbench baseline save"):
        baselines.find(tmp_path, None)
    for name in ("old", "new"):
        baselines.save(tmp_path, name, rows_of(make_row), [])
    baselines.promote(tmp_path, "new")
    assert baselines.find(tmp_path, None).name == "new"
    assert baselines.default_name(tmp_path) == "new"
    with pytest.raises(NothingToCompare, match="has new, old"):
        baselines.promote(tmp_path, "newer")


def test_a_missing_baseline_names_what_there_is(make_row, tmp_path):
    with pytest.raises(NothingToCompare, match=f"{tmp_path} has none"):
        baselines.find(tmp_path, "main")
    baselines.save(tmp_path, "main", rows_of(make_row), [])
    with pytest.raises(NothingToCompare, match=r"no baseline 'mian': .* has main") as refusal:
        baselines.find(tmp_path, "mian")
    assert refusal.value.exit_code == 3


@pytest.mark.parametrize("name", ["", "../x", "a/b", "default", "-x", "x y"])
def test_names_that_are_no_folders(name, make_row, tmp_path):
    with pytest.raises(SettingsError, match="use letters"):
        baselines.save(tmp_path, name, rows_of(make_row), [])


def test_a_baseline_needs_an_ok_row(make_row, tmp_path):
    with pytest.raises(NothingToCompare, match="no row is ok"):
        baselines.save(tmp_path, "main", rows_of(make_row, status="error"), [])
    assert not list(tmp_path.iterdir())


def test_broken_files_are_named(make_row, tmp_path):
    saved = baselines.save(tmp_path, "main", rows_of(make_row), [])
    parquet = saved.path / "rows.parquet"
    parquet.write_bytes(parquet.read_bytes()[:500])
    with pytest.raises(InvalidData, match=r"baseline main: .*rows.parquet.*truncated") as refusal:
        baselines.read(saved)
    assert refusal.value.exit_code == 4
    (saved.path / "baseline.json").write_text("{")
    with pytest.raises(InvalidData, match=r"baseline.json: not readable"):
        baselines.find(tmp_path, "main")
    (saved.path / "baseline.json").write_text("[]")
    with pytest.raises(InvalidData, match="not a JSON object"):
        baselines.find(tmp_path, "main")


def accepted(verdict, entry, today=TODAY):
    (found,) = baselines.apply_accepted([verdict], [entry], today)
    return found


def test_an_accepted_slow_down_does_not_block_until_its_day(make_row, tmp_path):
    saved = baselines.save(tmp_path, "main", rows_of(make_row), [])
    entry = baselines.accept(saved, SLOWER, "safer softmax", date(2030, 1, 1))
    assert baselines.find(tmp_path, "main").accepted == [entry]
    found = accepted(SLOWER, entry)
    assert (found.verdict, found.blocks, found.accepted) == (Verdict.REGRESSED, False, entry)
    assert found.notes == ("accepted until 2030-01-01: safer softmax",)
    late = accepted(SLOWER, entry, date(2030, 1, 2))
    assert late.blocks
    assert late.notes == ("was accepted until 2030-01-01 (safer softmax)",)


def test_accepting_covers_no_further_slow_down_no_failure_and_no_other_case(make_row, tmp_path):
    saved = baselines.save(tmp_path, "main", rows_of(make_row), [])
    entry = baselines.accept(saved, SLOWER, "why", TODAY)
    assert not accepted(replace(SLOWER, low=0.11, high=0.2), entry).blocks
    slower = accepted(replace(SLOWER, low=0.13, high=0.2), entry)
    assert slower.blocks
    assert "only a slow-down of up to 12.0 % is accepted" in slower.notes[0]
    failed = replace(SLOWER, verdict=Verdict.INVALID, low=None, high=None)
    assert accepted(failed, entry).blocks
    assert accepted(replace(SLOWER, case_id="cd" * 8), entry).blocks
    assert accepted(replace(SLOWER, blocks=False), entry).accepted is None


def test_a_failure_can_be_accepted_and_covers_no_slow_down(make_row, tmp_path):
    saved = baselines.save(tmp_path, "main", rows_of(make_row), [])
    failed = replace(SLOWER, verdict=Verdict.MISSING, low=None, high=None)
    entry = baselines.accept(saved, failed, "dropped", TODAY)
    assert not accepted(failed, entry).blocks
    assert "only a failure is accepted" in accepted(SLOWER, entry).notes[0]


def test_accepting_again_replaces_and_saving_again_forgets(make_row, tmp_path):
    saved = baselines.save(tmp_path, "main", rows_of(make_row), [])
    baselines.accept(saved, SLOWER, "first", TODAY)
    baselines.accept(saved, SLOWER, "second", TODAY)
    assert [e["reason"] for e in baselines.find(tmp_path, "main").accepted] == ["second"]
    baselines.save(tmp_path, "main", rows_of(make_row), [])
    assert baselines.find(tmp_path, "main").accepted == []


def test_only_a_saved_baseline_records(make_row, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(SettingsError, match="no saved baseline"):
        baselines.accept(baselines.find(tmp_path, str(run)), SLOWER, "why", TODAY)
