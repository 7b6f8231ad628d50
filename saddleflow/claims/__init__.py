"""Every claim of arXiv 2106.15933 that could be read or is recalled, and ours beside it: predicted, measured, judged.

`verify` runs the experiments. A claim that fails stays in the ledger as failed, with its measurement.
"""

from collections.abc import Sequence

from saddleflow._backend.waiting import interruptible
from saddleflow.claims import distances, first_path, landscape, plateaus, regimes
from saddleflow.claims.ledger import Claim, Entry, Finding, Ledger
from saddleflow.claims.ledger import verify as _verify
from saddleflow.claims.page import picture_path, write_page

CLAIMS: tuple[Claim, ...] = (
    *distances.CLAIMS,
    *first_path.CLAIMS,
    *landscape.CLAIMS,
    *plateaus.CLAIMS,
    *regimes.CLAIMS,
)


@interruptible
def verify(size: str = "quick", only: Sequence[str] | None = None, progress: bool | str = True) -> Ledger:
    """Run the experiments of all claims, or of some; see `ledger.verify`.

    Args:
        size: "quick" (minutes) or "full" (an hour).
        only: ids of the claims to check; None: all.
        progress: a meter, or "log": lines for a log, as in `gradient_flow`.

    Returns:
        The ledger. Experiments are seeded: the same numbers every time on one machine.

    Raises:
        ValueError: another size, or an id that no claim has.
    """
    return _verify(CLAIMS, size, only, progress)


__all__ = ["CLAIMS", "Claim", "Entry", "Finding", "Ledger", "picture_path", "verify", "write_page"]
