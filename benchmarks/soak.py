"""Random flows, checked: is any verdict or digit wrong anywhere?

    python benchmarks/soak.py [--flows 2000] [--seed 0] [--only N] [--write]

Flows differ in depth (2 to 7), widths, shape, cost (also without a minimiser, constant, or a user's own), start
(scale 1e-15 to 1e3, balanced, symmetric, with zero or huge layers), tolerance (1e-3 to 1e-9), horizon (to 1e12), rows
and coordinates; `benchmarks/soak_flows.py` draws them. Of each run this is checked (`benchmarks/soak_checks.py`):

- the end is documented, and true as far as NumPy can tell: "converged" has a small gradient and a cost as near to the
  infimum as the certificate of a convex cost says (by least squares, or BFGS on A); "stationary_saddle" is no
  minimum;
- rows are at the times asked for, and complete if the end is "t1"; costs agree with NumPy; the cost never rises, and
  balancedness is kept, up to errors of 10 rtol;
- in three runs of ten, one symmetry: the transposed, rotated, included or scaled flow has the same A(t), at the times
  asked for or at t1, within 20 rtol;
- in four of ten, A(t) at up to eight rows agrees within 10 rtol with SciPy's LSODA at 1e-12 (confirmed by Radau), if
  that takes at most 150,000 evaluations;
- in one of ten, the file is saved and loaded bit for bit.

Here rtol is relative to the largest |A| so far, or to the |A| that Gaussian layers of the same norms would have.
Escapes amplify errors. So each start is also solved with its entries changed by rtol (relatively). If that flow ends
further away than rtol, that much more is allowed; if it is a tenth of |A| or more, nothing is compared.

Most of the time goes into compilation, so flows run program by program, and programs are kept for the next time; with
XLA_FLAGS="--xla_backend_optimization_level=0" they compile faster. `--only N` runs one flow again; `--write` writes
docs/soak.md.
"""

import argparse
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from soak_checks import check, run
from soak_flows import PROGRAMS, draw

import saddleflow as sf

CONSOLE = Console(width=160)
REPORT = Path(__file__).parents[1] / "docs/soak.md"


def soak(seed: int, numbers: list[int]) -> tuple[dict[str, Counter], list[str]]:
    """Run and check flows: ends by kind of cost, and a line for every violation."""
    ends: dict[str, Counter] = defaultdict(Counter)
    violations: list[str] = []
    begin = time.perf_counter()
    for done, number in enumerate(sorted(numbers, key=lambda n: (n % len(PROGRAMS), n)), start=1):
        flow = draw(seed, number)
        here = time.perf_counter()
        end = "raised"
        try:
            trajectory = run(flow)
            end = trajectory.stop_reason
            found = list(check(flow, trajectory))
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            found = [("raised", f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})")]
        ends[flow.program.kind][end] += 1
        for name, told in found:
            violations.append(f"{number}: {name}: {told}; {flow.describe()}; end {end}")
            CONSOLE.print(f"[red]{violations[-1]}", highlight=False, soft_wrap=True)
        seconds = time.perf_counter() - here
        if done % 20 == 0 or seconds > 60:
            spent = time.perf_counter() - begin
            told = f"{done} of {len(numbers)}, {len(violations)} violations, {spent:.0f} s"
            CONSOLE.print(f"{told}; flow {number}: {seconds:.1f} s")
    return ends, violations


def table_of(ends: dict[str, Counter]) -> tuple[list[str], list[list[str]]]:
    """Ends by kind of cost: header and rows."""
    names = [name for name in (*sf.StopReason.__members__, "raised") if any(name in count for count in ends.values())]
    rows = [[kind, *(str(count[name] or "") for name in names)] for kind, count in ends.items()]
    return ["cost", *names], rows


def page(command: str, ends: dict[str, Counter], violations: list[str]) -> str:
    """docs/soak.md."""
    header, rows = table_of(ends)
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    count = sum(sum(counter.values()) for counter in ends.values())
    found = "\n".join(f"- `{line}`" for line in violations) or "None."
    listed = (__doc__ or "").split("\n\n", 2)[2].rsplit("\n\n", 1)[0]
    return (
        f"# Random flows, checked\n\nPrinted by `{command}`: {count:,} flows, {len(violations)} violations.\n\n"
        f"{listed}\n\n## Ends\n\n{table}\n\n## Violations\n\nThe number is that of the flow: "
        f"`python benchmarks/soak.py --only N` runs it again.\n\n{found}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the flows to run")
    parser.add_argument("--write", action="store_true", help="write docs/soak.md")
    given = parser.parse_args()
    numbers = given.only or list(range(given.flows))
    if given.only:
        for number in numbers:
            CONSOLE.print(f"{number}: {draw(given.seed, number).describe()}", soft_wrap=True)
    ends, violations = soak(given.seed, numbers)
    header, rows = table_of(ends)
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(table)
    CONSOLE.print(f"{len(violations)} violations")
    if given.write:
        command = f"python benchmarks/soak.py --flows {given.flows} --seed {given.seed} --write"
        REPORT.write_text(page(command, ends, violations))


if __name__ == "__main__":
    main()
