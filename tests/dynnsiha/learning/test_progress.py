"""The progress bar: there where it is wanted, silent elsewhere."""

from __future__ import annotations

from dynnsiha.learning.progress import progress_bar


def test_it_says_step_and_loss(capfd):
    with progress_bar(20, 5, shown=True) as show:
        show(12, 1.2345)
        show(20, 0.5)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "20/20" in captured.err
    assert "loss 0.500" in captured.err


def test_it_is_silent_where_there_is_no_terminal(capfd):
    for shown in (None, False):
        with progress_bar(20, shown=shown) as show:
            show(1, 1.0)
    assert capfd.readouterr() == ("", "")


def test_it_is_there_on_a_terminal(capfd, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress_bar(20) as show:
        show(3, 2.0)
    assert "3/20" in capfd.readouterr().err
