"""docs/learning.md: its example runs, and its table of columns is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dynnsiha import learning
from dynnsiha.learning.log import COLUMNS

PAGE = (Path(__file__).parents[3] / "docs" / "learning.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("one_thread")
def test_the_example_runs(capsys):
    example = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(example[1], "learning.md", "exec"), {})
    assert re.search(r"loss [\d.]+, bigrams [\d.]+ nats", capsys.readouterr().out)


def test_every_column_of_the_log_is_named():
    table = PAGE[PAGE.index("| column | meaning |") :]
    assert {name for name, _, _ in COLUMNS} <= set(re.findall(r"`(\w+)`", table))


def test_every_public_name_exists():
    assert all(hasattr(learning, name) for name in learning.__all__)
