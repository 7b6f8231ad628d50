"""What all tests share: how XLA compiles, where programs are kept, small problems, marks.

Most of the suite's time is XLA's compiler. So it compiles in a hurry, keeps what it has compiled, in the cache folder
of pytest (`pytest --cache-clear` empties it), and workers and subprocesses find it there. With
SADDLEFLOW_TEST_XLA=default it compiles as it does for users, who get other roundings and faster programs.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest

# Two to six times faster to compile, and up to 2.6 times slower to run, as seen so far. XLA aborts on flags that it
# does not know, so only with the versions that these were seen in.
IN_A_HURRY = {
    "--xla_cpu_use_fusion_emitters": "false",
    "--xla_backend_optimization_level": "0",
    "--xla_cpu_parallel_codegen_split_count": "1",  # workers have a core each
}

# Before JAX is imported; workers and subprocesses inherit all this.
if version("jaxlib").startswith("0.10.") and os.environ.get("SADDLEFLOW_TEST_XLA") != "default":
    given = os.environ.get("XLA_FLAGS", "").split()
    named = {flag.partition("=")[0] for flag in given}
    os.environ["XLA_FLAGS"] = " ".join(
        given + [f"{name}={value}" for name, value in IN_A_HURRY.items() if name not in named]
    )
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache/d/programs"))
# never the user's, where a test takes JAX's folder away
os.environ.setdefault("SADDLEFLOW_CACHE", os.environ["JAX_COMPILATION_CACHE_DIR"])
# below that, a program is compiled as fast as it is read
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Shells start processes in the background with SIGINT ignored, and so their children; tests of Ctrl-C need it heard.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A third of the memory maps that Linux allows a process: one module's programs have not held as many again.
MANY_MAPS = 20_000

# Whole files, or single tests: something of most subjects, in less than a minute. `pytest -m quick` runs them.
QUICK = (
    *(f"test_api.py::test_{name}" for name in ("integrate", "an_unknown", "draws")),
    "test_clock.py",
    "test_costs.py::test_gradient_is_the_derivative",
    "test_docs.py::test_every_name",
    "test_exact.py::test_two_layer_modes[1e-08-default]",
    "test_flow.py::test_converges_with_a_certificate",
    "test_flow.py::test_named_ends",
    "test_network.py::test_balanced",
    "test_package.py::test_an_import_starts_nothing",
    "test_reading.py::test_bad",
    "test_sweep.py::test_a_lane_is_its_lone_run",
    "test_symmetry.py",
    "solvers/test_krylov.py::test_solves",
    "test_training.py::test_batches",
    "theory/test_modes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the quick selection."""
    for item in items:
        name = item.nodeid.removeprefix("tests/")
        if name.startswith(QUICK) and item.get_closest_marker("slow") is None:
            item.add_marker("quick")


@pytest.fixture(scope="module", autouse=True)
def _programs_make_room() -> Iterator[None]:
    """Compiled programs hold memory maps, of which a process has 65,530: beyond them XLA's compiler crashes."""
    yield
    import jax

    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_text().splitlines()) > MANY_MAPS:
        jax.clear_caches()


@pytest.fixture
def small_cost():
    """Matrix completion 4x4 of rank 2, 12 of 16 entries observed."""
    import problems

    return problems.completion()


@pytest.fixture
def small_network():
    """A start of depth 3 and width 6 that fits `small_cost`."""
    import problems

    return problems.start()


@pytest.fixture
def linear_cost() -> type:
    """A cost without a minimum: `linear_cost(G)` is `Tr(G^T A)`."""
    import problems

    return problems.Linear


@pytest.fixture
def compilations() -> Callable[[], AbstractContextManager[list[str]]]:
    """`with compilations() as names:` collects the names of programs as they are compiled, or read from the cache."""
    import jax

    @contextmanager
    def collect() -> Iterator[list[str]]:
        names: list[str] = []

        def hear(event: str, _: float, **about) -> None:
            if "backend_compile" in event:
                names.append(about.get("fun_name", ""))

        jax.monitoring.register_event_duration_secs_listener(hear)
        try:
            yield names
        finally:
            jax.monitoring.unregister_event_duration_listener(hear)

    return collect


@pytest.fixture
def run_cli(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: its exit code, what it printed, its errors."""
    from saddleflow import cli

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["saddleflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        captured = capsys.readouterr()
        return exit_info.value.code or 0, captured.out, captured.err

    return run
