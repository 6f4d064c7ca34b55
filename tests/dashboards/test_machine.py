from collections.abc import Callable

import pandas as pd

from dynbench.dashboards.machine import machine_card
from dynbench.dashboards.model import build_facets

Build = Callable[..., dict]


def facts_of(*rows: dict) -> dict[str, str]:
    (facet,) = build_facets(pd.DataFrame(list(rows)), "sdpa")
    return {fact.name: fact.value for group in machine_card(facet) for fact in group.facts}


def test_the_card_names_hardware_software_code_and_ceilings(row: Build) -> None:
    facts = facts_of(row("gpu", "sdpa", 8192))
    assert facts["GPU"] == "NVIDIA H100 80GB HBM3"
    assert facts["Copy bandwidth"] == "2870 GB/s"
    assert facts["Matrix product"] == "702 TFLOP/s"
    assert facts["Code"] == "commit 4f2a9c81d0"
    assert facts["Other packages"] == "numpy 2.3.1, scipy 1.17.0"
    assert facts["Slowed down"] == "0 of 30 samples (0 %)"
    assert facts["torch"] == "2.13.0"


def test_a_cpu_has_no_gpu_facts(row: Build) -> None:
    facts = facts_of(row("cpu", "sdpa", 8192))
    assert "GPU" not in facts
    assert "NVIDIA driver" not in facts


def test_what_varies_is_shown_as_a_span(row: Build) -> None:
    facts = facts_of(
        row("gpu", "sdpa", 8192, sm_clock_mhz=1700.0, throttled_samples=3,
            throttle_reasons=["sw_power_cap"]),
        row("gpu", "sdpa", 16384, sm_clock_mhz=1900.0),
    )  # fmt: skip
    assert facts["SM or CPU clock"] == "1800 (1700 to 1900) MHz"
    assert facts["Slowed down"].startswith("3 of 60 samples")
    assert facts["Reasons"] == "sw_power_cap"


def test_packages_that_are_no_json_are_shown_as_they_are(row: Build) -> None:
    assert facts_of(row("gpu", "sdpa", 8192, packages="not json"))["Other packages"] == "not json"


def test_the_card_says_which_rows_were_disturbed(row: Build) -> None:
    calm = row("gpu", "sdpa", 8192, other_gpu_processes=0)
    assert "Disturbed" not in facts_of(calm)
    facts = facts_of(calm, row("gpu", "sdpa", 16384, other_gpu_processes=1))
    assert facts["Disturbed"] == "1 of 2 rows (1 other process used the GPU)"
    busy = row("cpu", "sdpa", 8192, other_cpu_share=0.5)
    assert facts_of(busy)["Disturbed"].endswith("(other processes kept 50 % of the CPUs busy)")


def test_a_row_that_was_not_watched_counts_as_neither(row: Build) -> None:
    facts = facts_of(
        row("gpu", "sdpa", 8192, throttled_samples=30),
        *(row("gpu", "sdpa", length, throttled_samples=None) for length in (16384, 32768)),
    )
    assert facts["Slowed down"] == "30 of 30 samples (100 %)"
