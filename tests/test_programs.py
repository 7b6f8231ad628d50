import inspect
import subprocess
import sys
from pathlib import Path

import diffrax
import jax
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
import sys
import diffrax
import jax
import saddleflow as sf

hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
sf.cache_programs(sys.argv[1])
{inspect.getsource(final_cost)}
print(repr(final_cost()))
print(hits.count("/jax/compilation_cache/cache_hits"))
"""


@pytest.fixture
def cache(tmp_path):
    """A folder to keep programs in, for this test alone."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    compilation_cache.reset_cache()  # JAX looks for its folder but once
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_another_process_finds_the_programs(cache):
    jax.clear_caches()
    assert programs.cache_programs(cache, min_seconds=0.01) == cache
    here = final_cost()
    assert any(path.name.startswith("jit_advance") for path in cache.iterdir())
    run = subprocess.run([sys.executable, "-c", CODE, str(cache)], capture_output=True, text=True, check=True)
    there, hits = run.stdout.split()
    assert float(there) == here
    assert int(hits) > 0


def test_a_configured_folder_is_kept(cache):
    jax.config.update("jax_compilation_cache_dir", str(cache))
    assert programs.cache_programs() == cache
    assert programs.cache_programs(cache / "other") == cache / "other"


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
