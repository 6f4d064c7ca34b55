"""Every figure and every sentence of the report on the committed runs, recomputed by pandas alone.

Nothing here but ``write_report`` is the report's own: rows come from the parquet files, groups and
numbers from pandas, and what is compared with them from the page as it is written.
"""

import base64
import gzip
import html as html_
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dynbench.dashboards.report import write_report
from dynbench.harness.store import read_runs

ROOT = Path(__file__).parents[2]
FOLDERS = ("cpu", "h100", "h200")
BASELINES = {"cpu": "sdpa", "h100": "flash", "h200": "flash"}
PLACE = [
    "machine_id",
    "suite",
    "dtype",
    "timer",
    "q_heads",
    "kv_heads",
    "head_dim",
    "git_commit",
    "pass",
]
LINE = [
    *("provider", "lists", "branches", "query_tile", "private_blocks", "target_sparsity"),
    *("key_top_n", "window", "block_size", "compress_block", "compress_stride", "backend"),
]


class Report:
    """The page about one folder of committed runs, beside its rows."""

    def __init__(self, folder: str, path: Path) -> None:
        files = sorted((ROOT / "results" / folder).rglob("rows.parquet"))
        rows = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
        for later in ("branches", "stages_ms"):  # columns younger than some of the files
            rows[later] = rows.get(later)
        rows["key_top_n"] = rows["top_n"].where(rows["target_sparsity"].isna())
        rows["id"] = rows["run_id"] + "/" + rows["case_id"]
        self.baseline = BASELINES[folder]
        self.rows, self.ok = rows, rows[rows["status"] == "ok"].copy()
        frame, problems = read_runs([ROOT / "results" / folder])
        assert not problems
        self.html = write_report(frame, path).read_text(encoding="utf-8")
        self.figures = self._packed("figures")
        self.cases = {}
        for cases in self._packed("cases").values():
            for at, place in enumerate(cases["rows"]):
                self.cases[place] = (
                    f"{self._of(cases, 'run_id', at)}/{self._of(cases, 'case_id', at)}"
                )
        self._speedups()

    def _packed(self, name: str) -> dict[str, dict]:
        found = re.findall(rf'id="(f\d+)\.{name}">([^<]*)<', self.html)
        return {key: json.loads(gzip.decompress(base64.b64decode(text))) for key, text in found}

    @staticmethod
    def _of(cases: dict, name: str, at: int):
        if name in cases["shared"]:
            return cases["shared"][name]
        column = cases["columns"][name]
        return column["words"][column["codes"][at]] if isinstance(column, dict) else column[at]

    def _speedups(self) -> None:
        """Over the baseline in a row's own run, else over the median of all runs."""
        base = self.ok[self.ok["provider"] == self.baseline]
        keys = [*PLACE, "seq_len"]
        kinds = {"latency_ms": "median", "latency_q1_ms": "min", "latency_q3_ms": "max"}
        more = {"sample_count": "sum", "case_id": "size"}
        names = ["base_ms", "base_q1", "base_q3", "base_samples", "base_rows"]
        for by in ([*keys, "run_id"], keys):
            table = base.groupby(by, dropna=False).agg(kinds | more).set_axis(names, axis=1)
            joined = self.ok[by].merge(table.reset_index(), on=by, how="left")
            for name in names:
                values = pd.Series(joined[name].to_numpy(), index=self.ok.index)
                self.ok[name] = self.ok[name].fillna(values) if name in self.ok else values
        self.ok["speedup"] = self.ok["base_ms"] / self.ok["latency_ms"]
        self.ok["low"] = self.ok["base_q1"] / self.ok["latency_q3_ms"]
        self.ok["high"] = self.ok["base_q3"] / self.ok["latency_q1_ms"]

    def group(self, place: int) -> pd.DataFrame:
        """All ok rows that one point stands for: repetitions of the row at ``place``."""
        row = self.ok[self.ok["id"] == self.cases[place]].iloc[0]
        keys = [*PLACE, *LINE, "seq_len"]
        same = pd.Series(True, index=self.ok.index)
        for key in keys:
            same &= self.ok[key].isna() if pd.isna(row[key]) else self.ok[key] == row[key]
        return self.ok[same]

    def view(self, view: str) -> list[dict]:
        """The figures of a view, of all comparisons and passes."""
        marks = re.findall(rf'id="(f\d+)-{view}-\d+"[^>]*data-figure="(\d+)"', self.html)
        return [self.figures[key]["figures"][int(number)] for key, number in marks]


