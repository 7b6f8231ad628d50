"""A page from a ledger: every claim with its formula, prediction against measurement drawn, verdict."""

import math
from pathlib import Path

from saddleflow import plotting
from saddleflow._backend.files import written_whole
from saddleflow.claims.ledger import Entry, Finding, Ledger

MARKS = {"holds": "holds", "fails": "**fails**", "error": "**ended in an error**"}
ABOUT = """\
Each section has a claim, its formula, a picture and a table. In the pictures dots are measurements with their
95 % intervals over seeds, bands are what the claim allows, and ticks are predictions. All are divided by the
prediction, or by the far end of the bound where the prediction is zero. "Stated in the paper" means that the
abstract or a caption says so. "Recalled" means that we remember it from the body of the paper. "Ours" is
derived here."""
# Why a claim is known to fail; the page says so beside its verdict.
REASONS = {
    "lazy-width": (
        "The time scales as predicted, but its spread over seeds does not shrink as fast as the claim asks. "
        "The flows start from different end-to-end matrices, of size w^((L-1-gamma L)/2). For L = 4 that does "
        "not shrink at all at gamma = 3/4, and only as w^(-1/4) at gamma = 7/8: by a factor of 0.18 over "
        "three decades of the width, where the claim asks for 0.1."
    ),
}


def write_page(ledger: Ledger, path: str | Path, *, force: bool = False) -> list[Path]:
    """Write the page as Markdown, and beside it one picture a claim (`stem_id.png`), each whole or not at all.

    Args:
        ledger: from `verify`, or read with `Ledger.load_json`.
        path: of the page, `.md`.
        force: overwrite files that exist.

    Returns:
        The paths written.

    Raises:
        ValueError: a file that exists (without force), a folder that does not.
    """
    path = Path(path)
    held = sum(entry.verdict == "holds" for entry in ledger.entries)
    lines = [
        "# Claims",
        f"{held} of {len(ledger.entries)} claims hold.",
        *(_exception(entry) for entry in ledger.entries if entry.verdict != "holds"),
        ABOUT,
        f"Written by `saddleflow verify --{ledger.size} --page`, with "
        + ", ".join(f"{name} {version}" for name, version in ledger.versions.items())
        + ".",
    ]
    written = []
    for entry in ledger.entries:
        lines += [
            f"## {entry.id}",
            f"{entry.statement}.",
            f"$$\n{entry.formula}\n$$",
            f"Standing: {entry.standing}. Verdict: {MARKS[entry.verdict]}. {entry.seconds:.0f} s.",
        ]
        if entry.message:
            lines.append(f"`{entry.message}`")
        if not entry.findings:
            continue
        picture = picture_path(path, entry.id)
        _draw(entry, picture, force)
        written.append(picture)
        lines.append(f"![{entry.id}: predictions and measurements]({picture.name})")
        rows = [
            "| quantity | predicted | measured | must lie in | |",
            "|---|---|---|---|---|",
            *map(_row, entry.findings),
        ]
        lines.append("\n".join(rows))
    with written_whole(path, force) as temporary:
        temporary.write_text("\n\n".join(lines) + "\n")
    return [path, *written]


def picture_path(page: Path, claim: str) -> Path:
    """Where the page has the picture of a claim."""
    return page.with_name(f"{page.stem}_{claim}.png")


def _exception(entry: Entry) -> str:
    """A claim that does not hold: its name, what was missed, and why, where that is known."""
    missed = "; ".join(finding.quantity.replace("|", "\\|") for finding in entry.findings if not finding.holds)
    verb = "fails" if entry.verdict == "fails" else "ended in an error"
    bounds = f" Out of bounds: {missed}." if missed else ""
    words = f"**[{entry.id}](#{entry.id})** ({entry.standing}) {verb}.{bounds}"
    return f"{words} {REASONS[entry.id]}" if entry.id in REASONS else words


def _row(finding: Finding) -> str:
    error = f" ± {finding.error:.2g}" if finding.error else ""
    words = finding.quantity.replace("|", "\\|")
    verdict = "holds" if finding.holds else "**fails**"
    bounds = f"[{finding.low:.4g}, {finding.high:.4g}]"
    return f"| {words} | {finding.predicted:.4g} | {finding.measured:.4g}{error} | {bounds} | {verdict} |"


def _draw(entry: Entry, path: Path, force: bool) -> None:
    with plotting.style():
        figure, axes = plotting.subplots(figsize=(6.4, 0.6 + 0.24 * len(entry.findings)))
        for place, finding in enumerate(entry.findings):
            _draw_finding(axes, place, finding)
        axes.set_yticks(range(len(entry.findings)), [finding.quantity for finding in entry.findings])
        axes.set(ylim=(len(entry.findings) - 0.5, -0.5), xlim=(-0.5, 2.5), xlabel="measured / predicted")
        axes.tick_params(axis="y", length=0)
        with written_whole(path, force) as temporary:
            figure.savefig(temporary)
        plotting.close(figure)


def _draw_finding(axes: "plotting.Axes", place: int, finding: Finding) -> None:
    ends = [abs(x) for x in (finding.low, finding.high) if math.isfinite(x) and x != 0]
    unit = finding.predicted or max(ends, default=1.0)
    low, high = sorted(max(min(x / unit, 9.0), -9.0) for x in (finding.low, finding.high))
    axes.fill_between([low, high], place - 0.35, place + 0.35, color=plotting.MUTED, alpha=0.2, lw=0)
    axes.plot([finding.predicted / unit] * 2, [place - 0.35, place + 0.35], color=plotting.INK, lw=1)
    colour = plotting.BLUE if finding.holds else plotting.RED
    at = finding.measured / unit
    if not -0.5 <= at <= 2.5:  # beyond the frame: an arrow at its edge
        axes.plot(2.45 if at > 0 else -0.45, place, ">" if at > 0 else "<", color=colour, ms=5, clip_on=False)
        return
    axes.errorbar(at, place, xerr=abs(finding.error / unit), fmt="o", color=colour, ms=4, lw=1, capsize=2)
