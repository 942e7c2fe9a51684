"""What a run says: right numbers, plain lines off a terminal, not too often."""

import sys
from types import SimpleNamespace

import pytest

import jaxleak.runs.progress as module
from jaxleak.engine import EngineStats
from jaxleak.runs.progress import Progress


class Clock:
    """Time that only moves when told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def lines() -> list[str]:
    return []


def stats(**changes) -> EngineStats:
    return EngineStats(
        **{"trials_running": 16, "steps_useful": 90_000, "steps_total": 100_000, "seconds": 45.0, **changes}
    )


def test_the_line_holds_every_number(clock, lines):
    progress = Progress(200, done=20, successes=11, write=lines.append)
    clock.now += 60
    progress.finished(30, 19, 4000)
    clock.now += 30
    progress.update("dlg", stats(), force=True)
    # 30 trials and half of 16 took 90 s; 134 and the other half take 142 / 38 as long.
    assert lines == [
        "dlg: 50/200 trials done, 16 running, 134 waiting; 30 solved so far; 2,000 evaluations/s, utilisation 90%; "
        "5 min 36 s left"
    ]
    assert (progress.done, progress.successes, progress.evaluations) == (50, 30, 4000)


def test_before_the_first_trial_ends_nothing_is_foretold(clock):
    progress = Progress(20, done=5, successes=1)
    line = progress.line("idlg", EngineStats(), clock.now + 10)
    assert line == (
        "idlg: 5/20 trials done, 0 running, 15 waiting; 1 solved so far; 0 evaluations/s, utilisation 0%; ? left"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (61, "1 min 01 s"), (3599, "59 min 59 s"), (3600, "1 h 00 min"),
     (90_061, "25 h 01 min")],
)  # fmt: skip
def test_time_left(clock, seconds, text):
    progress = Progress(2)
    progress.finished(1, 0, 1)
    assert progress.line("dlg", stats(trials_running=0), clock.now + seconds).endswith(f"; {text} left")


def test_a_running_trial_is_half_done(clock):
    progress = Progress(2)
    progress.finished(1, 0, 1)
    assert progress.line("dlg", stats(trials_running=1), clock.now + 90).endswith("; 30 s left")


def test_at_the_end_no_time_is_left(clock):
    progress = Progress(3)
    progress.finished(3, 3, 1)
    line = progress.line("dlg", stats(trials_running=0), clock.now + 100)
    assert "3/3 trials done, 0 running, 0 waiting; 3 solved" in line
    assert line.endswith("0 s left")


def test_the_first_line_comes_with_the_first_chunk(clock, lines):
    progress = Progress(10, write=lines.append)
    progress.update("dlg", EngineStats())  # nothing is computed yet
    assert not lines
    progress.update("dlg", stats())
    progress.update("dlg", stats())
    assert len(lines) == 1


def test_plain_lines_come_at_most_once_per_interval(clock, lines):
    progress = Progress(10, interval=10, write=lines.append)
    progress.update("dlg", stats())
    lines.clear()
    seen = []
    for _ in range(50):
        clock.now += 1
        progress.update("dlg", stats())
        seen.append(len(lines))
    assert seen[:21] == [0] * 9 + [1] * 10 + [2] * 2
    assert len(lines) == 5
    progress.update("dlg", stats(), force=True)
    assert len(lines) == 6


def test_off_a_terminal_lines_are_plain_and_go_to_stderr(clock, capsys):
    progress = Progress(10)
    progress.say("dlg: compiling")
    progress.update("dlg", stats(), force=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == "dlg: compiling"
    assert len(captured.err.splitlines()) == 2
    assert "\r" not in captured.err
    assert "\x1b" not in captured.err


def test_on_a_terminal_one_line_is_written_over(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress(10)
    for _ in range(4):
        clock.now += 0.3
        progress.update("dlg", stats())
    progress.update("dlg", stats(), force=True)
    progress.say("done")
    error = capsys.readouterr().err
    assert (
        error.count("\r\x1b[Kdlg: 0/10") == 3
    )  # of the four the second and the fourth were too soon; the last was forced
    assert error.count("\n") == 2
    assert error.endswith("\r\x1b[Kdone\n")


def test_where_lines_go_can_be_chosen(clock, lines, capsys):
    progress = Progress(10, write=lines.append)
    progress.say("one")
    progress.update("dlg", stats(), force=True)
    assert len(lines) == 2
    assert capsys.readouterr().err == ""


class Displays:
    """IPython's display, and what it shows: one entry for each line on the screen."""

    def __init__(self):
        self.shown: list[str] = []

    def display(self, bundle, *, raw, display_id):
        assert raw
        assert display_id
        self.shown.append(bundle["text/plain"])
        return self

    def update(self, bundle, *, raw):
        assert raw
        self.shown[-1] = bundle["text/plain"]


@pytest.mark.parametrize("kernel", [True, False])
def test_in_a_notebook_one_line_is_written_over(clock, capsys, monkeypatch, kernel):
    """IPython on a terminal has no kernel, and plain lines as elsewhere."""
    displays = Displays()
    shell = SimpleNamespace(kernel=object()) if kernel else SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=displays.display))
    progress = Progress(10)
    progress.say("dlg: compiling", passing=True)
    progress.say("run: continuing, 2 of 10 trials are there")
    for _ in range(4):
        clock.now += 0.6
        progress.update("dlg", stats())
    progress.update("dlg", stats(), force=True)
    error = capsys.readouterr().err.splitlines()
    if kernel:
        assert error == ["run: continuing, 2 of 10 trials are there"]
        assert [line[:9] for line in displays.shown] == ["dlg: 0/10"]
    else:
        assert error[:2] == ["dlg: compiling", "run: continuing, 2 of 10 trials are there"]
        assert not displays.shown
