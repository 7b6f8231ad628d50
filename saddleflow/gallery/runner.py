"""Finding the cases, running them, and the table of what came out."""

import difflib
import importlib
import pkgutil
import time
from collections.abc import Sequence
from functools import cache

from rich.table import Table

from saddleflow._backend.checks import require
from saddleflow._backend.meters import meter
from saddleflow._backend.waiting import check_interrupt, interruptible
from saddleflow.gallery import cases
from saddleflow.gallery.case import Case, Result, short


@cache
def all_cases() -> dict[str, Case]:
    """Every case by its name, in the order of names: the modules of `saddleflow.gallery.cases`."""
    modules = [
        importlib.import_module(f"{cases.__name__}.{found.name}") for found in pkgutil.iter_modules(cases.__path__)
    ]
    found = {module.CASE.name: module.CASE for module in modules}
    return dict(sorted(found.items()))


def names() -> tuple[str, ...]:
    """The names of all cases."""
    return tuple(all_cases())


def case(name: str) -> Case:
    """The case of a name.

    Raises:
        ValueError: a name that no case has; the message says the nearest one.
    """
    known = all_cases()
    near = difflib.get_close_matches(str(name).upper(), known, 1, cutoff=0.3)
    hint = f"Did you mean {near[0]!r}?" if near else ""
    require(name in known, "name", f"be one of {', '.join(known)}", name, hint)
    return known[name]


def run(name: str, *, progress: bool | str = True) -> Result:
    """Run a case, and judge it.

    >>> result = sf.gallery.run("A13")
    >>> result.verdict
    'as derived'
    >>> list(result.runs)[0]  # a trajectory for each
    'equal layers'

    Args:
        name: the name of the case.
        progress: a meter, or "log": lines for a log, as in `gradient_flow`.

    Returns:
        The result. What goes wrong in a case becomes its verdict, not an exception.

    Raises:
        ValueError: a name that no case has; the message says the nearest one.
    """
    return run_all([name], progress=progress)[0]


@interruptible
def run_all(only: Sequence[str] | None = None, *, progress: bool | str = True) -> list[Result]:
    """Run cases one after another.

    Args:
        only: their names; None: all.
        progress: a meter, or "log": lines for a log, as in `gradient_flow`.

    Returns:
        Their results, in the order of `only`.

    Raises:
        ValueError: a name that no case has; the message says the nearest one.
    """
    chosen = [case(name) for name in (names() if only is None else only)]
    results = []
    with meter(progress, total=len(chosen), unit="cases", description="starting") as report:
        for count, here in enumerate(chosen):
            check_interrupt()
            report(lambda here=here: f"{here.name}, {here.title}", count)
            results.append(_run(here))
    return results


def _run(here: Case) -> Result:
    begin = time.perf_counter()
    try:
        runs = here.pose()
        seconds = time.perf_counter() - begin
        return Result(here, tuple(here.judge(runs)), seconds, runs)
    except Exception as error:  # one broken case must not hide the others
        return Result(here, (), time.perf_counter() - begin, message=f"{type(error).__name__}: {error}")


def table(results: Sequence[Result]) -> Table:
    """A row for every number: the source's, ours, the verdict, our seconds, the source's cost."""
    grid = Table("case", "quantity", "origin", "source", "ours", "must lie in", "verdict", "seconds", "source's cost")
    for result in results:
        rows = [
            (n.quantity, n.origin, n.aim, short(n.ours), f"[{short(n.low)}, {short(n.high)}]") for n in result.numbers
        ] or [("", "", "", "", "")]
        for place, row in enumerate(rows):
            about = (result.verdict, f"{result.seconds:.1f}", result.case.source_cost) if place == 0 else ("", "", "")
            grid.add_row(result.case.name if place == 0 else "", *row, *about)
    return grid
