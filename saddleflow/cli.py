"""The command line: `flow`, `sweep`, `figure`, `verify`, `gallery`, `explore`. It parses, calls, and prints."""

import difflib
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer
from rich.console import Console

import saddleflow as sf
from saddleflow._backend.checks import require
from saddleflow._backend.files import (
    check_folder,
    check_outputs,
    check_writable,
    remove_unfinished,
    write_netcdf,
    written_whole,
)
from saddleflow._backend.waiting import in_background, leave, leave_interrupted, wait
from saddleflow.problem.reading import split

app = typer.Typer(
    help="Gradient flow of deep linear networks, solved exactly as a stiff ODE.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

# What typer raises where words are not those of a command.
UsageError: Any = typer.BadParameter.__base__

# Seeds that `jax.random.key` takes.
LAST_SEED = 2**63 - 1

# Values that a range on the command line may have.
MOST_VALUES = 1_000_000

_NUMBERS = "1, 2, 3, 4, 5"
AXES = ("depth", "width", "gamma", "variance", "alpha", "seed", "rtol")  # what the command line makes dims of
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]
Rtol = Annotated[float, typer.Option(help="Relative tolerance of a step.")]
Shape = Annotated[str | None, typer.Option(help="Rows x columns of a random task; default: 10x10.")]
Rank = Annotated[int | None, typer.Option(help="Rank of a random task's target; default: 3.")]
Observed = Annotated[float | None, typer.Option(help="Observed share of a random task; default: 0.8.")]
HeldOut = Annotated[
    float | None, typer.Option(help="Share of the known entries of --data kept for the test cost; default: 0.1.")
]
Target = Annotated[float | None, typer.Option(help="Train cost at which a flow ends, if it falls so far.")]


class Progress(StrEnum):
    """How a command shows its progress."""

    auto = "auto"
    log = "log"
    off = "off"

    @property
    def option(self) -> bool | str:
        """The `progress` of the functions called."""
        if self == Progress.auto:
            return True if sys.stderr.isatty() else "log"
        return "log" if self == Progress.log else False


ProgressOption = Annotated[
    Progress, typer.Option(help="auto: a meter on a terminal, else as log: a line every five seconds on stderr.")
]

# After Ctrl-C threads have so many seconds to end what they write, and to remove what is not whole.
GRACE = 0.5


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(sf.__version__)
        raise typer.Exit


