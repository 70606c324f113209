"""What the progress of a training run shows, on a terminal and in a log."""

import io

import pytest

from ssdistill.train import progress
from ssdistill.train.progress import NARROW, ProgressConsole, TrainingProgress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass as a test says."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def written(monkeypatch):
    """``written(terminal, width)``: the file that progress is written to."""

    def open_it(terminal, width=100):
        file = io.StringIO()
        console = ProgressConsole(file=file, force_terminal=terminal, width=width, soft_wrap=True,
                                  color_system=None, _environ={"TERM": "xterm"})  # fmt: skip
        monkeypatch.setattr(progress, "console", console)
        return file

    return open_it


def test_a_bar_shows_steps_rate_and_loss_which_it_does_not_know_at_first(written, clock):
    file = written(terminal=True)
    with TrainingProgress("dino", 2, 10, batch_size=64) as bar:
        first = file.getvalue()
        assert "  dino" in first and "2/10" in first and "     – img/s  loss –" in first
        clock[0] += 4.0
        bar.show(7, 0.12345)
        bar._bar.refresh()
    # Five steps of 64 images in 4 seconds.
    assert "7/10" in file.getvalue() and "    80 img/s  loss 0.123" in file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_plain_lines_come_every_fifteen_seconds_where_no_bar_can_be_drawn(written, clock, terminal):
    file = written(terminal, width=NARROW - 1)
    with TrainingProgress("dino", 2, 10, batch_size=64) as bar:
        for seconds, step in ((15.0, 3), (1.0, 4), (15.0, 5)):
            clock[0] += seconds
            bar.show(step, 0.5)
    # Two steps in 16 seconds, so 6 steps more in 48.
    assert [line for line in file.getvalue().splitlines() if "img/s" in line] == [
        "  dino: 4/10, 8 img/s, loss 0.500, 48 s left"
    ]


def test_nothing_is_shown_where_nothing_is_wanted(written, clock):
    file = written(terminal=True)
    with TrainingProgress("dino", 0, 10, batch_size=64, shown=False) as bar:
        clock[0] += 100.0
        bar.show(3, 0.5)
    assert file.getvalue() == ""
