"""What is solved: costs, their curvature, a user's data; networks, their symmetries, geometry, stationary points."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, submodules=["activations"])