@app.command()
def flow(
    data: Annotated[Path | None, typer.Option(help="A matrix with gaps to fill: .csv, .npy or .parquet.")] = None,
    header: Annotated[bool, typer.Option("--header", help="The csv's first row holds names.")] = False,
    triplets: Annotated[
        str | None, typer.Option(help="Columns of a file with a rating a line, as user,item,rating.")
    ] = None,
    held_out: HeldOut = None,
    center: Annotated[bool, typer.Option("--center", help="Learn the matrix less the mean of its entries.")] = False,
    shape: Shape = None,
    rank: Rank = None,
    observed: Observed = None,
    depth: Annotated[int, typer.Option(help="Number of layers L.")] = 3,
    width: Annotated[int, typer.Option(help="Hidden width w.")] = 100,
    gamma: Annotated[float, typer.Option(help="The start's variance is w^-gamma.")] = 1.5,
    alpha: Annotated[float, typer.Option(help="Scales the start: alpha * theta_0.")] = 1.0,
    t1: Annotated[float | None, typer.Option(help="End of the flow; default: a certified minimum.")] = None,
    target_cost: Target = None,
    max_seconds: Annotated[float | None, typer.Option(help="Wall-clock budget in seconds.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Draws task, held-out entries and start.")] = 0,
    rtol: Rtol = 1e-4,
    out: Annotated[Path, typer.Option(help="Trajectory as NetCDF, a name in .nc; pictures lie beside it.")] = Path(
        "flow.nc"
    ),
    progress: ProgressOption = Progress.auto,
    force: Force = False,
) -> None:
    """Run one gradient flow, on a random matrix completion task or on your own matrix.

    With `--data` the gaps of the matrix are filled: the completed matrix lies beside the trajectory, with the labels
    of triplets. `--center` takes the mean of the observed entries off before the flow, and puts it back.

    Examples:
    * `saddleflow flow --depth 4 --gamma 2 --out run.nc`

    * `saddleflow flow --data ratings.csv --held-out 0.2 --max-seconds 60`

    * `saddleflow flow --data ratings.csv --triplets user,item,rating --center --width 64 --gamma 2 --t1 1e4`
    """
    of_task = {"shape": shape, "rank": rank, "observed": observed}
    _refuse_unused(data, of_task, {"header": header, "triplets": triplets, "held_out": held_out, "center": center})
    _require_netcdf(out)
    completed = out.with_name(f"{out.stem}_completed.csv")
    pictures = [out.with_suffix(kind) for kind in (".png", ".pdf")]
    check_outputs([out, *pictures, *([completed] if data else [])], force, "out", [data])
    key_task, key_start = jax.random.split(jax.random.key(seed))
    mean = 0.0
    if data is None:
        cost = _task(key_task, **of_task)
    else:
        names = None if triplets is None else _parse_triplets(triplets)
        table = sf.read_table(data, header=header, triplets=names)
        cost = split(table, held_out=0.1 if held_out is None else held_out, seed=seed)
        if center:
            cost, mean = cost.centered()
    start = alpha * sf.gaussian(key_start, depth=depth, width=width, shape=cost.shape, gamma=gamma)
    ends = {"t1": t1, "target_cost": target_cost, "max_seconds": max_seconds}
    trajectory = sf.gradient_flow(cost, start, rtol=rtol, progress=progress.option, **ends)
    trajectory.save(out, force=force)
    written = [out, *_draw(trajectory, out.with_suffix(""), force)]
    if data is not None:
        filled = table.where(table.notna(), trajectory.end_to_end[-1] + mean)
        labels = triplets is not None
        with written_whole(completed, force) as temporary:
            filled.to_csv(temporary, float_format="%.17g", header=labels, index=labels)
        written.append(completed)
    _report(trajectory, written, [] if data is None else _held_out_line(trajectory, cost))


@app.command()
def figure(
    number: Annotated[str, typer.Argument(help=f"Number of the figure in arXiv 2106.15933: {_NUMBERS}, or all.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Parameters, such as seed=2 width=50; a list as alphas=1.8,.6,.1.")
    ] = None,
    list_settings: Annotated[
        bool, typer.Option("--list-settings", help="List the parameters and their defaults; compute nothing.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for picture and data.")] = Path("figures"),
    progress: ProgressOption = Progress.auto,
    force: Force = False,
) -> None:
    """Compute and draw a figure of the paper, and judge the statements of its caption.

    Writes PNG, PDF and the data as NetCDF.

    Examples:
    * `saddleflow figure 1`

    * `saddleflow figure 4 --list-settings`

    * `saddleflow figure 4 alphas=1,.3,.1 seed=2 --out my_figures`
    """
    from saddleflow.figures import FIGURES
    from saddleflow.figures.common import targets

    known = {str(key) for key in FIGURES}
    require(number == "all" or number in known, "number", f"be one of {_NUMBERS}, or all", number)
    chosen = list(FIGURES) if number == "all" else [int(number)]
    arguments = {key: _parse_settings(settings or [], FIGURES[key].compute) for key in chosen}
    if list_settings:
        for key in chosen:
            typer.echo(f"figure {key}: {' '.join(_settings_of(FIGURES[key].compute, arguments[key]))}")
        return
    check_folder(out, "out")
    for path in [path for key in chosen for path in targets(key, out) if out.exists()]:
        check_writable(path, force, "out")
    for key in chosen:
        module = FIGURES[key]
        data = module.compute(progress=progress.option, **arguments[key])
        typer.echo(f"Figure {key}")
        for line in module.verdicts(data):
            typer.echo(f"  {line}")
        typer.echo(f"  written: {', '.join(map(str, module.write(data, out, force)))}")


