"""Did kernels come to be compiled into something worse? Builds of today against a baseline's.

The decision for one build, in this order:

1. cannot run on its target (it does not compile, or asks for more shared or tensor memory than
   there is), and could in the baseline or is new: ``invalid``, which blocks;
2. more spilled bytes or stack than in the baseline, or the architecture's own matrix instruction
   lost: ``regressed``, which blocks; a new build blocks if it spills at all;
3. not in the baseline: ``incomparable``; no longer built: ``missing``; both warn;
4. less spilled bytes or stack: ``improved``;
5. other numbers (registers, shared memory, warps, stages, instructions): ``changed``, which warns;
6. else ``unchanged``, which warns where it spills as it did in the baseline.

Numbers repeat exactly, so there is no threshold. Builds are matched by target, kernel and use,
which stay while sizes of tiles change.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from dynbench.harness.crosscompile import TARGETS, Build, label_of
from dynbench.harness.gate.errors import NothingToCompare
from dynbench.harness.gate.outcome import Outcome
from dynbench.harness.gate.settings import Settings
from dynbench.harness.gate.verdicts import CaseVerdict, Verdict
from dynbench.harness.ptx import INSTRUCTIONS

SAVE = "dynbench gate --compile --save"

_LIMITED = ("spill_store_bytes", "spill_load_bytes", "stack_bytes")
_WATCHED = (
    *("warps", "stages", "registers", "shared_bytes", "static_shared_bytes"),
    "tensor_memory_columns",
)
_MATRIX = tuple(dict.fromkeys(target.matrix for target in TARGETS.values()))


@dataclass(frozen=True)
class Match:
    """Two builds of a kernel for the same uses; None where one side has none."""

    old: Build | None
    new: Build | None
    uses: tuple[str, ...]

    @property
    def build(self) -> Build:
        """The candidate's build, or the baseline's if that is gone."""
        found = self.new or self.old
        assert found is not None
        return found


def judge_builds(
    baseline: Sequence[Build],
    candidate: Sequence[Build],
    settings: Settings,
    names: tuple[str, str] = ("baseline", "candidate"),
) -> Outcome:
    """Verdicts on all builds, those that block first; ``names`` tell where the two are from.

    Both sides are of one version of Triton (``check_version``). Raises NothingToCompare where no
    build has a counterpart.
    """
    matches = match_builds(baseline, candidate)
    if not any(match.old and match.new for match in matches):
        raise NothingToCompare(
            f"{names[0]} has {len(baseline)} builds, {names[1]} {len(candidate)}, and no kernel is "
            f"in both; write a new baseline with {SAVE}"
        )
    verdicts = sorted(map(_verdict, matches), key=lambda verdict: not verdict.blocks)
    return Outcome(*names, verdicts, settings, _notes(matches, verdicts))


def check_version(baseline: Iterable[Build], versions: set[str], name: str) -> None:
    """Raise NothingToCompare unless the baseline was compiled by one of these Triton versions."""
    theirs = {build.triton_version for build in baseline}
    if theirs and theirs != versions:
        here = ", ".join(sorted(versions)) or "none"
        raise NothingToCompare(
            f"{name} was compiled by Triton {', '.join(sorted(theirs))}, here is {here}: install "
            f"that version (constraints.txt pins it), or write a new baseline with {SAVE}"
        )


def match_builds(baseline: Sequence[Build], candidate: Sequence[Build]) -> list[Match]:
    """Counterparts by target, kernel and use, one match for each two builds that meet.

    A use may have several builds of a kernel: those that are the same in all that decides them meet
    first, then those that have most constants in common. What is left looks for the same build in
    other uses.
    """
    old, new = _by_use(baseline), _by_use(candidate)
    old_same, new_same = _by_identity(baseline), _by_identity(candidate)
    found: dict[tuple[int, int], Match] = {}
    for key in dict.fromkeys((*new, *old)):
        for theirs, ours in _pairs(old.get(key, []), new.get(key, [])):
            if ours is not None:
                theirs = theirs or old_same.get((ours.target, ours.identity))
            elif theirs is not None:
                ours = new_same.get((theirs.target, theirs.identity))
            pair = id(theirs), id(ours)
            uses = found[pair].uses if pair in found else ()
            found[pair] = Match(theirs, ours, (*uses, key[-1]))
    return list(found.values())


def _pairs(
    old: Sequence[Build], new: Sequence[Build]
) -> Iterator[tuple[Build | None, Build | None]]:
    """Counterparts in one use of a kernel, in the candidate's order, then what has none."""
    left = {build.identity: build for build in old}
    same = {build.identity: left.pop(build.identity) for build in new if build.identity in left}
    for ours in new:
        theirs = same.get(ours.identity)
        if theirs is None and left:
            theirs = max(left.values(), key=lambda build: _in_common(build, ours))
            del left[theirs.identity]
        yield theirs, ours
    for theirs in left.values():
        yield theirs, None


def _in_common(one: Build, other: Build) -> int:
    """Constants that have the same value in both."""
    missing = object()
    return sum(other.constants.get(k, missing) == v for k, v in one.constants.items())


def _by_use(builds: Iterable[Build]) -> dict[tuple[str, str, str], list[Build]]:
    """Builds by target, kernel and use."""
    found: dict[tuple[str, str, str], list[Build]] = {}
    for build in builds:
        for use in build.uses or (build.identity,):
            key = (build.target, f"{build.module}.{build.kernel}", use)
            found.setdefault(key, []).append(build)
    return found


