import io
import logging
import re
import sys
import threading
import time
import types
from contextlib import contextmanager

import jax
import pytest
from rich.console import Console

import saddleflow as sf
from saddleflow import claims
from saddleflow._backend import meters
from saddleflow.flow import run


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(meters, "LOG_EVERY", 0.3)
    monkeypatch.setattr(meters, "LOG_FIRST", 0.1)
    monkeypatch.setattr(meters, "REFRESH", 0.02)


@pytest.fixture
def terminal(monkeypatch):
    """Standard error as a terminal: what rich writes there."""
    text = io.StringIO()
    monkeypatch.setattr(meters, "Console", lambda **_: Console(file=text, force_terminal=True, width=100))
    return text


@pytest.fixture
def bare(monkeypatch):
    """A process that has set up no logging: pytest's own handlers are away."""
    monkeypatch.setattr(meters.LOGGER, "hasHandlers", lambda: False)


def test_lines_of_a_log_say_what_is_done_and_for_how_long(fast, bare, capsys):
    with meters.meter("log", total=7, unit="lanes") as report:
        time.sleep(0.25)
        report(lambda: "no failure", 3)
        time.sleep(0.4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "saddleflow: compiling   0 s"
    assert lines[-1].startswith("saddleflow: 3 of 7 lanes   no failure   ")
    assert all(re.fullmatch(r"saddleflow: .*   \d s", line) for line in lines)


def test_a_line_in_a_notebook_changes_in_place_and_goes(fast, monkeypatch):
    """Without ipywidgets, and without a warning."""
    shown = []

    class Handle:
        def update(self, data, raw):
            shown.append(data["text/plain"])

    def display(data, raw, display_id):
        shown.append(data["text/plain"])
        return Handle()

    for name in ("IPython", "IPython.display"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(display=display))
    monkeypatch.setattr(meters, "Console", lambda **_: Console(file=io.StringIO(), force_jupyter=True))
    monkeypatch.setattr(meters, "NOTEBOOK_FIRST", 0.1)
    monkeypatch.setattr(meters, "NOTEBOOK_EVERY", 0.1)
    with meters.meter(True, total=7, unit="lanes") as report:
        time.sleep(0.2)
        report(lambda: "no failure", 3)
        time.sleep(0.3)
    assert shown[0] == "compiling   0 s"
    assert shown[-2].startswith("3 of 7 lanes   no failure   ")
    assert shown[-1] == ""
    shown.clear()
    with meters.meter(True):
        pass
    assert shown == []


def test_short_work_leaves_no_line(bare, capsys):
    with meters.meter("log") as report:
        report(lambda: "done", 1)
    assert capsys.readouterr().err == ""


def test_lines_go_to_the_logging_that_is_set_up(fast, caplog, capsys):
    with caplog.at_level(logging.INFO, "saddleflow"), meters.meter("log"):
        time.sleep(0.2)
    assert caplog.messages == ["compiling   0 s"]
    assert capsys.readouterr().err == ""


def test_a_terminal_sees_compiling_first_and_the_run_then(terminal, small_cost, small_network):
    sf.gradient_flow(small_cost, small_network, t1=1.0)
    text = terminal.getvalue()
    assert "compiling" in text
    assert 0 < text.index("compiling") < text.index("run   t = ")
    assert "0:00:0" in text  # the time so far


@pytest.mark.slow
def test_phases_of_a_reduced_run_have_their_names(terminal, small_cost):
    wide = sf.gaussian(jax.random.key(0), depth=3, width=60, shape=(4, 4), gamma=1.0)
    sf.gradient_flow(small_cost, sf.reduce_width(wide), t1=1.0, rtol=1e-4)
    text = terminal.getvalue()
    assert text.index("pilot 1: compiling") < text.index("pilot 1   t = ") < text.index("run   t = ")
    assert "check   t = " in text


def test_the_line_goes_when_its_work_is_left_to_end_alone(terminal, monkeypatch):
    left = threading.Event()
    monkeypatch.setattr(meters, "is_interrupted", left.is_set)
    with meters.meter(True):
        time.sleep(0.2)
        left.set()
        time.sleep(0.3)
        size = len(terminal.getvalue())
        time.sleep(0.3)
        assert len(terminal.getvalue()) == size


def test_nothing_is_shown_elsewhere(small_cost, small_network, capsys):
    for progress in (True, False):
        sf.gradient_flow(small_cost, small_network, t1=1.0, progress=progress)
    sys.stderr.flush()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("depth", [3, pytest.param(7, marks=pytest.mark.slow)])
def test_flows_tell_test_cost_and_rank(depth, monkeypatch):
    """Wide and narrow networks, plain and stacked ones, padded: the rank of A, once A means something."""
    told = []

    @contextmanager
    def meter(progress, **_):
        yield lambda text, done: told.append(text())

    monkeypatch.setattr(run, "meter", meter)
    for shape, width in [((6, 9), 5), ((6, 5), 13)]:
        cost = sf.MatrixCompletion.random(jax.random.key(0), shape=shape, rank=2)
        start = sf.gaussian(jax.random.key(1), depth=depth, width=width, shape=cost.shape, gamma=3.0)
        flow = sf.gradient_flow(cost, start, rtol=1e-3, max_steps=2)
        assert re.search(r"cost \S+   test \S+   \d steps$", told[-1])  # still at the first saddle
        flow = sf.gradient_flow(cost, start, rtol=1e-3)
        values = flow.singular_values[-1]
        assert f"   rank {(values > values[0] / 100).sum()}   " in told[-1]
        assert f"test {flow.test_cost[-1]:.3e}   " in told[-1]


def test_sweeps_log(fast, bare, small_cost, capsys):
    sf.sweep(small_cost, depth=2, width=[4, 5], seed=range(3), rtol=1e-3, progress="log")
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(re.match(r"saddleflow: (compiling|\d of 6 lanes) ", line) for line in lines)


def test_a_meter_within_another_shows_nothing(fast, bare, small_cost, small_network, capsys):
    with meters.meter("log", unit="things", description="outer"):
        sf.gradient_flow(small_cost, small_network, t1=1.0, progress="log")
        time.sleep(0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all("outer" in line for line in lines)
    with meters.meter(False):
        sf.gradient_flow(small_cost, small_network, t1=1.0, progress="log")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("progress", ["yes", ""])
def test_other_values_are_refused(small_cost, small_network, progress):
    calls = [
        lambda: sf.gradient_flow(small_cost, small_network, progress=progress),
        lambda: sf.sweep(small_cost, depth=2, width=4, progress=progress),
        lambda: claims.verify(progress=progress),
    ]
    for call in calls:
        with pytest.raises(ValueError, match='`progress` must be True, False or "log", but got'):
            call()
