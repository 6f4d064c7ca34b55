"""Plotly figures of a panel, one concern a file, and the list of views that the page shows."""
