"""Every point, interval, curve and sentence of quality, recomputed from parquet by pandas alone."""

import base64
import gzip
import html as html_
import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest

from dynbench.dashboards.command import ReportOptions, write
from dynbench.harness.rowfiles import write_parquet
from dynbench.harness.store import read_runs

T_975 = {1: 12.7062, 2: 4.302653, 3: 3.182446}  # of the t distribution, by degrees of freedom
CONFIG = [
    *("task", "provider", "lists", "branches", "query_tile", "private_blocks", "top_n"),
    *("window", "variant", "parameters"),
]
TIMED = ["provider", "lists", "query_tile", "private_blocks", "top_n", "window", "block_size"]


class Quality:
    """A report, page and site, of a run of trainings and a run of latencies beside their files."""

    def __init__(self, quality_run: Path, rows: list[dict], timed: list[dict], out: Path) -> None:
        write_parquet(rows, quality_run / "rows.parquet")
        (out / "timed").mkdir()
        write_parquet(timed, out / "timed" / "rows.parquet")
        paths = [quality_run, out / "timed"]
        frame, problems = read_runs(paths)
        assert problems == [], "curves are no rows"
        (page,) = write(frame, paths, ReportOptions(out / "page.html"))
        (index,) = write(frame, paths, ReportOptions(out / "site", site=True))
        self.rows = pd.read_parquet(quality_run / "rows.parquet")
        self.ok = self.rows[self.rows["status"] == "ok"]
        self.timed = pd.read_parquet(out / "timed" / "rows.parquet")
        self.curves = pd.concat(
            pd.read_parquet(file) for file in sorted((quality_run / "curves").glob("*.parquet"))
        )
        self.html = page.read_text(encoding="utf-8")
        self.figures = self._packed(r'id="(q\d+)\.figures">([^<]*)<', self.html)
        self.cases = self._cases(self._packed(r'id="(q\d+)\.cases">([^<]*)<', self.html))
        files = "\n".join(f.read_text() for f in (index.parent / "data").rglob("q*.js"))
        self.site_figures = self._packed(r'dynbenchPart\("(q\d+)\.figures","([^"]*)"', files)
        bodies = re.findall(r'dynbenchPart\("q\d+\.body","([^"]*)"', files)
        self.site_html = "\n".join(_unpacked(text) for text in bodies)

    @staticmethod
    def _packed(pattern: str, text: str) -> dict[str, dict]:
        return {key: json.loads(_unpacked(held)) for key, held in re.findall(pattern, text)}

    @staticmethod
    def _cases(parts: dict[str, dict]) -> dict[int, str]:
        found = {}
        for cases in parts.values():
            ids = cases["columns"]["case_id"]
            found |= dict(zip(cases["rows"], ids, strict=True))
        return found

    def view(self, view: str, *, site: bool = False) -> list[dict]:
        """The figures of a view, of all groups, each with its part as ``key``."""
        html, figures = (self.site_html, self.site_figures) if site else (self.html, self.figures)
        marks = re.findall(rf'id="(q\d+)-{view}-\d+"[^>]*data-figure="(\d+)"', html)
        return [{**figures[key]["figures"][int(number)], "key": key} for key, number in marks]

    def seeds(self, place: int) -> pd.DataFrame:
        """All rows that a point stands for: every seed of its configuration."""
        row = self.ok[self.ok["case_id"] == self.cases[place]].iloc[0]
        same = pd.Series(True, index=self.ok.index)
        for name in CONFIG:
            same &= self.ok[name].isna() if pd.isna(row[name]) else self.ok[name] == row[name]
        return self.ok[same]


def _unpacked(text: str) -> str:
    return gzip.decompress(base64.b64decode(text)).decode()


def interval(values: pd.Series) -> float:
    """Half of the 95 % t interval."""
    return T_975[len(values) - 1] * values.std() / math.sqrt(len(values))


def points(figure: dict):
    """Place, x, y, bar up and bar down of every point."""
    for trace in figure["data"]:
        if trace.get("mode") == "markers" and "customdata" in trace:
            bars = trace["error_y"]
            held = (trace["customdata"], trace["x"], trace["y"], bars["array"], bars["arrayminus"])
            yield from zip(*held, strict=True)


