"""Solvers of our own for stiff gradient flows, as diffrax solvers; nothing here knows what a network is."""

from saddleflow.solvers.controller import PredictiveController, amplified
from saddleflow.solvers.krylov import ConjugateBasis, conjugate_solve
from saddleflow.solvers.local_model import MAX_ASYMMETRY, LocalModel, Plain, PlainModel, asymmetry
from saddleflow.solvers.rosenbrock import Rosenbrock
from saddleflow.solvers.switching import Switching
from saddleflow.solvers.tableaus import RODAS4, RODAS4P, RODAS5P, Tableau
from saddleflow.solvers.work import CountingSolver, Work

__all__ = [
    "MAX_ASYMMETRY",
    "RODAS4",
    "RODAS4P",
    "RODAS5P",
    "ConjugateBasis",
    "CountingSolver",
    "LocalModel",
    "Plain",
    "PlainModel",
    "PredictiveController",
    "Rosenbrock",
    "Switching",
    "Tableau",
    "Work",
    "amplified",
    "asymmetry",
    "conjugate_solve",
]
