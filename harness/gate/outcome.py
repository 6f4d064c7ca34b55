"""What a gate found: verdicts on all cases, and the exit code that follows."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dynbench.harness.gate.settings import Settings
from dynbench.harness.gate.verdicts import COMPARED, CaseVerdict, Verdict

EXIT_FINE, EXIT_REGRESSION, EXIT_NOTHING, EXIT_INVALID = 0, 1, 3, 4


@dataclass(frozen=True)
class Outcome:
    """Verdicts, and what was compared with what.

    ``notes`` are lines for people: rounds taken, noise.
    """

    baseline: str
    candidate: str
    verdicts: Sequence[CaseVerdict]
    settings: Settings
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def counts(self) -> dict[str, int]:
        """Cases by verdict, verdicts without a case left out."""
        found = Counter(verdict.verdict for verdict in self.verdicts)
        return {verdict.value: found[verdict] for verdict in Verdict if found[verdict]}

    @property
    def compared(self) -> int:
        """Cases whose numbers were compared."""
        return sum(verdict.verdict in COMPARED for verdict in self.verdicts)

    @property
    def blocking(self) -> list[CaseVerdict]:
        """The regressions."""
        return [verdict for verdict in self.verdicts if verdict.blocks]

    @property
    def exit_code(self) -> int:
        """0 fine, 1 a regression, 3 nothing comparable, 4 data that cannot be trusted.

        A case missing from the candidate is a regression only if the candidate has others: two sets
        of rows without a common case were never meant to be compared.
        """
        common = [v for v in self.verdicts if v.verdict in COMPARED or v.verdict == Verdict.INVALID]
        if not common:
            return EXIT_NOTHING
        if self.blocking:
            return EXIT_REGRESSION
        if any(v.verdict == Verdict.INVALID and v.accepted is None for v in self.verdicts):
            return EXIT_INVALID
        if not self.compared and not any(v.accepted for v in self.verdicts):
            return EXIT_NOTHING
        doubtful = any(verdict.doubtful for verdict in self.verdicts)
        return EXIT_REGRESSION if self.settings.strict and doubtful else EXIT_FINE

    @property
    def headline(self) -> str:
        """The outcome in one line."""
        counts = ", ".join(f"{count} {verdict}" for verdict, count in self.counts.items())
        accepted = sum(verdict.accepted is not None for verdict in self.verdicts)
        tail = f", {accepted} of them accepted" if accepted else ""
        return f"{_HEADLINES[self.exit_code]}: {counts or 'no case at all'}{tail}"

    def to_json(self) -> str:
        """Everything, as a JSON object."""
        return json.dumps(
            {
                "baseline": self.baseline,
                "candidate": self.candidate,
                "exit_code": self.exit_code,
                "headline": self.headline,
                "counts": self.counts,
                "notes": list(self.notes),
                "settings": dataclasses.asdict(self.settings),
                "cases": [dataclasses.asdict(verdict) for verdict in self.verdicts],
            },
            indent=2,
        )

    def records(self, *, brief: bool = False) -> list[dict[str, Any]]:
        """The verdicts as plain dictionaries, for tables; ``brief`` leaves out unchanged ones."""
        return [
            dataclasses.asdict(verdict)
            for verdict in self.verdicts
            if not brief or verdict.doubtful or verdict.verdict != Verdict.UNCHANGED
        ]


_HEADLINES = {
    EXIT_FINE: "no regression",
    EXIT_REGRESSION: "regression",
    EXIT_NOTHING: "nothing comparable",
    EXIT_INVALID: "invalid data",
}
