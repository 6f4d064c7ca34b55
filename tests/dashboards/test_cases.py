"""Rows as the page's table of cases holds them."""

from collections.abc import Callable

import pandas as pd

from dynbench.dashboards import frame as frames
from dynbench.dashboards.cases import cases_json
from dynbench.dashboards.model import facets_of

Build = Callable[..., dict]


def test_of_too_many_rows_each_keeps_what_tells_it_apart(row: Build) -> None:
    rows = [
        row("gpu", "sdpa", length, **{"pass": pass_})
        for length in (8192, 16384)
        for pass_ in ("forward", "backward")
    ]
    (facet,) = facets_of(frames.prepare(pd.DataFrame(rows)), None)
    held = cases_json(facet, whole=())
    assert held["brief"] == [0, 1, 2, 3]
    passes = held["columns"]["pass"]
    assert [passes["words"][code] for code in passes["codes"]] == [r["pass"] for r in rows]
    assert held["columns"]["seq_len"] == [8192, 8192, 16384, 16384]
    assert "tokens_per_s" not in held["columns"]
