"""Break single lines of what decides results, and see whether the tests notice.

python benchmarks/mutants.py [--only controller] [--seconds 300]

Each mutant is a copy of the package with one line changed; the tests named beside it run on the copy, and must fail.
A mutant that none of them notices has survived: it is printed, with the reason where it is known to change nothing
that matters. Not run by CI: it takes minutes a group.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    """One change: a text that stands once in the file, what replaces it, and why it may survive."""

    old: str
    new: str
    excuse: str = ""


@dataclass(frozen=True)
class Group:
    """Mutants of one file, and the tests that are to notice them."""

    file: str
    tests: tuple[str, ...]
    mutants: tuple[Mutant, ...]


M = Mutant
GROUPS = {
    "controller": Group(
        "saddleflow/solvers/controller.py",
        ("tests/solvers/test_controller.py",),
        (
            M("keep = error < 1", "keep = error < 2"),
            M("keep = error < 1", "keep = error > 1"),
            M("self.safety * positive ** (-1 / error_order)", "positive ** (-1 / error_order)"),
            M("positive ** (-1 / error_order)", "positive ** (-2 / error_order)"),
            M("(state.error / positive) ** (1 / error_order)", "(positive / state.error) ** (1 / error_order)"),
            M("jnp.minimum(elementary, predictive)", "jnp.maximum(elementary, predictive)"),
            M("jnp.minimum(elementary, predictive)", "elementary"),
            M("known = keep & (state.size > 0)", "known = (state.size > 0)"),
            M("jnp.where(state.failed | ~keep, 1.0, self.factormax)", "self.factormax"),
            M("jnp.where(state.failed | ~keep, 1.0, self.factormax)", "jnp.where(~keep, 1.0, self.factormax)"),
            M("jnp.isnan(error), jnp.inf, error", "jnp.isnan(error), 0.0, error"),
            M("jnp.where(keep, h, state.size)", "h"),
            M("jnp.maximum(error, 1e-2), state.error", "jnp.maximum(error, 1e-2), error"),
            M("            ~keep,\n        )", "            keep,\n        )"),
            M("next_t0 = jnp.where(keep, t1, t0)", "next_t0 = t1"),
            M("jnp.maximum(jnp.abs(a), jnp.abs(b))", "jnp.minimum(jnp.abs(a), jnp.abs(b))"),
            M("(other > size) & (size > 0)", "(other < size) & (size > 0)"),
            M("/ (ALLOWANCE * in_dtype(rtol, size.dtype))", "/ in_dtype(rtol, size.dtype)"),
        ),
    ),
    "tableaus": Group(
        "saddleflow/solvers/tableaus.py",
        (
            "tests/solvers/test_rosenbrock.py::test_the_coefficients_are_l_stable",
            "tests/solvers/test_rosenbrock.py::test_the_linear_order",
            "tests/solvers/test_rosenbrock.py::test_orders_on_smooth_and_on_stiff_problems",
            "tests/solvers/test_rosenbrock.py::test_dense_output_and_counters",
        ),
        (
            M("(1.544,)", "(1.545,)"),
            M("(0.9466785280815826, 0.2557011698983284)", "(0.9466785280815826, 0.2577011698983284)"),
            M("(-5.6688,)", "(-5.6588,)"),
            M("d=(0.25, -0.1043,", "d=(0.25, -0.1143,"),
            M(
                "order=4,\n    gamma=0.25,\n    a=(\n        (),\n        (3.0,)",
                "order=3,\n    gamma=0.25,\n    a=(\n        (),\n        (3.0,)",
            ),
            M("-8.791795173947035", "-8.781795173947035"),
            M("1.831036793486759", "1.841036793486759"),
            M("gamma=0.21193756319429014", "gamma=0.2129375631942901"),
            M("2.849394379747939", "2.859394379747939"),
            M("-14.155112264123755", "-14.165112264123755"),
            M("-9.48861652309627", "-9.38861652309627"),
            M("20.176138334709044", "21.176138334709044"),
        ),
    ),
    "scheduler": Group(
        "saddleflow/sweeps/scheduler.py",
        (
            "tests/test_sweep.py::test_a_lane_is_its_lone_run",
            "tests/test_sweep.py::test_slots_of_one_program_do_not_know_each_other",
            "tests/test_sweep.py::test_workers_divide_few_lanes",
            "tests/test_sweep.py::test_who_stops_listening_stops_the_workers",
            "tests/test_sweep.py::test_what_a_burst_is_worth",
            "tests/test_model_sweep.py::test_a_bare_loss_and_the_saddle_it_rests_at",
        ),
        (
            M(
                "jnp.asarray(BURST_ALONE, int)",
                "jnp.asarray(1, int)",
                "bursts of one step: slower, with the same results",
            ),
            M("while active and not stopped.is_set():", "while False:"),
            M("before = int(steps)", "before = 0", "the meter's count of steps in lanes longer than a burst"),
            M("ended = [number for number in slots if not active[number]]", "ended = list(slots)"),
            M(
                "ended = [number for number in slots if not active[number]]",
                "ended = list(slots)[:1] if not all(active) else []",
            ),
            M("x[number, ...], results", "x[0, ...], results"),
            M("slot(running, number))\n            yield", "slot(running, 0))\n            yield"),
            M("[number in fresh for", "[True for"),
            M("fresh.get(number, spare)", "spare"),
            M("computed = num_slots * max(taken)", "computed = num_slots * min(taken)"),
            M(
                "slots[number], fresh[number] = _Slot(job[0]), job[1]()",
                "slots[number], fresh[number] = _Slot(0), job[1]()",
            ),
        ),
    ),
    "certificate": Group(
        "saddleflow/flow/landscape.py",
        (
            "tests/test_flow.py::test_converges_with_a_certificate",
            "tests/test_flow.py::test_named_ends",
            "tests/test_flow.py::test_a_start_on_a_saddle_is_named",
        ),
        (
            M(
                "return jnp.linalg.norm(self.cost.gradient(outputs))",
                "return 100 * jnp.linalg.norm(self.cost.gradient(outputs))",
            ),
            M(
                "return jnp.linalg.norm(self.cost.gradient(outputs))",
                "return 0 * jnp.linalg.norm(self.cost.gradient(outputs))",
            ),
            M(
                "return geometry.at_rest(self.cost, parameters, graded, self.active)",
                "return geometry.at_rest(self.cost, parameters, graded, self.active)[0], *2 * (jnp.asarray(False),)",
            ),
        ),
    ),
    "ends": Group(
        "saddleflow/flow/loop.py",
        ("tests/test_flow.py::test_converges_with_a_certificate", "tests/test_flow.py::test_named_ends"),
        (
            M(
                "return landscape.certificate(outputs) <= settings.gradient_tolerance",
                "return landscape.certificate(outputs) >= settings.gradient_tolerance",
            ),
            M(
                "certified = keep & _converged(landscape, outputs, settings)",
                "certified = _converged(landscape, outputs, settings) & False",
            ),
        ),
    ),
}


def copy_project(folder: Path) -> None:
    """The package and its tests in a folder."""
    for name in ("saddleflow", "tests", "benchmarks"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", folder)


def test(folder: Path, group: Group, seconds: float) -> str:
    """Whether the tests notice: "killed" or "survived"; a run that takes too long has noticed."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-x", "-p", "no:cacheprovider", *group.tests]
    try:
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return "killed"
    return "survived" if run.returncode == 0 else "killed"


