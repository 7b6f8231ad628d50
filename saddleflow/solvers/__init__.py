"""Stiff solvers for gradient flows, as diffrax solvers: no network, and nothing else of saddleflow, is needed.

They solve `dy/dt = f(t, y)` wherever the Jacobian of f in y is symmetric, matrix-free, in any floating-point dtype.
Solver and step controller get the same tolerances:

>>> import diffrax
>>> from saddleflow.solvers import PredictiveController, Rosenbrock, Switching
>>> rates = 10.0 ** jnp.arange(6)
>>> solution = diffrax.diffeqsolve(
...     diffrax.ODETerm(lambda t, y, args: -rates * y),
...     Switching(Rosenbrock(rtol=1e-6, atol=1e-8)),
...     t0=0.0,
...     t1=1.0,
...     dt0=1e-3,
...     y0=jnp.ones(6),
...     stepsize_controller=PredictiveController(rtol=1e-6, atol=1e-8),
... )
>>> print(f"{solution.ys[0, 0]:.5f}")  # exp(-1)
0.36788

`docs/solvers.md` goes on from there: a partial differential equation, preconditioners, single precision.
"""

from saddleflow.solvers.controller import PredictiveController, amplified, scaled_size
from saddleflow.solvers.krylov import ConjugateBasis, SolveReport, conjugate_solve
from saddleflow.solvers.local_model import MAX_ASYMMETRY, LocalModel, Plain, PlainModel, asymmetry, max_asymmetry
from saddleflow.solvers.ndf import NDF, NDFState
from saddleflow.solvers.rosenbrock import Rosenbrock
from saddleflow.solvers.support import Support, mean_norm
from saddleflow.solvers.switching import Switching
from saddleflow.solvers.tableaus import RODAS4, RODAS4P, RODAS5P, Tableau
from saddleflow.solvers.work import CountingSolver, Work

__all__ = [
    "MAX_ASYMMETRY",
    "NDF",
    "RODAS4",
    "RODAS4P",
    "RODAS5P",
    "ConjugateBasis",
    "CountingSolver",
    "LocalModel",
    "NDFState",
    "Plain",
    "PlainModel",
    "PredictiveController",
    "Rosenbrock",
    "SolveReport",
    "Support",
    "Switching",
    "Tableau",
    "Work",
    "amplified",
    "asymmetry",
    "conjugate_solve",
    "max_asymmetry",
    "mean_norm",
    "scaled_size",
]
