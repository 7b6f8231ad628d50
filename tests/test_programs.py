import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import saddleflow as sf
from saddleflow._backend import programs

CODE = """
import sys, jax
import saddleflow as sf
sf.cache_programs(sys.argv[1])
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
cost = sf.MatrixCompletion.random(jax.random.key(0), shape=(3, 3), rank=1)
theta = sf.gaussian(jax.random.key(1), depth=2, width=4, shape=(3, 3), gamma=1.0)
print(repr(float(sf.gradient_flow(cost, theta, progress=False).train_cost[-1])))
print(hits.count("/jax/compilation_cache/cache_hits"))
"""


def test_another_process_finds_the_programs(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    runs = [
        subprocess.run(
            [sys.executable, "-c", CODE, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    (cost, hits), (again, more) = runs
    assert cost == again
    assert int(more) > int(hits)
    assert list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/sys/vm/max_map_count").exists(), reason="memory maps have no limit here")
def test_programs_make_room_before_the_system_refuses_more(monkeypatch):
    cleared = []
    clear = jax.clear_caches
    monkeypatch.setattr(jax, "clear_caches", lambda: (cleared.append(True), clear()))
    cost = sf.MatrixCompletion.random(jax.random.key(0), shape=(3, 3), rank=1)

    def flow():
        theta = sf.gaussian(jax.random.key(1), depth=2, width=5, shape=(3, 3), gamma=1.0)
        return sf.gradient_flow(cost, theta, t1=1.0, progress=False).train_cost

    costs = flow()
    flow()
    assert not cleared
    programs._compiled_lately.set()
    monkeypatch.setattr(programs, "MAPS_SHARE", 0.0)
    np.testing.assert_array_equal(flow(), costs)  # compiled again
    assert len(cleared) == 1


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`min_seconds` must be finite and positive"):
        sf.cache_programs(min_seconds=0.0)
