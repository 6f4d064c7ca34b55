"""What keeps a gate from judging, each with the exit code that it ends with."""

from __future__ import annotations


class GateError(Exception):
    """One line: what is wrong, where, and how to go on. ``exit_code`` is the process's."""

    exit_code = 70


class SettingsError(GateError):
    """A setting or an option that makes no sense."""

    exit_code = 2


class NothingToCompare(GateError):
    """No baseline, no such revision, or no case that both sides have under equal conditions."""

    exit_code = 3


class InvalidData(GateError):
    """Rows that cannot be read."""

    exit_code = 4


class Unwritten(GateError):
    """A file that an outcome, which is printed by then, could not be written to."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code or SettingsError.exit_code
