"""The log: what is added is read back, and a resumed run keeps what its checkpoint saw."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from dynnsiha.learning.log import COLUMNS, TrainingLog, read_log


def _fill(log: TrainingLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        log.add(step, [{"layer": "", "main": 3.0 / step}, {"layer": "a", "dead_neurons": step}])
    log.write()


def test_rows_come_back_in_order_with_their_types(tmp_path):
    log = TrainingLog(tmp_path)
    _fill(log, 1, 9)
    _fill(log, 10, 12)
    log.write()  # nothing new, no file
    frame = read_log(tmp_path)
    assert list(frame.columns) == [name for name, _, _ in COLUMNS]
    assert frame.step.tolist() == [step for step in range(1, 13) for _ in range(2)]
    assert frame.main[frame.layer == ""].tolist() == [3.0 / step for step in range(1, 13)]
    assert frame.main[frame.layer == "a"].isna().all()
    assert frame.dead_neurons[frame.layer == "a"].tolist() == list(range(1, 13))
    files = sorted((tmp_path / "log").iterdir())
    assert [f.name for f in files] == ["000000001-000000009.parquet", "000000010-000000012.parquet"]
    for file in files:
        types = {field.name: str(field.type) for field in pq.read_schema(file)}
        assert types == {n: {"float64": "double"}.get(kind, kind) for n, kind, _ in COLUMNS}


def test_what_came_after_the_checkpoint_is_forgotten(tmp_path):
    log = TrainingLog(tmp_path)
    for first in (1, 6, 11):
        _fill(log, first, first + 4)
    log.forget_after(10)
    assert read_log(tmp_path).step.max() == 10
    log.forget_after(9)
    assert read_log(tmp_path).step.max() == 5


def test_a_folder_without_log_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no training log; name the folder given to fit"):
        read_log(tmp_path)
