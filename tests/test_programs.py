import inspect
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import saddleflow as sf
from saddleflow._backend import programs


def final_cost():
    cost = sf.MatrixCompletion.random(jax.random.key(0), shape=(3, 3), rank=1)
    theta = sf.gaussian(jax.random.key(1), depth=2, width=4, shape=(3, 3), gamma=1.0)
    return float(sf.gradient_flow(cost, theta, solver=diffrax.Tsit5(), progress=False).train_cost[-1])


CODE = f"""
import os
import diffrax
import jax
import saddleflow as sf

folder = os.environ["SADDLEFLOW_CACHE"]
assert not os.path.exists(folder) or os.environ.get("SECOND")
slow = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **about: slow.append((name, seconds, about.get("fun_name")))
)
{inspect.getsource(final_cost)}
print(repr(final_cost()))
print(sum("cache_retrieval" in name for name, *_ in slow))
"""


def run_code(code=CODE, **environment):
    """Run code in a process that knows nothing of the tests' folder."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=known | environment)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


@pytest.fixture
def cache(tmp_path):
    """A folder to keep programs in, for this test alone."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_enable_compilation_cache",
    )
    before = {name: jax.config.values[name] for name in names}
    compilation_cache.reset_cache()  # JAX looks for its folder but once
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_another_process_finds_the_programs(tmp_path):
    """They are kept without being asked for, from the first program on and not from the import."""
    folder = tmp_path / "programs"
    first, found = run_code(SADDLEFLOW_CACHE=str(folder))
    assert found == "0"
    assert {"jit_burst", "jit_start"} <= {path.name.partition("-")[0] for path in folder.iterdir()}
    assert folder.stat().st_mode & 0o077 == 0  # whoever may write there may run code here
    again, found = run_code(SADDLEFLOW_CACHE=str(folder), SECOND="1")
    assert again == first
    assert int(found) >= 10


def where_programs_are_kept(monkeypatch, variable, **configured):
    monkeypatch.setenv("SADDLEFLOW_CACHE", variable)
    jax.config.update("jax_compilation_cache_dir", None)
    for name, value in configured.items():
        jax.config.update(name, value)
    programs.keep_programs.__wrapped__()
    return jax.config.values["jax_compilation_cache_dir"]


def test_what_users_have_configured_is_kept(cache, monkeypatch):
    mine, theirs = str(cache / "mine"), str(cache / "theirs")
    assert where_programs_are_kept(monkeypatch, mine) == mine
    assert where_programs_are_kept(monkeypatch, mine, jax_compilation_cache_dir=theirs) == theirs
    assert where_programs_are_kept(monkeypatch, "off") is None
    assert where_programs_are_kept(monkeypatch, mine, jax_persistent_cache_min_compile_time_secs=7.0) == mine
    assert jax.config.values["jax_persistent_cache_min_compile_time_secs"] == 7.0
    assert where_programs_are_kept(monkeypatch, mine, jax_enable_compilation_cache=False) is None
    jax.config.update("jax_enable_compilation_cache", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "home"))
    assert where_programs_are_kept(monkeypatch, "") == str(cache / "home" / "saddleflow")


def test_no_folder_to_write_to_is_no_error(cache, monkeypatch):
    (cache / "file").write_text("")
    assert where_programs_are_kept(monkeypatch, str(cache / "file" / "programs")) is None


def test_a_folder_can_be_chosen(cache):
    jax.config.update("jax_compilation_cache_dir", str(cache))
    assert programs.cache_programs() == cache
    assert programs.cache_programs(cache / "other") == cache / "other"
    assert jax.config.values["jax_compilation_cache_dir"] == str(cache / "other")


def test_the_least_recently_used_programs_go(tmp_path):
    for number in range(10):
        path = tmp_path / f"jit_{number}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (number, number))
    (tmp_path / "notes").write_bytes(bytes(1000))  # not ours
    (tmp_path / "jit_begun-cache").write_bytes(b"")  # by another process, now
    (tmp_path / "jit_killed-cache").write_bytes(b"")
    os.utime(tmp_path / "jit_killed-cache", (0, 0))
    programs._prune(tmp_path, 1000)
    assert len(list(tmp_path.iterdir())) == 12
    programs._prune(tmp_path, 999)
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"notes", "jit_begun-cache", *(f"jit_{number}-cache" for number in range(3, 10))}


def test_programs_that_run_once_have_the_same_results():
    def function(x):
        return jnp.linalg.svd(jnp.tanh(x @ x.T), compute_uv=False), jnp.sum(jnp.exp(x) / 3)

    once, often = programs.compiled(function, runs_once=True), programs.compiled(function)
    x = jax.random.normal(jax.random.key(0), (7, 5))
    for a, b in zip(once(x), often(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14)
    assert jax.vmap(once)(x[None])[1].shape == (1,)  # as part of another program


def test_a_program_that_is_not_there_in_time_is_compiled_once(compilations):
    slow = threading.Event()

    def function(x):
        slow.wait()  # while it is traced
        return x + 1

    program = programs.compiled(function)
    with compilations() as compiled:
        assert not program.is_there(time.perf_counter() + 0.05, jnp.zeros(3))
        assert not program.is_there(time.perf_counter() + 0.05, jnp.zeros(3))
        slow.set()
        assert float(program(jnp.zeros(3)).sum()) == 3  # waits for the compilation in the background
    assert compiled.count("jit(function)") == 1
    assert program.is_there(time.perf_counter() + 60, jnp.zeros(3))


def test_the_stopwatch_counts_nested_compilations_once():
    inner = jax.jit(lambda x: jnp.sin(x) * 2)
    with programs.Stopwatch() as spent:
        jax.jit(lambda x: inner(x) + inner(2 * x))(jnp.ones(4)).block_until_ready()
        time.sleep(0.2)
    assert 0 < spent.compile_seconds < spent.seconds - 0.2


@pytest.mark.skipif(not Path("/proc/sys/vm/max_map_count").exists(), reason="memory maps have no limit here")
def test_programs_make_room_before_the_system_refuses_more(monkeypatch):
    cleared = []
    clear = jax.clear_caches
    monkeypatch.setattr(jax, "clear_caches", lambda: (cleared.append(True), clear()))
    cost = sf.MatrixCompletion.random(jax.random.key(0), shape=(3, 3), rank=1)

    def flow():
        theta = sf.gaussian(jax.random.key(1), depth=2, width=4, shape=(3, 3), gamma=1.0)
        return sf.gradient_flow(cost, theta, t1=1.0, solver=diffrax.Tsit5(), progress=False).train_cost

    costs = flow()
    flow()
    assert not cleared
    programs._compiled_lately.set()
    monkeypatch.setattr(programs, "MAPS_SHARE", 0.0)
    np.testing.assert_array_equal(flow(), costs)  # compiled again
    assert len(cleared) == 1


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`min_seconds` must be finite and positive"):
        programs.cache_programs(min_seconds=0.0)