@pytest.fixture(scope="module", params=FOLDERS)
def report(request, tmp_path_factory) -> Report:
    return Report(request.param, tmp_path_factory.mktemp("page") / "report.html")


def drawn_points(figure: dict):
    """Place, x and y of every point that stands for a measured case."""
    for trace in figure["data"]:
        if trace["type"] == "scatter" and "customdata" in trace and trace.get("yaxis", "y") == "y":
            for place, x, y in zip(trace["customdata"], trace["x"], trace["y"], strict=True):
                if place is not None:
                    yield place, x, y


EXPECTED = {
    "latency": lambda rows: rows["latency_ms"].median(),
    "speedup": lambda rows: rows["speedup"].median(),
    "effective": lambda rows: (rows["flops"] / rows["latency_ms"] / 1e9).median(),
    "dense-equivalent": lambda rows: (rows["dense_flops"] / rows["latency_ms"] / 1e9).median(),
    "roofline": lambda rows: (rows["flops"] / rows["latency_ms"] / 1e9).median(),
    "memory": lambda rows: rows["peak_memory_bytes"].max(),
    "error": lambda rows: rows["rms_error"].max(),
    "distance": lambda rows: rows["dense_error"].max(),
}
ALL = {  # rows that a view must show, whatever else it shows
    "speedup": lambda r: r.ok[r.ok["speedup"].notna() & (r.ok["provider"] != r.baseline)],
    "dense-equivalent": lambda r: r.ok[r.ok["suite"] == "attention"],
    "distance": lambda r: r.ok[r.ok["dense_error"] > 0],
    "error": lambda r: r.ok[r.ok["rms_error"] > 0],
}


@pytest.mark.parametrize("view", EXPECTED)
def test_every_point(report: Report, view: str) -> None:
    seen: set[str] = set()
    for figure in report.view(view):
        for place, x, y in drawn_points(figure):
            rows = report.group(place)
            seen |= set(rows["id"])
            assert y == pytest.approx(EXPECTED[view](rows), rel=2e-5)
            if view == "roofline":
                assert x == pytest.approx((rows["flops"] / rows["bytes"]).median(), rel=2e-5)
            else:
                assert x == rows["seq_len"].iloc[0]
    wanted = ALL.get(view, lambda r: r.ok)(report)
    assert seen == set(wanted["id"]), "a row is missing, or one too many"


def test_the_first_figure(report: Report) -> None:
    points = 0
    for figure in report.view("answer"):
        for trace in figure["data"]:
            bars = trace["error_y"]
            for at, place in enumerate(trace["customdata"]):
                rows = report.group(place)
                assert trace["y"][at] == pytest.approx(rows["speedup"].median(), rel=2e-5)
                top, bottom = bars["array"][at], bars["arrayminus"][at]
                assert trace["y"][at] + top == pytest.approx(rows["high"].max(), rel=1e-4)
                assert trace["y"][at] - bottom == pytest.approx(rows["low"].min(), rel=1e-4)
                points += 1
    assert points


def test_quartile_bands(report: Report) -> None:
    bands = [t for f in report.view("latency") for t in f["data"] if t.get("fill") == "toself"]
    known = set(report.ok["latency_q1_ms"]) | set(report.ok["latency_q3_ms"])
    found = {y for band in bands for y in band["y"] if y is not None}
    assert found or not bands
    assert found <= known


def test_the_heat_map(report: Report) -> None:
    cells = 0
    for figure in report.view("heatmap"):
        heat = figure["data"][0]
        for z_row, places in zip(heat["z"], heat["customdata"], strict=True):
            for z, place in zip(z_row, places, strict=True):
                if z is not None:
                    speedup = report.group(place)["speedup"].median()
                    assert z == pytest.approx(math.log2(speedup), abs=1e-3)
                    cells += 1
    sparse = report.ok[report.ok["lists"] != "dense"]
    keys = [*PLACE, *LINE, "seq_len"]
    assert cells == sparse[sparse["speedup"].notna()].groupby(keys, dropna=False).ngroups


