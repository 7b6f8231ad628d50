"""What the page is made of: controls, the run with its progress, results, downloads. Each takes marimo as `mo`."""

import html
import time
from collections.abc import Mapping
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from saddleflow._backend.waiting import in_background
from saddleflow.explorer import pictures, runs
from saddleflow.explorer.state import (
    ALPHAS,
    AXES,
    DEPTHS,
    GAMMAS,
    LAST_POSITION,
    MODELS,
    OBSERVED,
    RANKS,
    SCALES,
    SEEDS,
    TASKS,
    WIDEST_FULL,
    Settings,
)
from saddleflow.flow.state import StopReason

# Widths and alphas that the sliders have; a link may have others.
WIDTH_STEPS = [
    1,
    2,
    3,
    5,
    10,
    20,
    30,
    40,
    50,
    70,
    100,
    200,
    300,
    500,
    *(k * 10**p for p in (3, 4, 5) for k in (1, 3)),
]
WIDTH_STEPS += [10**6]
ALPHA_STEPS = [float(f"{k}e{p}") for p in range(-6, 1) for k in (1, 2, 5)] + [10.0]

# Seconds after which the page says that it is at work: sooner, the pictures would jump at every move of a slider.
QUIET = 0.8

# Seconds after which it says that it compiles, even where the programs should be there: tiny starts, for one, take
# programs of their own.
LONG = 4.0

# Of `Play`: per cent of the rows per tick, and the time between ticks.
STRIDE, TICK = 2, "500ms"

STYLE = """
<style>
.sf-head {margin: 0 0 .6rem 0}
.sf-head h1 {font-size: 1.35rem; margin: 0 0 .2rem 0; font-weight: 600}
.sf-head p {margin: 0; opacity: .75; font-size: .9rem}
.sf-controls {display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .6rem 1.4rem}
.sf-group {min-width: 0; display: flex; flex-direction: column; gap: .35rem}
.sf-group > b {font-size: .72rem; letter-spacing: .05em; text-transform: uppercase; opacity: .6}
.sf-control {display: flex; align-items: center; gap: .7rem}
.sf-control > span {flex: 0 0 4.2rem}
.sf-panels {display: grid; grid-template-columns: minmax(0, 1fr); gap: .4rem 1rem}
@media (min-width: 700px) {.sf-panels {grid-template-columns: repeat(2, minmax(0, 1fr))}}
@media (min-width: 1200px) {.sf-panels {grid-template-columns: repeat(3, minmax(0, 1fr))}}
.sf-panels svg {width: 100%; height: auto; display: block}
.sf-panels .marker {stroke: #D55E00; stroke-width: 1.2; fill: #D55E00}
.sf-panels line.marker {stroke-width: .8; opacity: .55}
.sf-now {display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; font-variant-numeric: tabular-nums; font-size: .92rem}
.sf-now span b {font-weight: 600}
.sf-table {border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums}
.sf-table th, .sf-table td {padding: .15rem .7rem .15rem 0; text-align: right; font-weight: 400}
.sf-table th {opacity: .65}
.sf-wide {overflow-x: auto}
.sf-play {display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; align-items: center}
.sf-long {flex: 1 1 8rem; min-width: 0}
.sf-note {font-size: .82rem; opacity: .75; margin: .3rem 0}
</style>
"""


class Place:
    """Where the marker is, as a tick of the clock finds it: nothing runs again when it moves."""

    def __init__(self, position: int):
        self.position = position

    def next(self) -> int:
        """One stride on; from the end back to the start."""
        return 0 if self.position >= LAST_POSITION else min(self.position + STRIDE, LAST_POSITION)


def read_link(mo: Any) -> tuple[Settings, str | None]:
    """The settings of the link, and what is wrong with it: then they are the defaults."""
    try:
        return Settings.from_query(mo.query_params().to_dict()), None
    except ValueError as error:
        return Settings(), f"The link was not understood, so the page shows its defaults. {error}"


def write_link(mo: Any, found: runs.Result | None, position: int) -> None:
    """Have the address of the page hold the settings that it shows."""
    if found is None:
        return
    link = mo.query_params()
    for name, text in replace(found.settings, position=position).to_query().items():
        if link.get(name) != text:
            link.set(name, text)


