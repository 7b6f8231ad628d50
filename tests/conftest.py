import os
from collections.abc import Callable
from importlib.metadata import version

import pytest

# Most of the suite's time is XLA's compiler: these two make it two to six times faster, and programs slower, at worst
# seen 2.6 times.
# (XLA aborts on flags that it does not know, so only with the series they were seen in.)
if version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0")

import jax
import jax.numpy as jnp

import saddleflow as sf
from saddleflow import cli


@pytest.fixture(scope="module", autouse=True)
def _programs_are_dropped_with_their_module():
    """Compiled programs hold memory maps, of which a process has 65,530: beyond them XLA's compiler crashes."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _no_programs_are_left_in_the_home_folder(monkeypatch):
    monkeypatch.setattr("saddleflow.cli.cache_programs", lambda: None)


@pytest.fixture
def small_cost() -> sf.MatrixCompletion:
    """Matrix completion 4x4 of rank 2, 12 of 16 entries observed."""
    return sf.MatrixCompletion.random(jax.random.key(1), shape=(4, 4), rank=2, observed=0.75)


@pytest.fixture
def small_network() -> sf.DeepLinearNetwork:
    """A start of depth 3 and width 6 that fits `small_cost`."""
    return sf.gaussian(jax.random.key(2), depth=3, width=6, shape=(4, 4), gamma=1.5)


class Linear(sf.Cost):
    """The homogeneous model `Tr(G^T A)`, without a lower bound."""

    slope: jax.Array

    @property
    def shape(self):
        return self.slope.shape

    def __call__(self, matrix):
        return jnp.sum(self.slope * matrix)

    def test(self, matrix):
        return self(matrix)

    @property
    def has_test(self):
        return False


@pytest.fixture
def linear_cost() -> type[sf.Cost]:
    """A cost without a minimum: `linear_cost(G)` is `Tr(G^T A)`."""
    return Linear


@pytest.fixture
def run_cli(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: its exit code, what it printed, its errors."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["saddleflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        captured = capsys.readouterr()
        return exit_info.value.code or 0, captured.out, captured.err

    return run