def test_stages(report: Report) -> None:
    names = 0
    for figure in report.view("stages"):
        for bar in figure["data"]:
            for place, share in zip(bar["customdata"], bar["x"], strict=True):
                rows = report.group(place)
                stages = [json.loads(text) for text in rows["stages_ms"].dropna()]
                median_ms = rows["latency_ms"].median()
                if bar["name"] == "other":
                    total = sum(np.median([s[name] for s in stages]) for name in stages[0])
                    assert share == pytest.approx(max(0.0, 1 - total / median_ms), abs=1e-3)
                else:
                    held = np.median([s[bar["name"]] for s in stages if bar["name"] in s])
                    assert share == pytest.approx(held / median_ms, rel=1e-3)
                    names += 1
    assert (names > 0) == report.ok["stages_ms"].notna().any()


def test_samples(report: Report) -> None:
    seen = 0
    for figure in report.view("samples"):
        for trace in figure["data"]:
            place = trace["customdata"][0]
            row = report.ok[report.ok["id"] == report.cases[place]].iloc[0]
            assert trace["x"] == pytest.approx(list(row["samples_at_s"]), abs=1e-3, rel=1e-5)
            values = {
                "y": np.asarray(row["samples_ms"]) / np.median(row["samples_ms"]),
                "y2": row["samples_sm_clock_mhz"],
                "y3": row["samples_power_w"],
            }[trace["yaxis"]]
            assert trace["y"] == pytest.approx(list(values), rel=1e-4)
            seen += 1
    assert seen


def test_the_roofs_ceilings(report: Report) -> None:
    for figure in report.view("roofline"):
        (roof,) = [t for t in figure["data"] if t["name"].startswith("measured")]
        (low, ridge, _), (start, top, _) = roof["x"], roof["y"]
        first = next(place for place, _, _ in drawn_points(figure))
        row = report.group(first).iloc[0]
        same = (report.rows[PLACE[:-1]] == row[PLACE[:-1]]).all(axis=1)
        ceilings = report.rows[same]
        assert top == pytest.approx(ceilings["ceiling_matmul_tflops"].median())
        assert start / low == pytest.approx(ceilings["ceiling_copy_gb_s"].median() / 1000)
        assert ridge == pytest.approx(top / (start / low))


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.?\d*(?:e-?\d+)?", text)]


def tokens(text: str) -> int:
    return int(text.removesuffix("k")) * 1024 if text.endswith("k") else int(text)


def cards(report: Report) -> list[tuple[pd.DataFrame, dict[str, str]]]:
    """Each verdict's words, with the rows of the line that it is about."""
    found = []
    for key, held in report.figures.items():
        body = re.search(
            rf'<section class="part" id="{key}".*?</section>\n<script', report.html, re.S
        )
        assert body is not None
        for line, card in re.findall(
            r'<article [^>]*data-line="(\d+)">(.*?)</article>', body[0], re.S
        ):
            places = [
                place
                for figure in held["figures"]
                for trace in figure["data"]
                if (trace.get("meta") or {}).get("lines") == [int(line)] and "error_y" in trace
                for place in trace["customdata"]
            ]
            rows = pd.concat([report.group(place) for place in places])
            text = html_.unescape(re.sub(r"<[^>]+>", "\n", card))
            lines = [part for part in text.split("\n") if part.strip()]
            found.append((rows, {"all": " ".join(lines), "verdict": lines[1], "times": lines[2]}))
    return found


