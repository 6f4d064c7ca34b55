"""What all tests share: properties are not judged by the clock, and workers share the cores."""

import os

from hypothesis import settings

from dynbench.harness.machine import usable_cpus

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

# Threads of several workers on the same cores would spin for one another: each worker, and what it
# starts, gets its share. Torch, not imported yet, reads this once.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // workers)))
