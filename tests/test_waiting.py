import os
import signal
import subprocess
import sys
import threading
import time

import diffrax
import jax
import jax.numpy as jnp
import pytest

import saddleflow as sf
from saddleflow._backend import waiting

pytestmark = pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="no signals")


def interrupt_after(seconds):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


@waiting.interruptible
def idle(seconds, seen):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        time.sleep(0.01)
        if waiting.is_interrupted():
            seen.append("told")
        waiting.check_interrupt()
    return threading.current_thread().name


def test_work_is_done_elsewhere_and_its_result_or_error_comes_back():
    assert idle(0.0, []) == "saddleflow"
    with pytest.raises(ZeroDivisionError):
        waiting.interruptible(lambda: 1 / 0)()
    found = []
    thread = threading.Thread(target=lambda: found.append(idle(0.0, [])), name="mine")
    thread.start()
    thread.join()
    assert found == ["mine"]  # where no signal comes


def test_an_interrupt_reaches_the_caller_at_once_and_the_work_is_told():
    seen = []
    timer = interrupt_after(0.2)
    begin = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        idle(60, seen)
    assert time.perf_counter() - begin < 2
    timer.join()
    deadline = time.perf_counter() + 10
    while not seen and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert seen == ["told"]


def test_an_interrupt_is_noted_and_raised_where_python_would_lose_it():
    """Python's own handler would raise within the callback, where an exception is printed and forgotten."""

    class Callback:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # the handler runs here

    def interrupted():
        with waiting._noted_interrupts():
            Callback()
            waiting.wait(waiting.in_background(lambda: time.sleep(1.0)))

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_user_is_kept():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(True))
    try:
        timer = interrupt_after(0.1)
        assert idle(0.5, []) == "saddleflow"
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [True]


def test_an_interrupt_leaves_work_that_does_not_listen():
    released = threading.Event()
    timer = interrupt_after(0.1)
    with pytest.raises(KeyboardInterrupt):
        waiting.interruptible(released.wait)()
    timer.join()
    released.set()


def test_a_wait_ends_in_time_and_the_work_goes_on():
    released = threading.Event()
    future = waiting.in_background(released.wait)
    with pytest.raises(TimeoutError):
        waiting.wait(future, 0.05)
    released.set()
    assert waiting.wait(future) is True


def test_settings_of_the_caller_hold_in_the_background():
    def settings():
        return jax.config.jax_debug_nans, jax.config.jax_default_device, jnp.ones(1).devices()

    device = jax.devices()[0]
    with jax.debug_nans(True), jax.default_device(device):
        assert waiting.interruptible(settings)() == (True, device, {device})
    assert waiting.interruptible(settings)()[:2] == (False, None)


def test_a_flow_and_a_sweep_are_interrupted(small_cost, small_network):
    slow = {"rtol": 1e-13, "solver": diffrax.Euler(), "max_steps": 10**9, "gradient_tolerance": 1e-13}
    slow["solver"] = diffrax.HalfSolver(diffrax.Euler())
    sf.gradient_flow(small_cost, small_network, **slow | {"max_steps": 1})  # compiled
    timer = interrupt_after(0.5)
    begin = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        sf.gradient_flow(small_cost, small_network, **slow)
    timer.join()
    assert time.perf_counter() - begin < 2.5
    options = {"depth": 3, "width": 6, "max_saves": 8} | slow
    sf.sweep(small_cost, **options | {"max_steps": 1})
    timer = interrupt_after(0.5)
    begin = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        sf.sweep(small_cost, **options)
    timer.join()
    assert time.perf_counter() - begin < 2.5
    deadline = time.perf_counter() + 20
    while any(thread.name.startswith("saddleflow") for thread in threading.enumerate()):
        time.sleep(0.05)
        assert time.perf_counter() < deadline, "threads go on"


RUINS = """
import os, signal, threading, time
from saddleflow._backend import waiting
def busy():
    time.sleep(60)
threading.Timer(.3, os.kill, (os.getpid(), signal.SIGINT)).start()
threading.Timer(1.3, os.kill, (os.getpid(), signal.SIGINT)).start()  # ends the interpreter's wait for the thread
try:
    waiting.interruptible(busy)()
except KeyboardInterrupt:
    print("caught", flush=True)
"""


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="nothing ends that wait there")
def test_a_second_interrupt_ends_an_interpreter_that_waits_for_its_threads():
    begin = time.perf_counter()
    run = subprocess.run([sys.executable, "-c", RUINS], capture_output=True, text=True, timeout=60)
    assert run.stdout == "caught\n"
    assert run.returncode == waiting.INTERRUPTED, run.stderr
    assert time.perf_counter() - begin < 30