@pytest.fixture(scope="module")
def quality(quality_run, quality_frame, row, tmp_path_factory) -> Quality:
    rows = quality_frame.astype(object).where(quality_frame.notna(), None)
    settings = {"block_size": 16, "compress_block": 16, "compress_stride": 16, "window": 128}
    timed = [row("gpu", "sdpa", 65536, run_id="timed")]
    for top_n in (4, 8, 16):
        for tile, private in ((1, 0), (4, 2), (16, 2)):
            more = {"top_n": top_n, "query_tile": tile, "private_blocks": private, **settings}
            more["case_id"] = f"{top_n}-{tile}"
            for run in ("timed", "again"):
                ms = 1.0 + 0.1 * top_n / tile + (0.01 if run == "again" else 0)
                timed.append(row("gpu", "dynnsiha", 65536, latency_ms=ms, run_id=run, **more))
    records = [_whole(held) for held in rows.to_dict("records")]
    return Quality(quality_run, records, timed, tmp_path_factory.mktemp("report"))


def _whole(row: dict) -> dict:
    """Whole numbers as such again: a frame with missing ones has floats."""
    from dynbench.harness.schema import COLUMNS

    kinds = {name: column.kind for name, column in COLUMNS.items()}
    return {k: int(v) if kinds[k] == "int" and v is not None else v for k, v in row.items()}


def test_every_point_over_the_attended_share(quality: Quality) -> None:
    seen: dict[str, set[str]] = {"eval_loss": set(), "eval_accuracy": set()}
    for figure in quality.view("share"):
        loss = "loss" in figure["layout"]["yaxis"]["title"]["text"]
        column, scale = ("eval_loss", 1) if loss else ("eval_accuracy", 100)
        for place, x, y, up, down in points(figure):
            rows = quality.seeds(place)
            seen[column] |= set(rows["case_id"])
            assert x == pytest.approx(100 * rows["attended_share"].mean(), rel=1e-5)
            assert y == pytest.approx(scale * rows[column].mean(), rel=1e-5)
            if len(rows) == 1:
                assert up is None
                assert down is None
                continue
            half = interval(rows[column])
            most = 1 if column == "eval_accuracy" else math.inf
            least_arm = min(half, rows[column].mean())  # neither measure goes below 0
            assert down == pytest.approx(scale * least_arm, abs=1e-3)
            expected = min(half, most - rows[column].mean())
            assert up == pytest.approx(scale * expected, abs=1e-3)
    for column, ids in seen.items():
        assert ids == set(quality.ok[quality.ok[column].notna()]["case_id"])


def test_single_seeds_are_open_points(quality: Quality) -> None:
    for figure in quality.view("share"):
        for trace in figure["data"]:
            if trace.get("mode") == "markers" and "customdata" in trace:
                for place, symbol in zip(
                    trace["customdata"], trace["marker"]["symbol"], strict=True
                ):
                    assert symbol.endswith("-open") == (len(quality.seeds(place)) == 1)


def test_joined_settings_differ_in_their_blocks_alone(quality: Quality) -> None:
    lines = 0
    for figure in quality.view("share"):
        named = quality.figures[figure["key"]]["lines"]
        for trace in figure["data"]:
            if trace.get("mode") == "lines" and len(trace["meta"]["lines"]) > 1:
                labels = [named[str(number)][0] for number in trace["meta"]["lines"]]
                assert len({re.sub(r" · top \d+", "", label) for label in labels}) == 1
                assert list(trace["x"]) == sorted(trace["x"])
                lines += 1
    assert lines == 4 * 4, "four kinds of lists with three top_n each, two measures, two tasks"