def test_every_verdict(report: Report) -> None:
    told = cards(report)
    assert told
    for rows, words in told:
        by_length = rows.groupby("seq_len")
        speedup = by_length["speedup"].median()
        faster = (by_length["low"].min() > 1) & (speedup > 1)
        slower = (by_length["high"].max() < 1) & (speedup < 1)
        wins = [s for s in speedup.index if faster[faster.index >= s].all()]
        last = speedup.index[-1]
        if not faster[last] and not slower[last]:
            assert words["verdict"].startswith("No clear difference")
        elif not wins:
            assert words["verdict"].startswith("Does not pay")
        else:
            assert tokens(words["verdict"].split(" ")[-1]) == min(wins)
            assert ("at every length" in words["verdict"]) == bool(faster.all())
        assert numbers(words["times"])[0] == pytest.approx(speedup[last], rel=5e-3)
        base_ms, own_ms = (
            rows[rows["seq_len"] == last][n].median() for n in ("base_ms", "latency_ms")
        )
        times = re.search(r"tokens: ([\d.]+) (\S+) against ([\d.]+) (\S+?)(?: |$)", words["all"])
        assert times is not None
        unit = {"ms": 1.0, "s": 1000.0, "µs": 0.001}
        assert float(times[1]) * unit[times[2]] == pytest.approx(own_ms, rel=5e-3)
        assert float(times[3]) * unit[times[4]] == pytest.approx(base_ms, rel=5e-3)
        assert_losses(words["all"], "It does not pay at ", speedup[slower])
        assert_losses(words["all"], "(quartiles overlap) at ", speedup[~slower & ~faster])
        share = re.search(r"leaves out ([\d.]+) % of the causal pairs", words["all"])
        sparsity = rows[rows["seq_len"] == last]["sparsity"].median()
        assert (share is None) == bool(np.isnan(sparsity))
        if share is not None:
            assert float(share[1]) == pytest.approx(100 * sparsity, rel=5e-3)
        error = re.search(r"RMS at most (\S+) ", words["all"])
        assert error is not None
        assert float(error[1]) == pytest.approx(rows["rms_error"].max(), rel=5e-3)
        cases, samples = evidence(rows)
        assert f"Basis: {len(speedup)} length" in words["all"]
        basis = re.search(r"(\d+) cases? and (\d+) samples", words["all"])
        assert basis is not None
        assert (int(basis[1]), int(basis[2])) == (cases, samples)


def evidence(rows: pd.DataFrame) -> tuple[int, int]:
    """Rows and samples of a comparison, the baseline's counted once for each length and run."""
    used = rows.drop_duplicates(["seq_len", "run_id"])
    cases = len(rows) + used["base_rows"].sum()
    return int(cases), int(rows["sample_count"].sum() + used["base_samples"].sum())


def assert_losses(words: str, lead: str, expected: pd.Series) -> None:
    told = words.partition(lead)[2].partition(". ")[0]
    pairs = {tokens(a): float(b) for a, b in re.findall(r"(\d+k?) \(([\d.]+)×\)", told)}
    assert pairs == {s: pytest.approx(value, rel=5e-3) for s, value in expected.items()}


def test_every_kind_of_lists_has_its_best_line(report: Report) -> None:
    """The line told of is the one that is fastest at the longest length compared, among those that
    leave no branch out if there are any."""
    own = report.ok[(report.ok["provider"] == "dynnsiha") & report.ok["speedup"].notna()]
    whole = own["branches"].isna().groupby([own[name] for name in PLACE], dropna=False)
    own = own[own["branches"].isna() | ~whole.transform("any")]
    expected = []
    for _, rows in own.groupby([*PLACE, "lists"], dropna=False):
        longest = rows[rows["seq_len"] == rows["seq_len"].max()]
        expected.append(longest.groupby(LINE, dropna=False)["speedup"].median().max())
    told = [numbers(words["times"])[0] for _, words in cards(report)]
    assert sorted(told) == pytest.approx(sorted(expected), rel=5e-3)


def test_the_headline_and_the_counts(report: Report) -> None:
    heads = re.findall(r"<h1>(.*?)</h1>", report.html)
    assert len(heads) == len(report.figures)
    ok = re.findall(r'class="chip good"><b>(\d+)</b> ok', report.html)
    assert sum(map(int, ok)) == len(report.ok)
    told = {numbers(words["times"])[0] for _, words in cards(report)}
    for head in heads:
        speed = re.search(r"([\d.]+)×", head)
        assert speed is None or float(speed[1]) in told


def test_failures_have_their_reason(report: Report) -> None:
    failed = report.rows[report.rows["status"] != "ok"]
    for reason in failed["reason"]:
        assert html_.escape(reason) in report.html