def _by_identity(builds: Iterable[Build]) -> dict[tuple[str, str], Build]:
    return {(build.target, build.identity): build for build in builds}


def _verdict(match: Match) -> CaseVerdict:
    build = match.build
    name = f"{build.module}.{build.kernel}"
    label = label_of(build.target, name, match.uses if build.uses else (), build.identity)
    key = (build.target, name, match.uses[0], (match.old or build).identity)
    base = CaseVerdict(
        hashlib.sha256("\n".join(key).encode()).hexdigest()[:16],
        label,
        Verdict.UNCHANGED,
        notes=tuple(_remarks(match)),
        command=shlex.join(["dynbench", "gate", "--compile", "--case", label]),
    )
    return _alone(base, match) or _compared(base, match)


def _remarks(match: Match) -> Iterator[str]:
    if len(match.uses) > 1:
        yield f"in {len(match.uses)} calls"


def _alone(base: CaseVerdict, match: Match) -> CaseVerdict | None:
    """The verdict where no numbers are compared; None where they are."""
    old, new = match.old, match.new
    if new is None:
        return replace(
            base, verdict=Verdict.MISSING, warns=True, reason="in the baseline, no longer built"
        )
    if new.error and old is not None and old.error:
        reason = f"the baseline has no result either: {new.error}"
        return replace(base, verdict=Verdict.INCOMPARABLE, warns=True, reason=reason)
    if new.error:
        before = "new" if old is None else "ok in the baseline, now"
        reason = f"{before}: {new.error}"
        return replace(base, verdict=Verdict.INVALID, blocks=True, reason=reason)
    if old is not None and not old.error:
        return None
    spills = [f"{name} {getattr(new, name)}" for name in _LIMITED if getattr(new, name)]
    before = "not in the baseline" if old is None else f"did not run in the baseline ({old.error})"
    if spills:
        reason = f"{before}, and {', '.join(spills)}"
        return replace(base, verdict=Verdict.REGRESSED, blocks=True, reason=reason)
    if old is None:
        return replace(base, verdict=Verdict.INCOMPARABLE, warns=True, reason=before)
    return replace(base, verdict=Verdict.IMPROVED, reason=before)


def _compared(base: CaseVerdict, match: Match) -> CaseVerdict:
    old, new = match.old, match.new
    assert old is not None
    assert new is not None
    limited = [(name, getattr(old, name), getattr(new, name)) for name in _LIMITED]
    lost = _lost_instruction(old, new)
    worse = [_change(*metric) for metric in limited if metric[2] > metric[1]] + lost
    better = [_change(*metric) for metric in limited if metric[2] < metric[1]]
    other = [_change(*metric) for metric in _watched(old, new) if metric[2] != metric[1]]
    other = [change for change in other if f"lost {change}" not in lost]
    reason = ", ".join((*worse, *better, *other))
    if worse:
        return replace(base, verdict=Verdict.REGRESSED, blocks=True, reason=reason)
    if better:
        return replace(base, verdict=Verdict.IMPROVED, reason=reason)
    if other:
        return replace(base, verdict=Verdict.CHANGED, reason=reason)
    kept = ", ".join(f"{name} {value}" for name, _, value in limited if value)
    return replace(base, reason=f"as in the baseline: {kept}", warns=True) if kept else base


def _change(name: str, before: int, after: int) -> str:
    return f"{name} {before} → {after}"


def _watched(old: Build, new: Build) -> Iterator[tuple[str, int, int]]:
    for name in _WATCHED:
        yield name, getattr(old, name), getattr(new, name)
    for kind in INSTRUCTIONS:
        yield kind, old.instructions.get(kind, 0), new.instructions.get(kind, 0)


def _lost_instruction(old: Build, new: Build) -> list[str]:
    """Products that the architecture's own instruction computed, and that it no longer does: none
    of it is left, or an older architecture's instruction has come."""
    target = TARGETS.get(new.target)
    if target is None or not old.instructions.get(target.matrix, 0):
        return []
    own = (old.instructions[target.matrix], new.instructions.get(target.matrix, 0))
    if not own[1]:
        return [f"lost {_change(target.matrix, *own)}"]
    others = (kind for kind in _MATRIX if kind != target.matrix)
    return [
        f"lost {target.matrix} for {_change(kind, 0, new.instructions[kind])}"
        for kind in others
        if new.instructions.get(kind, 0) and not old.instructions.get(kind, 0)
    ]


def _notes(matches: Sequence[Match], verdicts: Sequence[CaseVerdict]) -> list[str]:
    new = sum(match.old is None for match in matches)
    gone = sum(match.new is None for match in matches)
    spilling = sum(v.verdict == Verdict.UNCHANGED and v.warns for v in verdicts)
    told = {
        f"{new} builds are not in the baseline": new,
        f"{gone} builds of the baseline are no longer made": gone,
        f"{spilling} builds spill or have a stack, as in the baseline": spilling,
        f"to make this the baseline: {SAVE}": any(
            verdict.verdict != Verdict.UNCHANGED for verdict in verdicts
        ),
    }
    return [line for line, holds in told.items() if holds]
