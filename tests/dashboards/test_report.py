"""The page as a file: what is in it, what is not, how large it is and how long it takes."""

import base64
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from dynbench.dashboards.report import write_report
from dynbench.harness.schema import COLUMNS
from dynbench.harness.store import read_runs

Build = Callable[..., dict]
ROOT = Path(__file__).parents[2]
HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    "\"'><img src=x onerror='window.hacked = 1'>",
    "{{ 7 * 7 }}{% raw %}",
    "%{y} <b>bold</b> &lt;i&gt;",
    "\u202eltr\u202c \u2066x\u2069 \x00\x1b[31m \ud800",
    "x" * 10_000,
    "--><!-- ]]> $\\alpha$",
]


class Page(HTMLParser):
    """Collects what a browser would find."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def written(frame: pd.DataFrame, folder: Path, **options) -> str:
    path = write_report(frame, folder / "report.html", **options)
    return path.read_text(encoding="utf-8")


def opens_with(html: str) -> tuple[str, dict[str, int]]:
    """The heading of the comparison that shows at first, and the rows of each by its heading."""
    (chosen,) = re.findall(r'data-chosen="([^"]*)"', html)
    titles = dict(re.findall(r'<p class="eyebrow" id="(f\d+)-title">([^<]*)</p>', html))
    counts = {title: len(packed_rows(html, key)) for key, title in titles.items()}
    return titles[chosen], counts


def packed_rows(html: str, key: str) -> list[int]:
    (packed,) = re.findall(rf'id="{key}\.cases">([^<]*)<', html)
    return json.loads(gzip.decompress(base64.b64decode(packed)))["rows"]


def packed_in(html: str, name: str) -> list[dict]:
    packed = re.findall(rf'id="[a-z0-9]+\.{name}">([^<]*)<', html)
    return [json.loads(gzip.decompress(base64.b64decode(text))) for text in packed]


def figures_in(html: str) -> list[list[dict]]:
    return [held["figures"] for held in packed_in(html, "figures")]


def rows_in(html: str) -> list[dict]:
    """Every row of a page as its drawer has it."""
    found = []
    for cases in packed_in(html, "cases"):
        for at in range(len(cases["rows"])):
            row = dict(cases["shared"])
            for name, column in cases["columns"].items():
                words = isinstance(column, dict)
                row[name] = column["words"][column["codes"][at]] if words else column[at]
            found.append(row)
    return found


def hostile_rows(row: Build, text: str) -> pd.DataFrame:
    strings = {c.name: text for c in COLUMNS.values() if c.kind == "string"}
    kept = {"status": "error", "pass": "forward", "device": "cuda", "lists": "exact"}
    bad = {k: v for k, v in strings.items() if k not in (*kept, "provider")}
    rows = [
        row("gpu", "sdpa", 8192, **bad),
        row("gpu", text, 8192, **bad),
        row("gpu", text, 16384, **{**bad, "status": "error"}),
        {**row("gpu", "dynnsiha", 8192, **bad), "pass": text, "lists": text, "status": text},
    ]
    return pd.DataFrame(rows, dtype=object)  # half a surrogate pair fits no other type


def test_the_page_asks_nobody_for_anything(mixed_frame: pd.DataFrame, tmp_path: Path) -> None:
    page = Page(written(mixed_frame, tmp_path))
    loaded = [attrs.get(name) for _, attrs in page.tags for name in ("src", "srcset", "action")]
    assert not [value for value in loaded if value]
    assert [attrs["href"] for attrs in page.attributes("link")] == ["data:,"]
    assert all((attrs["href"] or "").startswith("#") for attrs in page.attributes("a"))
    policy = page.attributes("meta")[1]["content"] or ""
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("style-src")[0]


def test_plotly_is_there_once(mixed_frame: pd.DataFrame, tmp_path: Path) -> None:
    html = written(mixed_frame, tmp_path)
    assert html.count('id="bundle"') == 1
    assert html.count("plotly.js v") == 1, "its licence"
    bundle = re.search(r'id="bundle">([^<]*)<', html)
    assert bundle is not None
    assert b"plotly.js v" in gzip.decompress(base64.b64decode(bundle.group(1)))[:200]


def test_every_figure_has_a_name_and_a_table(gpu_frame: pd.DataFrame, tmp_path: Path) -> None:
    html = written(gpu_frame, tmp_path)
    page = Page(html)
    plots = [attrs for attrs in page.attributes("div") if attrs.get("class") == "plot"]
    assert len(plots) == 23 == len(figures_in(html)[0])
    ids = {attrs.get("id") for _, attrs in page.tags}
    for plot in plots:
        assert plot["role"] == "group", "an image may hold nothing that takes the focus"
        assert (plot["aria-label"] or "").startswith("Chart: ")
        assert f"{plot['id']}-table-caption" in ids or plot["id"] == "f0-answer-0"
    given = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(given) == len(set(given))
    labelled = [attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs]
    assert set(labelled) <= ids
    controlled = [attrs["aria-controls"] for _, attrs in page.tags if "aria-controls" in attrs]
    assert set(controlled) <= ids
    anchors = [attrs["href"] for attrs in page.attributes("a")]
    assert {(anchor or "")[1:] for anchor in anchors} <= ids


def test_every_command_and_reason_is_in_the_page(gpu_frame: pd.DataFrame, tmp_path: Path) -> None:
    html = written(gpu_frame, tmp_path)
    words = " ".join(Page(html).words)
    assert sorted(row["command"] for row in rows_in(html)) == sorted(gpu_frame["command"])
    failed = gpu_frame[gpu_frame["status"] != "ok"]
    for text in (*failed["reason"], *failed["command"]):
        assert text in words
    assert "boom" in words, "the traceback"


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_strings_of_data_stay_text(row: Build, tmp_path: Path, text: str) -> None:
    harmless = Page(written(hostile_rows(row, "harmless"), tmp_path))
    html = written(hostile_rows(row, text), tmp_path, problems=[text], baseline=text)
    page = Page(html)
    names = {tag for tag, _ in harmless.tags}
    assert {tag for tag, _ in page.tags} <= names | {"noscript"}
    assert len(page.attributes("script")) == 3 * len(figures_in(html)) + 3
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert not set(html) & set("\u202e\u2066\x00\x1b")
    told = [value for found in rows_in(html) for value in found.values() if isinstance(value, str)]
    assert told
    assert not set("".join(told)) & set("\u202e\u2066\x00\x1b\ud800")
    assert max(map(len, told)) < 5000
    for figure in (figure for figures in figures_in(html) for figure in figures):
        for trace in figure["data"]:
            assert "<" not in trace.get("name", "")


@pytest.mark.parametrize("keep", ["none", "one", "failed", "bare"])
def test_small_frames_make_a_sensible_page(
    gpu_frame: pd.DataFrame, tmp_path: Path, keep: str
) -> None:
    frame = {
        "none": gpu_frame.head(0),
        "one": gpu_frame.head(1),
        "failed": gpu_frame[gpu_frame["status"] != "ok"],
        "bare": pd.DataFrame(),
    }[keep]
    words = " ".join(Page(written(frame, tmp_path, problems=["lost.parquet: truncated"])).words)
    assert "lost.parquet: truncated" in words
    expected = {
        "none": "There is nothing to report",
        "one": "1 case measured, none of dynnsiha",
        "failed": "No case could be measured",
        "bare": "There is nothing to report",
    }
    assert expected[keep] in words


def test_the_file_is_replaced_in_one_step(cpu_frame: pd.DataFrame, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report.html"
    assert write_report(cpu_frame, target) == target
    assert write_report(cpu_frame, target, baseline="nsa") == target
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]
    with pytest.raises(OSError, match=r".+"):
        write_report(cpu_frame, tmp_path / "deep")
    assert not list(tmp_path.glob(".*"))


def test_the_page_says_when_a_line_is_faster(gpu_frame: pd.DataFrame, tmp_path: Path) -> None:
    words = " ".join(" ".join(Page(written(gpu_frame, tmp_path)).words).split())
    assert "only where its quartiles and those of sdpa do not overlap" in words
    assert "compared with sdpa in its own run" in words
    assert "on a CPU it is resident memory" in words
    assert "reached in these runs" in words


def test_a_layers_page_leaves_the_dense_equivalent_rate_out(
    gpu_frame: pd.DataFrame, tmp_path: Path
) -> None:
    page = Page(written(gpu_frame.assign(suite="layer"), tmp_path))
    ids = {attrs.get("id") for attrs in page.attributes("section")}
    assert "f0-effective" in ids
    assert "f0-dense-equivalent" not in ids


def test_several_machines_get_a_selector(mixed_frame: pd.DataFrame, tmp_path: Path) -> None:
    page = Page(written(mixed_frame, tmp_path))
    assert len(page.attributes("option")) == 3
    assert len([a for a in page.attributes("section") if a.get("class") == "part"]) == 3
    heads = [attrs for attrs in page.attributes("th") if attrs.get("scope") == "col"]
    assert heads[-1].get("class") == "t", "the last column of the last table is prose"


def test_neither_torch_nor_the_suites_are_imported() -> None:
    code = (
        "import sys, pandas as pd; from pathlib import Path\n"
        "from dynbench.dashboards.report import write_report\n"
        "import dynbench.dashboards.page\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'dynnsiha')"
        " or m.startswith('dynbench.suites')]\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("folder", ["h200", "h100"])
def test_it_opens_with_the_comparison_of_most_rows(folder: str, tmp_path: Path) -> None:
    frame, _ = read_runs([ROOT / "results" / folder])
    title, counts = opens_with(written(frame, tmp_path))
    assert len(counts) > 2
    assert counts[title] == max(counts.values())


def test_the_first_of_equals_shows_at_first(row: Build, tmp_path: Path) -> None:
    def rows(kv_heads: int, lengths: list[int], *providers: str) -> list[dict]:
        held = [(provider, length) for provider in providers for length in lengths]
        return [row("gpu", *case, kv_heads=kv_heads) for case in held]

    pair = ("sdpa", "dynnsiha")
    equal = [*rows(4, [8192, 16384], *pair), *rows(8, [8192, 16384], *pair)]
    title, counts = opens_with(written(pd.DataFrame(equal), tmp_path))
    assert list(counts.values()) == [4, 4]
    assert title == next(iter(counts))
    more = [*equal, *rows(8, [32768], *pair)]
    title, counts = opens_with(written(pd.DataFrame(more), tmp_path))
    assert counts[title] == 6
    silent = [*more, *rows(16, [8192, 16384, 32768, 65536], "sdpa", "nsa")]
    title, counts = opens_with(written(pd.DataFrame(silent), tmp_path))
    assert counts[title] == 6, "one with more rows has no answer"
