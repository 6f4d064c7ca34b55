"""Proton's tree of one call; the timer itself is tested where there is a GPU."""

from __future__ import annotations

import pytest

from dynbench.harness.kerneltime import kernel_ms


def node(name: str, time_ns: int | None = None, children: tuple[dict, ...] = ()) -> dict:
    metrics = {} if time_ns is None else {"time (ns)": time_ns, "count": 1, "device_id": "0"}
    return {
        "frame": {"name": name, "type": "function"},
        "metrics": metrics,
        "children": list(children),
    }


def test_kernels_count_wherever_they_are_but_for_the_flush():
    scope = node("a scope of the subject", children=(node("gemm", 250_000),))
    flush = node("dynbench cache flush", children=(node("fill", 9_000_000),))
    root = node("ROOT", 0, (flush, scope, node("softmax", 500_000)))
    assert kernel_ms(root) == pytest.approx(0.75)
    assert kernel_ms(node("ROOT", children=(flush,))) == 0
