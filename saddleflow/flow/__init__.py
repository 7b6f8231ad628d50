"""One flow of one network: its options, its compiled loop, what is followed on the way, the trajectory it leaves."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, submodules=["observables"])
