import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import diffrax
import jax
import pytest
import scipy.linalg  # noqa: F401  (its LAPACK is loaded before a test looks)
from threadpoolctl import threadpool_info, threadpool_limits

import saddleflow as sf
from saddleflow._backend.devices import ACCELERATOR_SLOTS, check_memory, one_lapack_thread, slots_per_program


def lapack_threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def in_a_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.fixture
def two_threads():
    """Several, whatever the environment says; set by threads that end, since as long as they live no other may."""
    limit = in_a_thread(lambda: threadpool_limits(2, "blas"))
    yield lapack_threads()
    in_a_thread(limit.restore_original_limits)


def test_lapack_has_one_thread_while_anyone_is_inside(two_threads):
    inside, leave, seen = threading.Event(), threading.Event(), []

    def other():
        with one_lapack_thread():
            inside.set()
            leave.wait()
            seen.append(lapack_threads())

    thread = threading.Thread(target=other)
    with one_lapack_thread():
        thread.start()
        inside.wait()
        assert set(lapack_threads()) == {1}
    assert set(lapack_threads()) == {1}  # the other is still inside
    leave.set()
    thread.join()
    assert set(seen[0]) == {1}
    assert lapack_threads() == two_threads == [2] * len(two_threads)


def test_lapacks_that_are_not_loaded_yet_have_one_thread_too():
    """Only a new process has not loaded scipy's."""
    code = """
import sys
from threadpoolctl import threadpool_info
from saddleflow._backend.devices import one_lapack_thread
assert "scipy.linalg" not in sys.modules
with one_lapack_thread():
    import scipy.linalg
    print({library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"})
"""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "{1}\n"


def test_flows_give_lapack_its_threads_back(two_threads):
    seen = []
    cost = sf.MatrixCompletion.random(jax.random.key(0), shape=(3, 3))
    theta = sf.gaussian(jax.random.key(1), depth=2, width=3, shape=(3, 3), gamma=1.0)

    def look(cost, network):
        jax.debug.callback(lambda: seen.append(set(lapack_threads())))
        return network.layers[0][0, 0]

    sf.gradient_flow(cost, theta, t1=1.0, observables={"look": look}, solver=diffrax.Tsit5(), progress=False)
    assert seen
    assert all(found == {1} for found in seen)
    assert lapack_threads() == two_threads
    with pytest.raises(ValueError, match="rtol"):
        sf.gradient_flow(cost, theta, rtol=-1.0)
    assert lapack_threads() == two_threads


def accelerator(**stats):
    return SimpleNamespace(platform="gpu", memory_stats=lambda: stats)


def test_an_accelerator_has_as_many_slots_as_fit():
    assert slots_per_program(jax.devices("cpu")[0], 10**15) == 1
    assert slots_per_program(accelerator(bytes_limit=10**9, bytes_in_use=0), 10**6) == ACCELERATOR_SLOTS
    assert slots_per_program(accelerator(bytes_limit=10**9, bytes_in_use=4 * 10**8), 10**7) == 32
    assert slots_per_program(accelerator(bytes_limit=10**9, bytes_in_use=0), 10**12) == 1
    assert slots_per_program(accelerator(), 10**12) == ACCELERATOR_SLOTS  # it does not say


def test_what_does_not_fit_an_accelerator_is_refused():
    check_memory(10**9, 1, accelerator(bytes_limit=10**9, bytes_in_use=0), "1 lane")
    with pytest.raises(ValueError, match=r"1.00 GB are free.*2.00 GB for 3 worker.*1 lane.*smaller width"):
        check_memory(2 * 10**9, 3, accelerator(bytes_limit=10**9, bytes_in_use=0), "1 lane")
