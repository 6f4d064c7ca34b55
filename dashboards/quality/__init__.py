"""Quality in the report: what a training reached beside what it attends to, and what that costs."""
