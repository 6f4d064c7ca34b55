"""What all tests share: properties are not judged by the clock, the same commit draws the same
examples, workers share the cores, and what they start can be interrupted.

``HYPOTHESIS_PROFILE=explore python -m pytest -m hypothesis`` looks for new ones.
"""

import os
import signal

from hypothesis import settings

from dynbench.harness.machine import usable_cpus

# A gate that fails by the luck of a draw gates nothing: new examples are looked for on purpose.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# Threads of several workers on the same cores would spin for one another: each worker, and what it
# starts, gets its share. Torch, not imported yet, reads this once.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // workers)))

# A shell's background job ignores interrupts, and what it starts would too: tests send them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
