"""Why a profile cannot be made."""

from __future__ import annotations


class NoSuchCase(Exception):
    """No case is meant, or several are. One line that names those there are."""


class ProfileError(Exception):
    """The call cannot be profiled. One line: the status that its row would have, and the reason."""