def main() -> None:
    """Try the mutants of the groups asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--seconds", type=float, default=300.0, help="limit for the tests of one mutant")
    arguments = parser.parse_args()
    killed, survivors = 0, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_project(folder)
        for key in arguments.only:
            group = GROUPS[key]
            path, begin = folder / group.file, time.perf_counter()
            original = path.read_text()
            if test(folder, group, arguments.seconds) == "killed":
                raise SystemExit(f"{key}: the tests fail without a mutant, or take too long")
            for mutant in group.mutants:
                if original.count(mutant.old) < 1:
                    raise SystemExit(f"{key}: {mutant.old!r} stands nowhere")
                path.write_text(original.replace(mutant.old, mutant.new, 1))
                if test(folder, group, arguments.seconds) == "killed":
                    killed += 1
                    print(f"killed: {key}: {mutant.old!r} -> {mutant.new!r}", flush=True)
                else:
                    survivors.append(f"{key}: {mutant.old!r} -> {mutant.new!r}. {mutant.excuse}")
                    print(f"survived: {survivors[-1]}", flush=True)
            path.write_text(original)
            print(f"{key}: {len(group.mutants)} mutants, {time.perf_counter() - begin:.0f} s", flush=True)
    print(f"{killed} of {killed + len(survivors)} killed")


if __name__ == "__main__":
    main()
