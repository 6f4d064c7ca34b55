"""Every number in the tables of docs/findings.md is computed from the committed rows.

A comment before a table says which rows it is of: ``<!-- rows: FOLDER column=value … -->``. Its
first column holds the provider, ``R=… m=…`` where a table compares lists, and in brackets the
variant; its other cells are means over three seeds with half the width of their 95 % t interval. No
configuration that has three is left out.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dynbench.harness.store import read_runs

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "findings.md").read_text()
MEASURES = {
    "loss": ("eval_loss", 1, 3),
    "loss, 0.001 nats": ("eval_loss", 1000, 1),
    "accuracy, %": ("eval_accuracy", 100, 1),
    "open, %": ("activation_rate", 100, 1),
    "dead, %": ("dead_neuron_share", 100, 1),
}


def tables():
    found = re.findall(r"<!-- rows: (.+?) -->\n+((?:\|.*\n)+)", TEXT)
    return [pytest.param(*table, id=table[0]) for table in found]


def cells(line):
    return [cell.strip() for cell in line.strip("|\n ").split("|")]


def shown(values, digits):
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


def rows_of(where):
    folder, *conditions = where.split()
    frame, problems = read_runs([ROOT / "results" / folder])
    assert not problems
    for condition in conditions:
        column, value = condition.split("=")
        frame = frame[frame[column].astype(str) == value]
    return frame.assign(variant=frame["variant"].fillna(""))


def with_lists(frame):
    """``R=… m=…`` behind the providers whose queries share lists."""
    shared = frame["query_tile"] > 1
    lists = frame[shared].agg(lambda row: f" R={row.query_tile:.0f} m={row.private_blocks:.0f}", 1)
    return frame.assign(provider=frame["provider"].add(lists, fill_value=""))


def test_there_are_tables():
    assert tables()


@pytest.mark.parametrize(("where", "table"), tables())
def test_a_table_is_what_its_rows_say(where, table):
    frame = rows_of(where)
    if " R=" in table:
        frame = with_lists(frame)
    header, _, *lines = (cells(line) for line in table.splitlines())
    told = set()
    for name, *numbers in lines:
        provider, variant = re.fullmatch(r"`(\w+(?: R=\d+ m=\d+)?)`(?: \(`(.+)`\))?", name).groups()
        told.add((provider, variant or ""))
        own = frame[(frame["provider"] == provider) & (frame["variant"] == (variant or ""))]
        assert (own["status"] == "ok").all()
        assert sorted(own["seed"]) == [0, 1, 2], name
        expected = []
        for heading in header[1:]:
            column, factor, digits = MEASURES[heading]
            expected.append(shown(own[column].to_numpy() * factor, digits))
        assert numbers == expected, name
    seeds = frame.groupby(["provider", "variant"])["seed"].nunique()
    assert told == set(seeds[seeds == 3].index)
