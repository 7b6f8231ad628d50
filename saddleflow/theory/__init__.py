"""Closed forms and asymptotics of the gradient flow of deep linear networks.

NumPy float64 arrays in, NumPy float64 arrays out. Of the rest of saddleflow only the checks of arguments are imported
here, so a test that compares a solver of saddleflow with a function of this package compares two independent things.

Time is that of the flow dtheta/dt = -grad L(theta), L(theta) = C(W_L ... W_1); each docstring states the cost
C. Each also states its standing: *recalled* (from memory, of a source that could not be read, with a
confidence), *derived* (by us), *checked* (numerically, against something independent).
"""

from saddleflow.theory.balanced import balanced_flow, balanced_vector_field
from saddleflow.theory.distances import (
    DistanceBound,
    NearestPoint,
    distance_exponents,
    distance_to_minima,
    distance_to_saddle,
)
from saddleflow.theory.escape import (
    blow_up_time,
    escape_direction,
    escape_norm,
    escape_speed,
    measured_escape_speed,
    waiting_time_ratio,
)
from saddleflow.theory.homogeneous import HomogeneousEscape, homogeneous_escape, misalignment_rate
from saddleflow.theory.modes import deep_mode, infinite_depth_mode_time, mode_time, two_layer_mode
from saddleflow.theory.riccati import RiccatiSolution, lambda_balanced_layers, riccati_flow
from saddleflow.theory.saddles import SaddleHessian, minimal_norm, saddle_escape_speed, saddle_hessian
from saddleflow.theory.wide import lazy_flow, ntk_rate, plateau_exponent, wide_two_layer_flow

__all__ = [
    "DistanceBound",
    "HomogeneousEscape",
    "NearestPoint",
    "RiccatiSolution",
    "SaddleHessian",
    "balanced_flow",
    "balanced_vector_field",
    "blow_up_time",
    "deep_mode",
    "distance_exponents",
    "distance_to_minima",
    "distance_to_saddle",
    "escape_direction",
    "escape_norm",
    "escape_speed",
    "homogeneous_escape",
    "infinite_depth_mode_time",
    "lambda_balanced_layers",
    "lazy_flow",
    "measured_escape_speed",
    "minimal_norm",
    "misalignment_rate",
    "mode_time",
    "ntk_rate",
    "plateau_exponent",
    "riccati_flow",
    "saddle_escape_speed",
    "saddle_hessian",
    "two_layer_mode",
    "waiting_time_ratio",
    "wide_two_layer_flow",
]