def test_quality_against_latency(quality: Quality) -> None:
    figures = quality.view("pareto")
    assert len(figures) == 2
    for figure in figures:
        loss = "loss" in figure["layout"]["yaxis"]["title"]["text"]
        column, sign = ("eval_loss", 1) if loss else ("eval_accuracy", -1)
        drawn = {}
        for place, x, y, *_ in points(figure):
            rows = quality.seeds(place)
            first = rows.iloc[0]
            same = pd.Series(True, index=quality.timed.index)
            for name in TIMED if first["lists"] != "dense" else TIMED[:2]:
                same &= quality.timed[name] == first[name]
            assert x == pytest.approx(quality.timed[same]["latency_ms"].median(), rel=1e-5)
            assert y == pytest.approx(rows[column].mean() * (1 if loss else 100), rel=1e-5)
            drawn[x, y] = (x, sign * rows[column].mean())
        assert len(drawn) == 1 + 9
        best = {
            at
            for at, (ms, bad) in drawn.items()
            if not any(a <= ms and b <= bad and (a, b) != (ms, bad) for a, b in drawn.values())
        }
        rings = {
            (trace["x"][0], trace["y"][0])
            for trace in figure["data"]
            if trace.get("marker", {}).get("size") == 20
        }
        assert rings == best


@pytest.mark.parametrize("site", [False, True])
def test_training_curves(quality: Quality, site: bool) -> None:
    curves = 0
    for figure in quality.view("training", site=site):
        title = figure["layout"]["yaxis"]["title"]["text"]
        column = {"loss of": "train_loss", "held-out loss": "eval_loss"}
        name = next((c for t, c in column.items() if title.startswith(t)), "eval_accuracy")
        curves += check_curves(quality, figure, "", {"y": name}, site=site)
    assert curves == (2 * 3 * 16 if site else 2 * 3 * 12)


@pytest.mark.parametrize("site", [False, True])
def test_activation_and_gates_of_each_layer(quality: Quality, site: bool) -> None:
    for view, columns in (
        ("activation", {"y": "activation_rate"}),
        ("gates", {"y": "gate_compressed", "y2": "gate_selected", "y3": "gate_sliding"}),
    ):
        html = quality.site_html if site else quality.html
        named = re.findall(rf'id="q\d+-{view}-\d+-name"><span class="pass">Layer ([^<]*)<', html)
        figures = quality.view(view, site=site)
        assert len(named) == len(figures) == 2 * (3 if view == "activation" else 2)
        for figure, layer in zip(figures, named, strict=True):
            assert check_curves(quality, figure, layer, columns, site=site)


def check_curves(
    quality: Quality, figure: dict, layer: str, columns: dict[str, str], *, site: bool
) -> int:
    """Compare every line of the figure with the mean over seeds; how many there were."""
    held = quality.curves[quality.curves["layer"] == layer]
    count = 0
    for trace in figure["data"]:
        if "customdata" not in trace:
            continue
        column = columns[trace["yaxis"]]
        rows = quality.seeds(trace["customdata"][0])
        own = held[held["case_id"].isin(rows["case_id"]) & held[column].notna()]
        by_step = own.groupby("step")[column]
        scale = 100 if column in ("eval_accuracy", "activation_rate") else 1
        assert scale * by_step.mean()[trace["x"]].to_numpy() == pytest.approx(trace["y"], rel=1e-5)
        steps = sorted(set(own["step"]))
        if site or len(steps) <= 60:
            assert trace["x"] == steps
        else:
            assert len(trace["x"]) == 60
            assert trace["x"][0] == steps[0]
            assert trace["x"][-1] == steps[-1]
        bands = [
            band
            for band in figure["data"]
            if band.get("fill") and (band["meta"], band["yaxis"]) == (trace["meta"], trace["yaxis"])
        ]
        assert len(bands) <= (1 if len(rows) > 1 else 0)
        for band in bands:
            upper = band["y"][: len(trace["x"])]
            half = T_975[len(rows) - 1] * by_step.std() / math.sqrt(len(rows))
            most = 1 if column != "train_loss" and column != "eval_loss" else math.inf
            expected = scale * (by_step.mean() + half).clip(upper=most)
            assert expected[trace["x"]].to_numpy() == pytest.approx(upper, rel=1e-4)
        count += 1
    return count