def make_controls(mo: Any, first: Settings) -> Any:
    """A control for every setting but the position of the marker, which has a slider of its own."""

    def choice(name: str, options: Mapping[str, str]) -> Any:
        texts = {text: key for key, text in options.items()}
        return mo.ui.dropdown(texts, value=options[getattr(first, name)], full_width=True)

    def slider(name: str, ends: tuple[float, float], step: float, label: str) -> Any:
        value = getattr(first, name)
        return mo.ui.slider(*ends, step, value=value, debounce=True, show_value=True, full_width=True, label=label)

    def steps(name: str, known: list, label: str) -> Any:
        value = getattr(first, name)
        known = sorted({*known, value})
        return mo.ui.slider(steps=known, value=value, debounce=True, show_value=True, full_width=True, label=label)

    def seed(name: str) -> Any:
        return mo.ui.number(*SEEDS, 1, value=getattr(first, name), debounce=True)

    return mo.ui.dictionary(
        {
            "task": choice("task", TASKS),
            "rank": slider("rank", RANKS, 1, "rank of the target"),
            "observed": steps("observed", list(OBSERVED), "observed share (completion)"),
            "task_seed": seed("task_seed"),
            "model": choice("model", MODELS),
            "depth": slider("depth", DEPTHS, 1, "depth L"),
            "width": steps("width", WIDTH_STEPS, "width w"),
            "scale": choice("scale", SCALES),
            "gamma": slider("gamma", GAMMAS, 0.05, "gamma"),
            "alpha": steps("alpha", [a for a in ALPHA_STEPS if ALPHAS[0] <= a <= ALPHAS[1]], "alpha"),
            "seed": seed("seed"),
            "axis": choice("axis", AXES),
            "theory": mo.ui.switch(value=first.theory, label="theory laid over"),
        }
    )


# What stands beside controls whose own label would not fit there.
LABELS = {
    "task": "task",
    "task_seed": "task seed",
    "model": "model",
    "scale": "set by",
    "seed": "seed",
    "axis": "along",
}

GROUPS = {
    "task": ("task", "rank", "observed", "task_seed"),
    "network": ("model", "depth", "width"),
    "start": ("scale", "gamma", "alpha", "seed"),
    "picture": ("axis", "theory"),
}


def header(mo: Any, controls: Any, trouble: str | None) -> Any:
    """Title and controls; controls that the others leave without effect are left out."""
    values = controls.value
    idle = {"alpha" if values["scale"] == "gamma" else "gamma"}
    idle |= set() if values["task"] == "completion" else {"observed"}
    idle |= {"task_seed"} if values["task"] in ("diagonal", "identity") else set()
    groups = ""
    for title, names in GROUPS.items():
        shown = "".join(_labelled(name, controls.elements[name]) for name in names if name not in idle)
        groups += f'<div class="sf-group"><b>{title}</b>{shown}</div>'
    line = "Gradient flow from small starts: the cost waits at saddles, and the rank grows step by step."
    title = f'<div class="sf-head"><h1>saddleflow explorer</h1><p>{line}</p></div>'
    parts = [mo.Html(f'{STYLE}{title}<div class="sf-controls">{groups}</div>')]
    if trouble is not None:
        parts.append(mo.callout(trouble, kind="warn"))
    return mo.vstack(parts)


def _labelled(name: str, control: Any) -> str:
    label = f"<span>{LABELS[name]}</span>" if name in LABELS else ""
    return f'<div class="sf-control" data-control="{name}">{label}<div class="sf-long">{control}</div></div>'


def compute(mo: Any, values: Mapping[str, Any], position: int) -> tuple[runs.Result | None, Any]:
    """The result of the controls, or what is wrong with them, in words."""
    try:
        settings = Settings(**values)
    except ValueError as error:
        return None, mo.callout(str(error), kind="warn")
    new = runs.is_new(settings)
    begin = time.perf_counter()
    computing = in_background(lambda: _compute(settings, position))
    wait([computing], QUIET)
    if not computing.done():
        with mo.status.spinner(title="solving", remove_on_exit=True) as spinner:
            while not computing.done():
                time.sleep(0.02)
                spent = time.perf_counter() - begin
                if spent > (QUIET if new else LONG):
                    spinner.update(title="compiling, first time only", subtitle=f"{spent:.0f} s")
    try:
        found = computing.result()
    except (ValueError, RuntimeError, MemoryError) as error:
        return None, mo.callout(str(error) or type(error).__name__, kind="danger")
    spent = time.perf_counter() - begin
    return found, mo.Html(
        f'<p class="sf-note" data-seconds="{spent:.3f}" data-made="{begin}">computed in {spent:.2f} s</p>'
    )


def _compute(settings: Settings, position: int) -> runs.Result:
    """The result, and the pictures of it, so that all work is done where progress is shown."""
    found = runs.result(settings)
    beside = in_background(lambda: runs.spectrum(settings, found.row(position)))
    for name in pictures.PANELS:
        pictures.picture(name, found)
    beside.result()
    pictures.spectrum_picture(settings, found.row(position))
    runs.remember(settings)
    return found


def marker(mo: Any, position: int) -> Any:
    """The slider of the marker."""
    return mo.ui.slider(
        0, LAST_POSITION, 1, value=position, full_width=True, label="along the run, per cent of its steps"
    )


def clock(mo: Any, playing: bool) -> Any:
    """What ticks while the marker plays."""
    return mo.ui.refresh(options=[TICK], default_interval=TICK) if playing else mo.ui.refresh(options=[TICK])


