"""What a report or a live view cannot do. One line: what is wrong, and what to do instead."""


class ReportError(Exception):
    """A report cannot be written as asked, or a live view cannot start."""
