"""The colours of all pictures; they need no matplotlib."""

import numpy as np

from saddleflow._backend.checks import require_integer

# Okabe and Ito's colours: told apart by colour-blind readers, legible on white and on black.
BLUE, ORANGE, GREEN, PURPLE, RED, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY)
MUTED = "#808080"
# Text and axes on an unknown ground: as far from white as from black, 4.5 to 1 on both.
INK = "#767676"


def mode_colour(index: int | np.integer) -> str:
    """The colour of a singular value by its place, the same in every picture; beyond the sixth a muted one.

    ::

        plotting.mode_colour(0)  # '#0072B2', of the largest

    Args:
        index: 0 for the largest.

    Raises:
        ValueError: no integer, or a negative one.
    """
    require_integer("index", index, 0)
    return CYCLE[index] if index < len(CYCLE) else MUTED