def beside(mo: Any, marker: Any, playing: Any, clock: Any) -> Any:
    """The controls of the marker side by side; the clock is there, unseen, while it ticks."""
    ticking = f'<div style="display: none">{clock}</div>' if playing.value else ""
    return mo.Html(f'<div class="sf-play"><div>{playing}</div><div class="sf-long">{marker}</div>{ticking}</div>')


def results(mo: Any, found: runs.Result | None, position: int, shown: Any) -> Any:
    """Numbers at the marker, pictures, plateaus, what theory says.

    Args:
        mo: marimo.
        found: the result, or None where there is none.
        position: of the marker.
        shown: the controls of the marker.
    """
    if found is None:
        return None
    row = found.row(position)
    panels = "".join(
        f"<div data-panel={name}>{pictures.picture(name, found).at(row)}</div>" for name in pictures.PANELS
    )
    panels += f"<div data-panel=spectrum>{pictures.spectrum_picture(found.settings, row).svg}</div>"
    words = "".join(f'<p class="sf-note">{html.escape(note)}</p>' for note in notes(found))
    panels += f"<div data-panel=words>{_table(found)}{words}</div>"
    return mo.vstack(
        [
            shown,
            mo.Html(_now(found, row)),
            mo.Html(f'<div class="sf-panels">{panels}</div>'),
        ]
    )


def _now(found: runs.Result, row: int) -> str:
    """The numbers at the marker."""
    run = found.trajectory
    numbers = {"t": f"{run.time[row]:.5g}", "train cost": f"{run.train_cost[row]:.4g}"}
    if run.test_cost is not None:
        numbers["test cost"] = f"{run.test_cost[row]:.4g}"
    numbers["rank"] = str(int(run.rank[row]))
    values = run.singular_values
    if values is not None:
        numbers["singular values"] = ", ".join(f"{value:.3g}" for value in values[row][:4]) + ", ..."
    spans = "".join(f"<span>{name} <b>{text}</b></span>" for name, text in numbers.items())
    return f'<div class="sf-now" data-row="{row}">{spans}</div>'


def _table(found: runs.Result) -> str:
    """The plateaus, with what theory says beside."""
    visits = found.trajectory.saddles(stationary_points=False)
    if not visits:
        return '<p class="sf-note">No plateau: the cost falls without waiting.</p>'
    levels, escapes = [cost for _, cost in found.predictions.levels], found.predictions.escape_times
    names = ["plateau", "cost", "level, theory", "escape at t", "escape, theory"]
    rows = ""
    for index, visit in enumerate(visits):
        level = min(levels, key=lambda cost: abs(cost - visit.cost), default=None)
        cells = [
            pictures.plateau_name(visit.rank),
            f"{visit.cost:.4g}",
            "" if level is None else f"{level:.4g}",
            f"{visit.escape_time:.5g}",
            f"{escapes[index]:.5g}" if index < len(escapes) else "",
        ]
        rows += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    head = "".join(f"<th>{name}</th>" for name in names)
    return f'<div class="sf-wide"><table class="sf-table"><tr>{head}</tr>{rows}</table></div>'


def notes(found: runs.Result) -> list[str]:
    """How the run ended and what is drawn, in words."""
    run, settings = found.trajectory, found.settings
    steps, end = run.stats["num_steps"], run.time[-1]
    lines = [f"{steps} steps of the solver. The run ended at t = {end:.5g}: {StopReason[run.stop_reason].meaning}"]
    if not settings.is_full:
        sizes = ", ".join(map(str, run.configuration["reduced_widths"]))
        lines.append(
            f"Width {settings.width} is above {WIDEST_FULL}: of its hidden spaces {sizes} directions "
            "are drawn (saddleflow.sample_reduced). The error of that is not estimated here."
        )
    if found.predictions.levels:
        lines.append("Green: theory. Dashed: levels of the plateaus; dotted: times of escapes.")
    return lines + list(found.predictions.notes)


def downloads(mo: Any, found: runs.Result | None, position: int) -> Any:
    """Buttons for the data and the figure; files are made when they are asked for."""
    if found is None:
        return None
    buttons = [mo.download(lambda: netcdf(found), "explorer.nc", "application/x-netcdf", label="data (NetCDF)")]
    for kind, mime in pictures.FORMATS.items():

        def make(kind: str = kind) -> bytes:
            return pictures.whole(found, found.row(position), kind)

        buttons.append(mo.download(make, f"explorer.{kind}", mime, label=f"figure ({kind.upper()})"))
    return mo.hstack(buttons, justify="start", wrap=True)


def netcdf(found: runs.Result) -> bytes:
    """The run as a NetCDF file, as `save` of a trajectory writes it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "explorer.nc"
        found.trajectory.save(path)
        return path.read_bytes()
