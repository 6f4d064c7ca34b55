"""How busy other processes kept the CPUs while this one measured.

The load average cannot tell: it counts this process, too, and remembers a minute. So what all
processes used is taken from the kernel's counters, less what this process and the children that it
waited for used.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

_SHORTEST_S = 0.2  # of all CPUs together: the counters move in steps of 10 ms for each
_STAT = Path("/proc/stat")


class CpuLoad:
    """Counts from the moment it is made."""

    def __init__(self) -> None:
        self._busy_s, self._total_s = _host_seconds() or (0.0, 0.0)
        self._own_s = _own_seconds()

    def others_share(self) -> float | None:
        """Share of the host's CPU time since then that other processes used, 0 to 1.

        None where the system does not tell, or where the time was too short.
        """
        now = _host_seconds()
        own_s = _own_seconds() - self._own_s
        if now is None or now[1] - self._total_s < _SHORTEST_S:
            return None
        total_s = now[1] - self._total_s
        return min(max((now[0] - self._busy_s - own_s) / total_s, 0.0), 1.0)


def _host_seconds() -> tuple[float, float] | None:
    """CPU seconds that were used on the host since it started, and all that there were."""
    try:
        first = _STAT.read_text(encoding="ascii").partition("\n")[0].split()
    except (OSError, UnicodeDecodeError):
        return None
    if len(first) < 9 or first[0] != "cpu":
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal; see proc_stat(5)
    ticks = [int(text) for text in first[1:9]]
    total = sum(ticks)
    idle = ticks[3] + ticks[4]
    per_second = os.sysconf("SC_CLK_TCK")
    return (total - idle) / per_second, total / per_second


def _own_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
