"""Figures as files."""

from pathlib import Path

from matplotlib.figure import Figure

from saddleflow._backend.files import written_whole

DPI = 200


def save_figure(figure: Figure, stem: str | Path, force: bool = False) -> list[Path]:
    """Write the figure as `stem`.png and `stem`.pdf, each whole or not at all, on the figure's own ground.

    ::

        plotting.save_figure(trajectory.plot(), "run")  # run.png and run.pdf

    Args:
        figure: of matplotlib.
        stem: the path without its ending.
        force: overwrite files that exist.

    Returns:
        The two paths.

    Raises:
        ValueError: a file that exists (without force), or cannot be written.
        OSError: the disk is full; nothing is half-written.
    """
    stem = Path(stem)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")]
    for path in paths:
        with written_whole(path, force) as temporary:
            figure.savefig(temporary, facecolor=figure.get_facecolor(), dpi=DPI, transparent=False)
    return paths