def _defaults(function: Callable) -> dict[str, Any]:
    """The parameters of a figure, with their defaults."""
    parameters = inspect.signature(function).parameters
    return {name: p.default for name, p in parameters.items() if name != "progress"}  # an option of the command


def _settings_of(function: Callable, given: dict[str, Any]) -> list[str]:
    """The parameters of a figure as words `name=value`, as `_parse_settings` takes them."""
    values = (_defaults(function) | given).items()
    return [f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in values]


def _parse_settings(settings: list[str], function: Callable) -> dict[str, Any]:
    """Words `name=value` as keyword arguments of a function, of the types of its defaults."""
    defaults = _defaults(function)
    arguments = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        require(name in defaults and text, "settings", f"be name=value with a name of {sorted(defaults)}", setting)
        require(name not in arguments, "settings", "name each once", setting, "A list is written as name=1,2,3.")
        kind = type(defaults[name])
        try:
            if kind is tuple:
                arguments[name] = tuple(type(defaults[name][0])(word) for word in text.split(","))
            else:
                arguments[name] = kind(text)
        except ValueError as error:
            raise ValueError(f"`{name}` must read as {kind.__name__}, but got {text!r}.") from error
    return arguments


@app.command()
def sweep(
    grid: Annotated[list[str], typer.Argument(help=f"name=value, name=1,2,3 or name=0:10, of {', '.join(AXES)}.")],
    shape: Shape = None,
    rank: Rank = None,
    observed: Observed = None,
    task_seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Draws the task.")] = 0,
    data: Annotated[Path | None, typer.Option(help="A matrix with gaps instead: .csv, .npy or .parquet.")] = None,
    held_out: HeldOut = None,
    t1: Annotated[float | None, typer.Option(help="End of each flow; default: a certified minimum.")] = None,
    target_cost: Target = None,
    num_times: Annotated[int | None, typer.Option(help="Saved times, logarithmic up to t1.")] = None,
    reduce_width: Annotated[
        str | None,
        typer.Option(
            help="auto: narrower networks where they do as well; sample: draw the reduced networks, of any width."
        ),
    ] = None,
    store: Annotated[Path | None, typer.Option(help="A zarr folder of finished chunks, to go on from.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to run on.")] = None,
    out: Annotated[Path, typer.Option(help="The dataset as NetCDF, a name in .nc.")] = Path("sweep.nc"),
    progress: ProgressOption = Progress.auto,
    force: Force = False,
) -> None:
    """Run a grid of flows on a matrix completion task: every combination of the values given.

    Names: depth, width, gamma (or variance), alpha, seed, rtol. A list or a range becomes a dim of the dataset.

    Examples:
    * `saddleflow sweep gamma=0.75,1,1.5 width=10,100 seed=0:10 --store sweep.zarr`

    * `saddleflow sweep alpha=1e-1,1e-3,1e-5 seed=0:4 depth=3`
    """
    of_task = {"shape": shape, "rank": rank, "observed": observed}
    _refuse_unused(data, of_task, {"held_out": held_out})
    _require_netcdf(out)
    check_outputs([out], force, "out", [data, store])
    if store is not None:
        check_folder(store.parent, "store")
    axes: dict[str, Any] = {"depth": 3, "width": 100} | _parse_grid(grid)
    if data is None:
        cost = _task(jax.random.key(task_seed), **of_task)
    else:
        cost = sf.read_matrix(data, held_out=0.1 if held_out is None else held_out, seed=task_seed)
    client = None
    if scheduler is not None:
        from dask.distributed import Client

        client = Client(scheduler)
    axes |= {"reduce_width": reduce_width, "store": store, "client": client, "progress": progress.option}
    result = sf.sweep(cost, **axes, t1=t1, target_cost=target_cost, save_at=num_times)
    write_netcdf(result, out, force)
    reasons, counts = np.unique(result["stop_reason"].values, return_counts=True)
    ends = ", ".join(f"{count} {reason}" for reason, count in zip(reasons, counts, strict=True))
    typer.echo(f"Sweep over {dict(result['stop_reason'].sizes)}: {counts.sum()} lanes")
    typer.echo(f"  ends     : {ends}")
    typer.echo(f"  steps    : {int((result.num_accepted_steps + result.num_rejected_steps).sum())}")
    typer.echo(f"  lane use : {result.attrs['lane_utilisation']:.3f}")
    typer.echo(f"written: {out}")


