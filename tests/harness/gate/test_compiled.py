"""What is made of two sets of builds: counterparts, verdicts, exit codes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dynbench.harness.crosscompile import Build
from dynbench.harness.gate.compiled import check_version, judge_builds, match_builds
from dynbench.harness.gate.errors import NothingToCompare
from dynbench.harness.gate.settings import Settings
from dynbench.harness.gate.verdicts import Verdict
from dynbench.harness.ptx import INSTRUCTIONS

NONE = dict.fromkeys(INSTRUCTIONS, 0)


def build(identity: str = "0" * 16, target: str = "sm_90a", **fields) -> Build:
    known = {
        "constants": {"BQ": 64},
        "signature": {},
        "warps": 4,
        "stages": 2,
        "uses": ("paper",),
        "registers": 128,
        "instructions": {**NONE, "wgmma": 8, "exponential": 4},
    }
    return Build(
        identity=identity,
        module="package.tiles",
        kernel="forward",
        target=target,
        triton_version="3.7.1",
        **(known | fields),
    )


def counts(**found: int) -> dict[str, int]:
    return {**NONE, "exponential": 4, **found}


def judged(old: Build, new: Build, *, strict: bool = False):
    outcome = judge_builds([old], [new], Settings(strict=strict))
    (verdict,) = outcome.verdicts
    return verdict, outcome.exit_code


SPILLS = {"spill_store_bytes": 8, "spill_load_bytes": 12, "stack_bytes": 16}
FMA = counts()


@pytest.mark.parametrize(
    ("before", "after", "verdict", "exit_code", "reason"),
    [
        ({}, {}, "unchanged", 0, ""),
        ({}, SPILLS, "regressed", 1, "spill_store_bytes 0 → 8, spill_load_bytes 0 → 12"),
        (SPILLS, SPILLS | {"spill_load_bytes": 16}, "regressed", 1, "spill_load_bytes 12 → 16"),
        ({}, {"stack_bytes": 8}, "regressed", 1, "stack_bytes 0 → 8"),
        ({}, {"instructions": counts(mma_sync=32)}, "regressed", 1, "lost wgmma 8 → 0"),
        ({}, {"instructions": FMA}, "regressed", 1, "lost wgmma 8 → 0"),
        (
            {},
            {"instructions": counts(wgmma=4, mma_sync=16)},
            "regressed",
            1,
            "lost wgmma for mma_sync 0 → 16",
        ),
        ({}, {"instructions": counts(wgmma=4)}, "changed", 0, "wgmma 8 → 4"),
        ({"instructions": counts(mma_sync=8)}, {"instructions": FMA}, "changed", 0, "mma_sync"),
        ({}, {"registers": 129}, "changed", 0, "registers 128 → 129"),
        ({}, {"shared_bytes": 1}, "changed", 0, "shared_bytes 0 → 1"),
        ({}, {"warps": 8}, "changed", 0, "warps 4 → 8"),
        ({}, {"identity": "1" * 16, "constants": {"BQ": 32}}, "unchanged", 0, ""),
        (SPILLS, {}, "improved", 0, "spill_store_bytes 8 → 0"),
        (SPILLS, {"registers": 255}, "improved", 0, "registers 128 → 255"),
        (SPILLS, {"stack_bytes": 24}, "regressed", 1, "stack_bytes 16 → 24"),
        ({}, {"error": "too much"}, "invalid", 1, "ok in the baseline, now: too much"),
        ({"error": "too much"}, {}, "improved", 0, "did not run in the baseline (too much)"),
        ({"error": "too much"}, SPILLS, "regressed", 1, "and spill_store_bytes 8"),
        ({"error": "a"}, {"error": "b"}, "incomparable", 3, "no result either: b"),
    ],
)
def test_verdicts_on_one_build(before, after, verdict, exit_code, reason):
    found, code = judged(build(**before), build(**after))
    assert (found.verdict, code) == (verdict, exit_code)
    assert found.blocks == (exit_code == 1)
    assert reason in found.reason
    assert "compile/sm_90a tiles.forward, paper" in found.label


def test_a_lost_instruction_is_told_once():
    found, _ = judged(build(), build(instructions=counts(mma_sync=32)))
    assert found.reason.count("wgmma") == 1


@pytest.mark.parametrize("target", ["sm_80", "sm_100a"])
def test_each_architecture_has_an_instruction_to_lose(target):
    own = {"sm_80": "mma_sync", "sm_100a": "tcgen05"}[target]
    old = build(target=target, instructions=counts(**{own: 8}))
    found, code = judged(old, replace(old, instructions=counts(wgmma=8)))
    assert (f"lost {own} 8 → 0" in found.reason, code) == (True, 1)


def test_strict_blocks_what_warns():
    for before, after in (
        ({}, {"registers": 1}),
        (SPILLS, SPILLS),
        (SPILLS, SPILLS | {"registers": 1}),
    ):
        assert judged(build(**before), build(**after))[1] == 0
        assert judged(build(**before), build(**after), strict=True)[1] == 1
    assert judged(build(), build(), strict=True)[1] == 0
    assert judged(build(**SPILLS), build(), strict=True)[1] == 0


def test_new_and_gone_builds_are_named_and_new_ones_may_not_spill():
    kept, gone = build(), build("1" * 16, uses=("gone",))
    new = build("2" * 16, uses=("new",))
    outcome = judge_builds([kept, gone], [kept, new], Settings())
    found = {verdict.label.rpartition(", ")[2]: verdict for verdict in outcome.verdicts}
    assert {use: v.verdict for use, v in found.items()} == {
        "paper": Verdict.UNCHANGED,
        "new": Verdict.INCOMPARABLE,
        "gone": Verdict.MISSING,
    }
    assert outcome.exit_code == 0
    assert outcome.headline == "no regression: 1 unchanged, 1 missing, 1 incomparable"
    assert "1 builds are not in the baseline" in outcome.notes
    assert "1 builds of the baseline are no longer made" in outcome.notes
    assert judge_builds([kept, gone], [kept], Settings(strict=True)).exit_code == 1
    assert judge_builds([kept], [kept, new], Settings(strict=True)).exit_code == 1
    for bad in (replace(new, **SPILLS), replace(new, error="too much")):
        outcome = judge_builds([kept], [kept, bad], Settings())
        assert (outcome.exit_code, outcome.verdicts[0].blocks) == (1, True)


def test_no_common_kernel_is_never_a_pass():
    with pytest.raises(NothingToCompare, match="no kernel is in both"):
        judge_builds([build()], [build(target="sm_80")], Settings())
    with pytest.raises(NothingToCompare, match="no kernel is in both"):
        judge_builds([], [build()], Settings())


def test_another_triton_is_incomparable():
    with pytest.raises(NothingToCompare, match=r"Triton 3\.6\.0, here is 3\.7\.1: .*constraints"):
        check_version([replace(build(), triton_version="3.6.0")], {"3.7.1"}, "a file")
    check_version([build()], {"3.7.1"}, "a file")


def pairs(old, new):
    """Identities that meet, and in how many uses."""
    return {
        (m.old and m.old.identity, m.new and m.new.identity): len(m.uses)
        for m in match_builds(old, new)
    }


def test_a_build_of_several_uses_is_one_match():
    old = build("a", uses=("one", "two"))
    assert pairs([old], [build("b", uses=("two", "one"))]) == {("a", "b"): 2}
    found, _ = judged(old, replace(old, uses=("one", "two", "three")))
    assert (found.notes, found.verdict) == (("in 3 calls",), "unchanged")


def test_one_of_two_uses_that_gets_other_tiles_is_compared():
    old = build("a", uses=("one", "two"))
    new = [build("b", uses=("one",)), build("a", uses=("two",))]
    assert pairs([old], new) == {("a", "b"): 1, ("a", "a"): 1}


def test_variants_in_one_use_meet_the_most_similar():
    """A variant that comes first, and one with other tiles, do not shift the rest."""
    old = [
        build("a", constants={"DIAGONAL": False, "BQ": 64}),
        build("b", constants={"DIAGONAL": True, "BQ": 64}),
    ]
    added = build("x", constants={"DIAGONAL": None, "BQ": 16})
    assert pairs(old, [added, *old]) == {(None, "x"): 1, ("a", "a"): 1, ("b", "b"): 1}
    tiled = build("y", constants={"DIAGONAL": True, "BQ": 32})
    assert pairs(old, [tiled]) == {("b", "y"): 1, ("a", None): 1}


def test_a_renamed_use_keeps_its_counterpart():
    old, new = build("a", uses=("before",)), build("a", uses=("after",))
    assert pairs([old], [new]) == {("a", "a"): 2}
    assert pairs([old], [build("b", uses=("after",))]) == {(None, "b"): 1, ("a", None): 1}


def test_the_same_builds_are_unchanged_one_by_one():
    builds = [build(str(n), t, uses=(f"{n}",)) for n in range(3) for t in ("sm_80", "sm_90a")]
    outcome = judge_builds(builds, builds[::-1], Settings(strict=True))
    assert outcome.counts == {"unchanged": 6}
    assert (outcome.exit_code, outcome.notes) == (0, [])
    assert len({verdict.case_id for verdict in outcome.verdicts}) == 6
