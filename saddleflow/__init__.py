"""Gradient flow of deep linear networks, solved exactly as a stiff ODE.

Small initialisation is the whole subject, and products of small layers vanish in float32, so importing this
package turns JAX's float64 on.
"""

import jax as _jax

_jax.config.update("jax_enable_x64", True)
if _jax.numpy.zeros(()).dtype != "float64":
    raise RuntimeError(
        "saddleflow needs float64, but JAX gives float32 on this platform. Choose a device that has float64 "
        "(JAX_PLATFORMS=cpu), and do not switch jax_enable_x64 off (JAX_ENABLE_X64=0 is overridden at import)."
    )

from saddleflow import claims, figures, theory  # noqa: E402
from saddleflow.costs import Cost, MatrixCompletion, MeanSquaredError  # noqa: E402
from saddleflow.flow import gradient_flow  # noqa: E402
from saddleflow.geometry import gradient, hessian_vector_product, neural_tangent_kernel  # noqa: E402
from saddleflow.greedy import greedy_descent, saddle_to_saddle  # noqa: E402
from saddleflow.network import DeepLinearNetwork, balanced, gaussian  # noqa: E402
from saddleflow.programs import cache_programs  # noqa: E402
from saddleflow.reading import read_matrix  # noqa: E402
from saddleflow.reduced_law import sample_reduced  # noqa: E402
from saddleflow.reduction import reduce_width  # noqa: E402
from saddleflow.sweep import sweep  # noqa: E402
from saddleflow.symmetry import balancedness, include, rotate  # noqa: E402
from saddleflow.trajectory import Trajectory, load  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "Cost",
    "DeepLinearNetwork",
    "MatrixCompletion",
    "MeanSquaredError",
    "Trajectory",
    "balanced",
    "balancedness",
    "cache_programs",
    "claims",
    "figures",
    "gaussian",
    "gradient",
    "gradient_flow",
    "greedy_descent",
    "hessian_vector_product",
    "include",
    "load",
    "neural_tangent_kernel",
    "read_matrix",
    "reduce_width",
    "rotate",
    "saddle_to_saddle",
    "sample_reduced",
    "sweep",
    "theory",
]
