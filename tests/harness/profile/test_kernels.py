from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.harness.profile.kernels import Kernel, dram_bytes, per_call

LAUNCHES = st.lists(
    st.builds(
        Kernel,
        name=st.sampled_from("abc"),
        kind=st.sampled_from(["kernel", "copy"]),
        calls=st.just(1),
        time_ms=st.floats(0, 1e3),
        registers=st.none() | st.integers(1, 255),
        dram_read_bytes=st.none() | st.floats(0, 1e9),
    )
)


@given(LAUNCHES, st.integers(1, 5))
def test_nothing_is_lost_or_counted_twice(launches, calls):
    found = per_call(launches, calls)
    assert len({(kernel.kind, kernel.name) for kernel in found}) == len(found)
    for total in ("calls", "time_ms"):
        whole = sum(getattr(launch, total) for launch in launches)
        assert sum(getattr(kernel, total) for kernel in found) * calls == pytest.approx(whole)
    times = [kernel.time_ms for kernel in found]
    assert times == sorted(times, reverse=True)
    for kernel in found:
        of_kernel = [x for x in launches if (x.kind, x.name) == (kernel.kind, kernel.name)]
        registers = [x.registers for x in of_kernel if x.registers is not None]
        assert kernel.registers == max(registers, default=None)
        if None in [x.dram_read_bytes for x in of_kernel]:
            assert kernel.dram_read_bytes is None


def test_dram_traffic_is_that_of_all_kernels_or_unknown():
    known = [Kernel("a", "kernel", 1, 1.0, dram_read_bytes=100, dram_write_bytes=20)]
    assert dram_bytes([*known, *known]) == 240
    assert dram_bytes([*known, Kernel("b", "kernel", 1, 1.0, dram_read_bytes=5)]) is None
    assert dram_bytes([]) is None
