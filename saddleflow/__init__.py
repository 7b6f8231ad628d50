"""Gradient flow of deep linear networks, solved exactly as a stiff ODE.

Small initialisation is the whole subject, and products of small layers vanish in float32, so importing this
package turns JAX's float64 on. Nothing else happens at import: no backend is started, and every name below is loaded
when it is first used (`lazy_loader` reads them from `__init__.pyi`).
"""

import lazy_loader as _lazy

from saddleflow._backend.precision import enable_float64 as _enable_float64

__version__ = "0.1.0"

_enable_float64()

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