@app.command()
def verify(
    full: Annotated[bool, typer.Option("--full/--quick", help="All sizes and seeds, or a few.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Check this claim; may be given several times.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the ledger as JSON, and as NetCDF beside it.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write a Markdown page with pictures.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="Measure nothing: read this JSON.")] = None,
    progress: ProgressOption = Progress.auto,
    force: Force = False,
) -> None:
    """Check every claim of the paper, and our own: predicted, measured, verdict.

    Exits with code 1 if a claim stated in the paper does not hold.

    Examples:
    * `saddleflow verify --quick`

    * `saddleflow verify --only escape-time --only symmetry --json ledger.json`

    * `saddleflow verify --ledger ledger.json --page claims.md`
    """
    require(json is None or json.suffix != ".nc", "json", "not end in .nc, the NetCDF's name beside it", str(json))
    for name, path in (("json", json), ("page", page)):
        if path is not None:
            check_writable(path, force, name)
    outputs = [path for path in (json, json and json.with_suffix(".nc"), page) if path is not None]
    from saddleflow import claims

    names = only or [claim.id for claim in claims.CLAIMS]
    pictures = [] if page is None else [claims.picture_path(page, name) for name in names]
    check_outputs(outputs + pictures, force, "json, page", [ledger])  # before minutes of measuring, not after
    if ledger is not None:
        require(not (full or only or json), "ledger", "come without --full, --only and --json", str(ledger))
        found = claims.Ledger.load_json(ledger)
    else:
        found = claims.verify("full" if full else "quick", only, progress.option)
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(found.table())
    for entry in found.entries:
        typer.echo(f"{entry.verdict:>6}  {entry.id} ({entry.standing}; {entry.seconds:.0f} s)")
    if json is not None:
        found.save_json(json, force=force)
        write_netcdf(found.to_xarray(), json.with_suffix(".nc"), force)
    if page is not None:
        outputs += claims.write_page(found, page, force=force)[1:]
    if outputs:
        typer.echo(f"written: {', '.join(map(str, outputs))}")
    if found.failures:
        raise typer.Exit(1)


@app.command()
def gallery(
    name: Annotated[str | None, typer.Argument(help="A case, or all; none lists them.")] = None,
    out: Annotated[Path | None, typer.Option(help="Draw a picture of each case into this folder.")] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write a Markdown page, its pictures in a folder beside it.")
    ] = None,
    progress: ProgressOption = Progress.auto,
    force: Force = False,
) -> None:
    """Run published experiments, and hold them against what their sources printed.

    Exits with code 1 if a case does not agree with its source.

    Examples:
    * `saddleflow gallery`

    * `saddleflow gallery A13 --out pictures`

    * `saddleflow gallery all --page docs/gallery.md --force`
    """
    from saddleflow import gallery as cases

    if name is None:
        require(out is None and page is None, "name", "come with --out and --page", name, "Take a case, or all.")
        for known in cases.names():
            typer.echo(f"{known}  {cases.case(known).title} ({cases.case(known).source.partition(',')[0]})")
        return
    chosen = cases.names() if name == "all" else [cases.case(name).name]
    _check_pictures(chosen, out, page, force)  # before minutes of running, not after
    results = cases.run_all(chosen, progress=progress.option)
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(cases.table(results))
    for result in results:
        typer.echo(f"{result.case.name}  {result.verdict} ({result.seconds:.1f} s)")
    written = [] if out is None else cases.write_pictures(results, out, force=force)
    written += [] if page is None else cases.write_page(results, page, force=force)
    if written:
        typer.echo(f"written: {', '.join(map(str, written))}")
    if not all(result.reproduced for result in results):
        raise typer.Exit(1)


@app.command()
def explore(
    host: Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any free one.")] = 2106,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Open no browser; the address is printed.")
    ] = False,
) -> None:
    """Serve a page with sliders: gradient flows from small starts, live, with theory laid over.

    Needs marimo: `pip install "saddleflow[explore]"`. It runs until Ctrl-C.

    Examples:
    * `saddleflow explore`

    * `saddleflow explore --port 0 --no-browser`
    """
    from saddleflow.explorer import server

    server.check_marimo()
    port = server.free_port(host) if port == 0 else port
    server.check_address(host, port)
    typer.echo(f"saddleflow explorer: http://{host}:{port}/ (Ctrl-C ends it)")
    server.serve(host, port, browser=not no_browser)


