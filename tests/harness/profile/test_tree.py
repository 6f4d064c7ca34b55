"""Proton's tree, in the form that it writes; recording one needs a GPU."""

from __future__ import annotations

from dynbench.harness.profile.tree import tree_kernels


def node(name: str, time_ns: int = 0, count: int = 1, children: tuple[dict, ...] = ()) -> dict:
    metrics = {"time (ns)": time_ns, "count": count, "device_id": "0"} if time_ns else {}
    frame = {"name": name, "type": "function"}
    return {"frame": frame, "metrics": metrics, "children": list(children)}


def test_launches_of_a_kernel_count_from_wherever_they_are_made():
    one = node("a.py:10@forward", children=(node("gemm", 250_000, 2), node("softmax", 500_000)))
    other = node("b.py:7@helper", children=(node("gemm", 750_000),))
    first, second = tree_kernels(node("ROOT", children=(node("main", children=(one, other)),)))
    assert (first.name, first.calls, first.time_ms) == ("gemm", 3, 1.0)
    assert (second.name, second.calls, second.time_ms) == ("softmax", 1, 0.5)
    assert tree_kernels(node("ROOT")) == []