def test_the_verdicts(quality: Quality) -> None:
    bodies = re.findall(
        r'<section class="part" id="q\d+".*?</section>\n<script', quality.html, re.S
    )
    assert len(bodies) == 2
    for body, task in zip(bodies, ("text", "recall"), strict=True):
        rows = quality.ok[(quality.ok["task"] == task)]
        column = "eval_loss" if task == "text" else "eval_accuracy"
        dense = rows[rows["provider"] == "sdpa"].set_index("seed")[column]
        cards = re.findall(
            r'<article class="card (\w+)" data-line="(\d+)">(.*?)</article>', body, re.S
        )
        assert len(cards) == 3
        key = re.search(r'id="(q\d+)"', body)
        assert key is not None
        for outcome, line, card in cards:
            own = rows_of_line(quality, key[1], int(line))
            text = html_.unescape(re.sub(r"<[^>]+>", " ", card))
            worse = own[column].mean() - dense.mean()
            worse = worse / dense.mean() if task == "text" else -worse
            told = re.search(r"([+−][\d.]+) (?:%|points)", text)
            assert told is not None
            moved = worse if task == "text" else -worse
            assert float(told[1].replace("−", "-")) == pytest.approx(
                100 * moved, abs=6e-3, rel=5e-3
            )
            low, high = difference(own.set_index("seed")[column], dense)
            ends = (low / dense.mean(), high / dense.mean()) if task == "text" else (-high, -low)
            close = 0.02 if task == "text" else 0.01
            expected = "pays" if ends[1] <= close else "loses" if ends[0] > close else "ties"
            assert outcome == expected
            left_out = re.search(r"leaves out ([\d.]+) % of the pairs", text)
            assert left_out is not None
            assert float(left_out[1]) == pytest.approx(100 * own["sparsity"].mean(), rel=5e-3)
            assert f"Basis: {len(own)} seeds against {len(dense)} of sdpa" in text


def rows_of_line(quality: Quality, key: str, line: int) -> pd.DataFrame:
    for figure in quality.view("share"):
        for trace in figure["data"]:
            if figure["key"] == key and "customdata" in trace and trace["meta"]["lines"] == [line]:
                return quality.seeds(trace["customdata"][0])
    raise AssertionError(line)


def difference(own: pd.Series, other: pd.Series) -> tuple[float, float]:
    """The interval of the difference: seed by seed where both have the same, else Welch's."""
    if set(own.index) != set(other.index):
        return welch(own, other)
    apart = own - other
    return apart.mean() - interval(apart), apart.mean() + interval(apart)


def welch(own: pd.Series, other: pd.Series) -> tuple[float, float]:
    """Welch's interval, its quantile by bisection over the density of the t distribution."""
    a, b = own.var() / len(own), other.var() / len(other)
    value = own.mean() - other.mean()
    if a + b == 0:
        return value, value
    freedom = (a + b) ** 2 / (a**2 / (len(own) - 1) + b**2 / (len(other) - 1))
    half = _quantile(freedom) * math.sqrt(a + b)
    return value - half, value + half


def _quantile(freedom: float) -> float:
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)

    def below(t: float, parts: int = 4000) -> float:
        step = t / parts
        heights = [
            (1 + (i * step) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(parts + 1)
        ]
        return 0.5 + scale * step * (sum(heights) - (heights[0] + heights[-1]) / 2)

    low, high = 0.0, 50.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < 0.975 else (low, middle)
    return low


def test_the_table_of_all_configurations(quality: Quality) -> None:
    for key, held in quality.figures.items():
        found = re.search(rf'id="{key}-overview-table-caption".*?</table>', quality.html, re.S)
        assert found is not None
        bodies = re.findall(
            r'<tbody data-line="(\d+)">\s*<tr><th scope="rowgroup">([^<]*)\s*(.*?)'
            r"(?=<tbody|</table>)",
            found[0],
            re.S,
        )
        assert len(bodies) == 16
        for line, label, cells in bodies:
            assert held["lines"][line][0] == html_.unescape(label).strip()
            rows = rows_of_line(quality, key, int(line))
            first = [html_.unescape(c).strip() for c in re.findall(r"<td[^>]*>([^<]*)", cells)]
            assert first[0] == str(len(rows))
            loss = rows["eval_loss"].mean()
            column = 1 if "text" in rows["task"].iloc[0] else 2
            assert float(first[column].split(" ")[0]) == pytest.approx(loss, rel=5e-3)
            assert ("one seed" in first[1]) == (len(rows) == 1)
