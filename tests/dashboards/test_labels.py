from collections.abc import Callable

import pandas as pd

from dynbench.dashboards.labels import commit_text, facet_titles, settings_text
from dynbench.dashboards.model import build_facets

Build = Callable[..., dict]


def labels_of(*rows: dict) -> list[str]:
    (facet,) = build_facets(pd.DataFrame(list(rows)), "sdpa")
    return [line.label for panel in facet.panels for line in panel.lines]


def test_lists_are_always_named(row: Build) -> None:
    assert labels_of(
        row("gpu", "sdpa", 8192),
        row("gpu", "nsa", 8192),
        row("gpu", "dynnsiha", 8192),
        row("gpu", "dynnsiha", 8192, query_tile=16, private_blocks=2),
        row("gpu", "dynnsiha", 8192, query_tile=16, private_blocks=0),
    ) == ["sdpa", "nsa", "dynnsiha · exact", "dynnsiha · R=16 m=2", "dynnsiha · R=16 shared"]


def test_settings_are_named_where_they_differ(row: Build) -> None:
    assert labels_of(row("gpu", "dynnsiha", 8192), row("gpu", "dynnsiha", 8192, top_n=32)) == [
        "dynnsiha · exact · top 16",
        "dynnsiha · exact · top 32",
    ]


def test_labels_are_unique_however_long_the_names(row: Build) -> None:
    names = ["x" * 200 + end for end in "abc"]
    labels = labels_of(*(row("gpu", name, 8192) for name in names))
    assert len(set(labels)) == 3


def test_facet_titles_name_what_tells_them_apart(row: Build) -> None:
    firsts = [
        build_facets(pd.DataFrame([row("gpu", "sdpa", 8192, **more)]), "sdpa")[0].rows.iloc[0]
        for more in ({}, {"git_commit": "0" * 40}, {"suite": "layer"})
    ]
    titles = facet_titles([first.to_dict() for first in firsts])
    assert len(set(titles)) == 3
    assert "commit 0000000000" in titles[1]
    assert "commit" not in titles[2]
    assert "64/4 heads of 128, batch 1" in titles[2]


def test_a_commit_says_whether_there_were_changes() -> None:
    texts = [commit_text("4f2a9c81d03be7756a1f", dirty) for dirty in ("False", "True", "")]
    assert texts == [
        "commit 4f2a9c81d0",
        "commit 4f2a9c81d0 + changes",
        "commit 4f2a9c81d0 (changes unknown)",
    ]


def test_branches_are_named_where_one_is_left_out(row: Build) -> None:
    few = {"branches": "compressed,selected", "window": 0}
    rows = (row("gpu", "nsa", 8192), row("gpu", "nsa", 8192, **few), row("gpu", "fla", 8192, **few))
    assert labels_of(*rows) == [
        "nsa",
        "nsa · compressed + selected",
        "fla · exact · compressed + selected",
    ]
    (facet,) = build_facets(pd.DataFrame([rows[1]]), "sdpa")
    words = "top 16 blocks of 64, branches compressed + selected alone"
    assert settings_text(facet.panels[0].lines[0].settings) == words


def test_settings_in_words(row: Build) -> None:
    (facet,) = build_facets(
        pd.DataFrame([row("gpu", "dynnsiha", 8192), row("gpu", "sdpa", 8192)]), "sdpa"
    )
    dense, sparse = facet.panels[0].lines
    assert settings_text(sparse.settings) == "top 16 blocks of 64, window 512"
    assert settings_text(dense.settings) == ""
