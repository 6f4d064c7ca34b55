"""What all tests share: properties are not judged by the clock, the same commit draws the same
examples, workers share the cores and take the longest files first, what they start can be
interrupted, and neither collecting garbage nor Triton's interpreter does the same work over and
over.

``HYPOTHESIS_PROFILE=explore python -m pytest -m hypothesis`` looks for new ones.
"""

import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings

from dynbench.harness.machine import usable_cpus
from dynbench.harness.memory import keep_numpy_off_huge_pages

# A gate that fails by the luck of a draw gates nothing: new examples are looked for on purpose.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# Threads of several workers on the same cores would spin for one another: each worker, and what it
# starts, gets its share. Torch, not imported yet, reads this once.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // workers)))

# Tests measure peaks of memory in their own process, too.
keep_numpy_off_huge_pages()

# A shell's background job ignores interrupts, and what it starts would too: tests send them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A worker that takes a minute's file last works alone for that minute. Where many tests are, much
# time goes by itself; these have few, and long ones.
_LONG_FILES = ("test_scale.py", "test_real_text.py", "test_cli.py", "test_rounds.py")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long tests first, then those with many tests; the order within a file stays."""
    ranks = {name: rank for rank, name in enumerate(_LONG_FILES)}
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: (ranks.get(item.path.name, len(ranks)), -counts[item.path]))


@pytest.fixture(scope="module", autouse=True)
def _frozen_heap() -> None:
    """What was imported, and what the files before left in caches (compiled graphs above all),
    stays: measuring a case collects garbage a dozen times, and would walk it each time."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    """Triton's interpreter does no work whose result it throws away: two thirds of its time.

    By now it is imported, if anything needs it. What it computes stays the same.
    """
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None:
        return
    # whether an int32 overflows is found out in int64, and told to assertions that are off
    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    builder.options = replace(builder.options, sanitize_overflow=False)
    interpreter._get_np_dtype = _once_a_name(interpreter._get_np_dtype)
    _replace_the_language_once_a_launch(interpreter)
    _replace_the_language_once_a_launch(interpreter)


def _once_a_name(numpy_dtype_of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """It makes a table of all dtypes for each that it is asked for."""
    known: dict[str, Any] = {}

    def numpy_dtype(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in known:
            known[name] = numpy_dtype_of(dtype)
        return known[name]

    return numpy_dtype


def _replace_the_language_once_a_launch(interpreter: Any) -> None:
    """And not for each call of a device function: it looks through all of the language again,
    which then is as it must be."""
    language, replace_language = interpreter.tl, interpreter._patch_lang

    def replace_once(function: Any) -> Any:
        modules = [m for m in function.__globals__.values() if m is language or m is language.core]
        # one of what is replaced in every module, and one of what each launch puts back
        telling = [member for m in modules for member in (m.load, m.tensor.to)]
        if telling and not any(map(language.core.is_builtin, telling)):
            return interpreter._LangPatchScope()
        return replace_language(function)

    interpreter._patch_lang = replace_once
