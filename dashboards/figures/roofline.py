"""Rate over arithmetic intensity, under the ceilings measured in the same run."""

from __future__ import annotations

from collections.abc import Sequence

from dynbench.dashboards.figures.common import (
    Figure,
    Trace,
    finished,
    line_trace,
    path_of,
    reference_line,
    series_of,
)
from dynbench.dashboards.model import Line, Panel, Point
from dynbench.dashboards.text import number_text, percent_text


def roofline_figure(panel: Panel, ceilings: tuple[float, float] | None) -> Figure | None:
    """Effective TFLOP/s over FLOP/byte; None where no row has both.

    ``ceilings``: copy bandwidth in GB/s and matrix product rate in TFLOP/s, None if unmeasured.
    """
    lines = [line for line in panel.lines if any(_drawn(point) for point in line.points)]
    if not lines:
        return None
    traces = [
        line_trace(series, path_of(series, _rate, _text, _intensity)) for series in series_of(lines)
    ]
    if ceilings is not None:
        intensities = [
            p.arithmetic_intensity or 1.0 for line in lines for p in line.points if _drawn(p)
        ]
        traces.insert(0, roof_trace(ceilings, intensities))
    return finished(traces, x_title="arithmetic intensity (FLOP/byte)", y_title="effective TFLOP/s")


def roof_trace(ceilings: tuple[float, float], intensities: Sequence[float]) -> Trace:
    """The roof: bandwidth times intensity up to the matrix product rate."""
    copy_gb_s, matmul_tflops = ceilings
    ridge = matmul_tflops * 1000 / copy_gb_s
    low = min(min(intensities) / 2, ridge / 4)
    high = max(max(intensities) * 2, ridge * 4)
    label = (
        f"measured: {number_text(copy_gb_s)} GB/s copy, {number_text(matmul_tflops)} TFLOP/s matmul"
    )
    heights = [low * copy_gb_s / 1000, matmul_tflops, matmul_tflops]
    return reference_line(label, [low, ridge, high], heights, "solid")


def roofline_cell(line: Line, point: Point) -> str:
    """TFLOP/s at FLOP/byte, and the share of the roofline."""
    if not _drawn(point):
        return ""
    share = percent_text(point.roofline_share)
    rate, intensity = number_text(point.effective_tflops), number_text(point.arithmetic_intensity)
    return f"{rate} at {intensity}{f' ({share})' if share else ''}"


def _drawn(point: Point) -> bool:
    return bool(point.arithmetic_intensity and point.effective_tflops)


def _rate(line: Line, point: Point) -> float | None:
    return point.effective_tflops if point.arithmetic_intensity else None


def _intensity(line: Line, point: Point) -> float | None:
    return point.arithmetic_intensity


def _text(line: Line, point: Point) -> str:
    share = percent_text(point.roofline_share)
    of_roof = f", {share} of the roof" if share else ""
    rate, intensity = number_text(point.effective_tflops), number_text(point.arithmetic_intensity)
    return f"{rate} TFLOP/s at {intensity} FLOP/byte{of_roof}"