def _check_pictures(chosen: Sequence[str], out: Path | None, page: Path | None, force: bool) -> None:
    """Refuse a page or pictures that cannot be written."""
    from saddleflow import gallery as cases

    if page is not None:
        check_outputs([page], force, "page")
    for argument, folder in (("out", out), ("page", page and page.with_suffix(""))):
        if folder is not None:
            check_folder(folder, argument)
        if folder is not None and folder.exists():
            check_outputs([cases.picture_path(folder, name) for name in chosen], force, argument)


def _require_netcdf(out: Path) -> None:
    """Refuse a name that says something else than NetCDF, such as that of a picture beside it."""
    require(out.suffix == ".nc", "out", "end in .nc", str(out), f"For example {out.stem or 'out'}.nc.")


def _task(key: Any, shape: str | None, rank: int | None, observed: float | None) -> sf.MatrixCompletion:
    """The random task of the options, with their defaults."""
    sizes = _parse_shape("10x10" if shape is None else shape)
    share = 0.8 if observed is None else observed
    return sf.MatrixCompletion.random(key, shape=sizes, rank=3 if rank is None else rank, observed=share)


def _refuse_unused(data: Path | None, of_task: dict[str, Any], of_data: dict[str, Any]) -> None:
    """Refuse options that would be left aside: of a random task where there is `--data`, and the other way round."""
    unused, expected, remedy = of_task, "come without --data", "It draws a random task: leave it out, or --data."
    if data is None:
        unused, expected, remedy = of_data, "come with --data", "Give --data, a matrix with gaps."
    for name, value in unused.items():
        require(value is None or value is False, name, expected, value, remedy)


def _parse_grid(words: list[str]) -> dict[str, Any]:
    """Words such as gamma=0.75,1 as axes of a sweep."""
    axes: dict[str, Any] = {}
    for word in words:
        name, values = _parse_axis(word)
        require(name not in axes, "grid", "name each axis once", word, f"Values in a list: {name}=1,2,3.")
        axes[name] = values
    return axes


def _parse_axis(text: str) -> tuple[str, object]:
    name, equals, values = text.partition("=")
    require(equals and values, "grid", "read like gamma=0.75,1 or seed=0:10", text)
    remedy = ""
    if name not in AXES:
        options = {word.replace("-", "_"): word for word in ("t1", "target-cost", "num-times", "reduce-width")}
        near = difflib.get_close_matches(name, AXES, 1)
        remedy = f"Did you mean `{near[0]}`?" if near else ""
        remedy = f"It is an option: --{options[name]} {values}." if name in options else remedy
    require(name in AXES, "grid", f"name one of {', '.join(AXES)}", name, remedy)
    number = int if name in ("depth", "width", "seed") else float
    try:
        if ":" in values:
            first, last = map(int, values.split(":"))
            found = range(first, last)
            some = 0 < len(found) <= MOST_VALUES
            require(some, name, f"be a range of 1 to {MOST_VALUES} values", values, "A range ends before its last.")
            return name, list(found)
        found = [number(value) for value in values.split(",")]
    except ValueError as error:
        if str(error).startswith("`"):
            raise
        raise ValueError(f"`{name}` must be {number.__name__}s, as in 1,2,3 or 0:10, but got {values!r}.") from None
    return name, found if "," in values else found[0]


