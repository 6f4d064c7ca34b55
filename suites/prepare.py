"""The harness's way in: from a case to the subject it measures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dynbench.harness.case import Case
from dynbench.harness.subject import Subject, Unsupported
from dynbench.suites.catalog import provider_info
from dynbench.suites.sparsity import unreachable


def prepare(case: Case, provider_files: Iterable[str | Path] = ()) -> Subject:
    """Build the subject of a case: its inputs are made here, on the device; nothing is run yet.

    Raises Unavailable (a package or device is missing), Unsupported (the provider does not serve
    the case, or its target sparsity cannot be reached) and ProviderFileError (a broken file).
    """
    info = provider_info(case.provider)
    if info is not None and case.suite not in info.suites:
        served = " or ".join(info.suites)
        raise Unsupported(f"{info.name} has no part in suite {case.suite}: use --suite {served}")
    target = case.settings.get("target_sparsity")
    if target is not None:
        seq_len, window = int(case.workload["seq_len"]), int(case.settings["window"])
        reason = unreachable(seq_len, window, float(target), int(case.settings["block_size"]))
        if reason:
            raise Unsupported(reason)
    if case.suite == "attention":
        from dynbench.suites.attention import attention_subject

        return attention_subject(case, provider_files)
    if case.suite == "generation":
        from dynbench.suites.generation import generation_subject

        return generation_subject(case)
    if case.suite == "training":
        from dynbench.suites.training import training_subject

        return training_subject(case)
    if case.suite == "quality":
        from dynbench.suites.quality.subject import quality_subject

        return quality_subject(case)
    from dynbench.suites.layer import layer_subject

    return layer_subject(case, provider_files)
