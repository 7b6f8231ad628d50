"""The settings of the explorer: one frozen record, checked, and to and from the parameters of a link."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saddleflow._backend.checks import require

TASKS = {
    "completion": "matrix completion",
    "teacher": "random teacher",
    "diagonal": "diagonal teacher",
    "identity": "identity teacher",
}
MODELS = {"linear": "deep linear network", "tanh": "tanh network"}
SCALES = {"gamma": "variance w^-gamma", "alpha": "factor alpha"}
AXES = {"t": "time t", "log t": "log time", "arc length": "path length"}

# A share of observed entries is part of a compiled program, so there are few.
OBSERVED = (0.5, 0.65, 0.8)

# Rows and columns of every task: one size, so that few programs serve all settings.
SIZE = 10

DEPTHS = (1, 5)
WIDTHS = (1, 1_000_000)
RANKS = (1, SIZE)
GAMMAS = (0.0, 3.0)
ALPHAS = (1e-6, 10.0)
SEEDS = (0, 10_000)

# Positions of the marker along the run.
LAST_POSITION = 100

# Networks up to this width run as they are; wider ones are reduced (`saddleflow.sample_reduced`).
WIDEST_FULL = 40


@dataclass(frozen=True)
class Settings:
    """All that the page shows follows from these; every one is a parameter of the link.

        settings = Settings(depth=4, gamma=2.0)
        Settings.from_query(settings.to_query()) == settings

    Attributes:
        task: a key of `TASKS`.
        rank: rank of the target.
        observed: share of observed entries, of matrix completion alone.
        task_seed: draws target and observed entries.
        model: a key of `MODELS`.
        depth: number of layers L.
        width: hidden width w.
        scale: which of gamma and alpha sets the size of the start.
        gamma: the start's entries have variance w^-gamma.
        alpha: the start is alpha times that of gamma = 1.
        seed: draws the start.
        axis: what runs along the pictures, a key of `AXES`.
        theory: whether theory is laid over the run.
        position: of the marker, in per cent of the run's rows.

    Raises:
        ValueError: a setting out of its range; a tanh network wider than `WIDEST_FULL`.
    """

    task: str = "completion"
    rank: int = 3
    observed: float = 0.8
    task_seed: int = 3
    model: str = "linear"
    depth: int = 4
    width: int = 100
    scale: str = "gamma"
    gamma: float = 2.0
    alpha: float = 0.1
    seed: int = 0
    axis: str = "t"
    theory: bool = True
    position: int = 50

    def __post_init__(self):
        for name, known in (("task", TASKS), ("model", MODELS), ("scale", SCALES), ("axis", AXES)):
            require(getattr(self, name) in known, name, f"be one of {', '.join(known)}", getattr(self, name))
        require(self.observed in OBSERVED, "observed", f"be one of {', '.join(map(str, OBSERVED))}", self.observed)
        ranges = {"rank": RANKS, "depth": DEPTHS, "width": WIDTHS, "gamma": GAMMAS, "alpha": ALPHAS}
        ranges |= {"seed": SEEDS, "task_seed": SEEDS, "position": (0, LAST_POSITION)}
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            require(least <= value <= most, name, f"be from {least:g} to {most:g}", value)
        if self.model == "tanh":
            remedy = "Wider networks are reduced, which holds for linear ones alone: take model=linear."
            require(self.width <= WIDEST_FULL, "width", f"be at most {WIDEST_FULL} for tanh", self.width, remedy)

    @property
    def is_full(self) -> bool:
        """Whether the network runs as it is; else it is reduced."""
        return self.depth == 1 or self.width <= WIDEST_FULL

    @property
    def of_task(self) -> "Settings":
        """The settings that the task depends on; the others at their defaults."""
        return self._only("task", "rank", "observed", "task_seed")

    @property
    def of_path(self) -> "Settings":
        """The settings that the greedy path depends on; the others at their defaults."""
        return self._only("task", "rank", "observed", "task_seed", "depth")

    @property
    def of_run(self) -> "Settings":
        """The settings that the run depends on; the others at their defaults."""
        return dataclasses.replace(self, axis="t", theory=True, position=50)

    def _only(self, *names: str) -> "Settings":
        return Settings(**{name: getattr(self, name) for name in names})

    def to_query(self) -> dict[str, str]:
        """All settings as the parameters of a link."""
        return {name: _text(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_query(cls, query: Mapping[str, Any]) -> "Settings":
        """The settings of a link; what it does not name has its default.

        Raises:
            ValueError: a parameter that is not known, cannot be read, or is out of its range.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        found = {}
        for name, text in query.items():
            require(name in fields, "link", f"name settings: {', '.join(fields)}", name)
            found[name] = _read(name, text, type(fields[name].default))
        return cls(**found)


def _text(value: Any) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _read(name: str, text: Any, kind: type) -> Any:
    """A value of a link; what is given twice comes as a list."""
    require(isinstance(text, str), name, "be given once in a link", text)
    if kind is bool:
        require(text in ("on", "off"), name, "be on or off", text)
        return text == "on"
    if kind is str:
        return text
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    word = "an integer" if kind is int else "a number"
    require(math.isfinite(value), name, f"be {word}", text)
    return value