def _parse_shape(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    fits = len(parts) == 2 and all(part.strip().isdecimal() and int(part) > 0 for part in parts)
    require(fits, "shape", "read like 10x10, rows x columns, both positive", text)
    return int(parts[0]), int(parts[1])


def _parse_triplets(text: str) -> tuple[str, str, str]:
    names = tuple(name.strip() for name in text.split(","))
    require(len(names) == 3, "triplets", "name three columns, as user,item,rating", text)
    return names[0], names[1], names[2]


def _draw(trajectory: sf.Trajectory, stem: Path, force: bool) -> list[Path]:
    """The trajectory's picture as PNG and PDF."""
    figure = trajectory.plot()
    paths = sf.plotting.save_figure(figure, stem, force)
    sf.plotting.close(figure)
    return paths


def _held_out_line(trajectory: sf.Trajectory, cost: sf.MatrixCompletion) -> list[str]:
    """The error on the held-out entries, beside that of the mean of the observed ones."""
    if trajectory.test_cost is None:
        return []
    errors = np.sqrt(trajectory.test_cost)
    best = errors.argmin()
    centered, _ = cost.centered()
    mean = float(centered.test(np.zeros(cost.shape))) ** 0.5
    least = f"; least {errors[best]:.4g} at t = {trajectory.time[best]:.4g}" if best < len(errors) - 1 else ""
    return [f"  held out  : error (RMSE) {errors[-1]:.4g}{least}; of the mean of the observed entries {mean:.4g}"]


def _report(trajectory: sf.Trajectory, written: list[Path], lines: list[str]) -> None:
    typer.echo("\n".join([repr(trajectory), *lines]))
    typer.echo(f"written: {', '.join(map(str, written))}")


def main() -> None:
    """Entry point: one clear line and a non-zero exit on bad input; on Ctrl-C, too, and nothing half-written.

    The commands run in a thread of their own, so that the main one can hear Ctrl-C whatever XLA is doing.
    """
    os.environ["MPLBACKEND"] = "agg"  # no window, whatever there is to show one on
    stopped, running = threading.Event(), None
    try:
        running = in_background(_run, stopped)
        leave(wait(running))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stopped.set()
        if running is not None:
            _let_end(running)
        remove_unfinished()
        typer.secho("saddleflow: interrupted", err=True, fg="red")
        leave_interrupted()


def _run() -> int:
    """Run a command; its exit code."""
    try:
        code = app(prog_name="saddleflow", standalone_mode=False)
    except SystemExit as end:  # of shell completion
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except UsageError as error:
        return _usage(error)
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        line = " ".join(str(error).split("\n")) or type(error).__name__
        typer.secho(f"saddleflow: {line}", err=True, fg="red")
        return 2
    return code if isinstance(code, int) else 0


def _usage(error: Any) -> int:
    """Say in one line which words are not those of a command, and where the right ones are told; the exit code."""
    context = error.ctx
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(context.get_help(), err=True)
        return 2
    command = context.command_path if context is not None else "saddleflow"
    line = " ".join(error.format_message().split()).rstrip(".")
    typer.secho(f"saddleflow: {line}. See `{command} --help`.", err=True, fg="red")
    return 2


def _let_end(running: Future) -> None:
    """Wait for a command that was told to stop, but not for one that is being compiled."""
    begin = time.perf_counter()
    while not running.done() and time.perf_counter() - begin < GRACE:
        time.sleep(0.02)
