"""The ledger: claims, what was measured for them, the verdicts; as a table, as JSON, as a dataset."""

import dataclasses
import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import lazy_loader as lazy
import numpy as np
import scipy
from rich.table import Table

from saddleflow._backend import arguments
from saddleflow._backend.arguments import takes
from saddleflow._backend.checks import require
from saddleflow._backend.files import readable, written_whole
from saddleflow._backend.meters import Report, meter
from saddleflow._backend.waiting import wait
from saddleflow.flow.history import versions

if TYPE_CHECKING:
    import xarray as xr
else:
    xr = lazy.load("xarray")

WORKERS = 2  # groups of claims at once

Size = Literal["quick", "full"]
Standing = Literal["stated in the paper", "recalled", "ours"]


@dataclass(frozen=True)
class Finding:
    """One number, predicted and measured.

    Attributes:
        quantity: what it is, with the case it was measured in.
        predicted: what the formula says.
        measured: what the experiment gave.
        low, high: where the measurement must lie for the claim to hold; infinite ends make one-sided claims.
        error: half of its 95 % confidence interval over seeds; 0 for what has no spread.
    """

    quantity: str
    predicted: float
    measured: float
    low: float
    high: float
    error: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the measurement lies within its bounds, whatever its confidence interval; NaN never does."""
        return bool(self.low <= self.measured <= self.high)

    @classmethod
    def near(cls, quantity: str, predicted: float, samples: Any, tolerance: float) -> "Finding":
        """The mean of the samples lies within `tolerance` of the prediction."""
        mean, error = mean_and_error(samples)
        return cls(quantity, predicted, mean, predicted - tolerance, predicted + tolerance, error)

    @classmethod
    def at_most(cls, quantity: str, bound: float, samples: Any, predicted: float | None = None) -> "Finding":
        """The mean of the samples lies at or below the bound (which is predicted, unless something else is)."""
        mean, error = mean_and_error(samples)
        return cls(quantity, bound if predicted is None else predicted, mean, -math.inf, bound, error)

    @classmethod
    def at_least(cls, quantity: str, bound: float, samples: Any, predicted: float | None = None) -> "Finding":
        """The mean of the samples lies at or above the bound (which is predicted, unless something else is)."""
        mean, error = mean_and_error(samples)
        return cls(quantity, bound if predicted is None else predicted, mean, bound, math.inf, error)


def mean_and_error(samples: Any) -> tuple[float, float]:
    """Mean, and half of its 95 % confidence interval (Student's t); 0 for a single sample."""
    values = np.atleast_1d(np.asarray(samples, float))
    if len(values) < 2:
        return float(values[0]), 0.0
    quantile = float(scipy.stats.t.ppf(0.975, len(values) - 1))
    return float(values.mean()), quantile * float(values.std(ddof=1)) / math.sqrt(len(values))


def exponents(abscissae: Sequence[float] | Sequence[int], curves: Any) -> np.ndarray:
    """The exponent p of `y ~ x^p` for every curve (first axis), by least squares on logarithms."""
    logs = np.log(np.asarray(curves, float))
    return np.asarray([np.polyfit(np.log(abscissae), curve, 1)[0] for curve in logs])


@dataclass(frozen=True)
class Claim:
    """A statement that an experiment can hold or refute.

    Attributes:
        id: a short name, for `--only`.
        statement: the claim in words.
        formula: the claim in symbols, as LaTeX mathematics.
        standing: "stated in the paper" (its abstract and captions, all that could be read), "recalled" (said to be in
            its body, from memory), "ours".
        measure: the experiment; takes "quick" or "full".
    """

    id: str
    statement: str
    formula: str
    standing: str
    measure: Callable[[Size], list[Finding]]

    def __post_init__(self):
        require(self.standing in get_args(Standing), "standing", f"be one of {get_args(Standing)}", self.standing)


@dataclass(frozen=True)
class Entry:
    """A claim of the ledger with its findings.

    Attributes:
        verdict: "holds" if all findings do, else "fails"; "error" where the experiment ended in an exception, then
            named in `message`.
        seconds: wall-clock seconds of the experiment, compilation included.
    """

    id: str
    statement: str
    formula: str
    standing: str
    verdict: str
    findings: tuple[Finding, ...]
    seconds: float
    message: str = ""


@dataclass(frozen=True)
class Ledger:
    """The result of `verify`: an entry for every claim, in order."""

    entries: tuple[Entry, ...]
    size: str
    versions: dict[str, str] = field(default_factory=versions)

    @property
    def failures(self) -> list[Entry]:
        """Entries stated in the paper that do not hold."""
        return [e for e in self.entries if e.verdict != "holds" and e.standing == "stated in the paper"]

    def table(self) -> Table:
        """A row for every finding."""
        table = Table("claim", "standing", "quantity", "predicted", "measured", "must lie in", "verdict")
        for entry in self.entries:
            for place, finding in enumerate(entry.findings):
                first = (entry.id, entry.standing) if place == 0 else ("", "")
                bounds = f"[{_short(finding.low)}, {_short(finding.high)}]"
                verdict = "holds" if finding.holds else "FAILS"
                measured = _short(finding.measured) + (f" ± {finding.error:.1g}" if finding.error else "")
                table.add_row(*first, finding.quantity, _short(finding.predicted), measured, bounds, verdict)
            if entry.message:
                table.add_row(entry.id, entry.standing, entry.message, "", "", "", "ERROR")
        return table

    @takes(path=arguments.path, force=arguments.boolean)
    def save_json(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the ledger as JSON, whole or not at all; infinities and NaN as strings."""
        content = {
            "size": self.size,
            "versions": self.versions,
            "entries": [_plain(dataclasses.asdict(entry)) for entry in self.entries],
        }
        with written_whole(path, force) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        return Path(path)

    @classmethod
    @takes(path=arguments.path)
    def load_json(cls, path: str | Path) -> "Ledger":
        """Read what `save_json` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file that is not a ledger.
        """
        with readable(path, "be a ledger as `saddleflow verify --json` writes it"):
            content = json.loads(Path(path).read_text("utf-8"))
            entries = [
                Entry(**entry | {"findings": tuple(Finding(**_numbers(f)) for f in entry["findings"])})
                for entry in content["entries"]
            ]
            return cls(tuple(entries), content["size"], content["versions"])

    def to_xarray(self) -> "xr.Dataset":
        """All findings as a dataset along `finding`: numbers, and the claim each belongs to."""
        rows = [(entry, finding) for entry in self.entries for finding in entry.findings]
        numbers = ("predicted", "measured", "low", "high", "error")
        variables: dict[str, Any] = {n: ("finding", [float(getattr(f, n)) for _, f in rows]) for n in numbers}
        variables["holds"] = ("finding", [f.holds for _, f in rows])
        variables["quantity"] = ("finding", [f.quantity for _, f in rows])
        for name in ("id", "standing", "verdict"):
            variables[name] = ("finding", [getattr(e, name) for e, _ in rows])
        attrs = {"size": self.size, "versions": json.dumps(self.versions)}
        return xr.Dataset(variables, attrs=attrs)


def verify(
    claims: Sequence[Claim], size: str = "quick", only: Sequence[str] | None = None, progress: bool | str = True
) -> Ledger:
    """Run the experiments of the claims; an exception becomes an entry, and stops nothing.

    Args:
        claims: the claims.
        size: "quick" or "full".
        only: ids of the claims to check; None: all.
        progress: a meter, or "log": lines for a log, as in `gradient_flow`.

    Raises:
        ValueError: another size, or an id that no claim has.
    """
    require(size in get_args(Size), "size", f"be one of {get_args(Size)}", size)
    known = [claim.id for claim in claims]
    for name in only or ():
        require(name in known, "only", f"name claims: {', '.join(known)}", name)
    chosen = [claim for claim in claims if only is None or claim.id in only]
    # Claims of one module use the same runs, those of two modules none. The last module, of sweeps, takes longest and
    # begins first.
    groups: dict[str, list[Claim]] = {}
    for claim in chosen:
        groups.setdefault(claim.measure.__module__, []).append(claim)
    with meter(progress, total=len(chosen), unit="claims", description="starting") as report:
        pool, stopped, begun = ThreadPoolExecutor(WORKERS), threading.Event(), itertools.count()
        try:
            jobs = [
                pool.submit(copy_context().run, _check_all, group, cast(Size, size), report, begun, stopped)
                for group in reversed(groups.values())
            ]
            entries = {entry.id: entry for job in jobs for entry in wait(job)}
        finally:
            # an interrupt begins no other experiment; those that run end at their next burst of steps
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return Ledger(tuple(entries[claim.id] for claim in chosen), size)


def _check_all(
    claims: Sequence[Claim], size: Size, report: Report, begun: Iterator[int], stopped: threading.Event
) -> list[Entry]:
    """The entries of claims, one experiment after another, until stopped; `begun` counts those of all groups."""
    entries = []
    for claim in claims:
        if stopped.is_set():
            break
        report(lambda name=claim.id: name, next(begun))
        begin = time.perf_counter()
        findings, message = [], ""
        try:
            findings = claim.measure(size)
        except Exception as error:  # one broken experiment must not hide the others
            message = f"{type(error).__name__}: {error}"
        verdict = "error" if message else "holds" if findings and all(f.holds for f in findings) else "fails"
        taken = time.perf_counter() - begin
        words = (claim.id, claim.statement, claim.formula, claim.standing)
        entries.append(Entry(*words, verdict, tuple(findings), taken, message))
    return entries


def _short(number: float) -> str:
    return f"{number:.4g}"


def _plain(value: Any) -> Any:
    """Infinities and NaN as strings, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(finding: dict[str, Any]) -> dict[str, Any]:
    return {key: value if key == "quantity" else float(value) for key, value in finding.items()}
