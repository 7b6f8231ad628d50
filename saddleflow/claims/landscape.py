"""Claims on saddles and symmetries: strictness, spectra, what a new neuron gains, rotations and inclusions."""

from collections.abc import Sequence

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import saddleflow.theory as exact
from saddleflow.api import gradient_flow
from saddleflow.claims.ledger import Claim, Finding, Size
from saddleflow.problem import geometry
from saddleflow.problem.costs import MatrixCompletion, MeanSquaredError
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.starts import balanced, gaussian
from saddleflow.problem.stationary import hessian_spectrum
from saddleflow.problem.symmetry import include, rotate

STRENGTHS, WIDTH = np.array([3.0, 2.0, 1.0]), 6
ROUNDING = 1e-8  # of eigenvalues: Lanczos and rounding, relative to the largest


def _saddle(depth: int, rank: int) -> tuple[MeanSquaredError, DeepLinearNetwork]:
    """`|A - S|_F^2`, S = diag(3, 2, 1), and its balanced saddle that holds the `rank` leading modes."""
    kept = np.where(np.arange(len(STRENGTHS)) < rank, STRENGTHS, 0.0)
    return MeanSquaredError.teacher(np.diag(STRENGTHS)), balanced(jnp.diag(kept), depth=depth, width=WIDTH)


def spectra(size: Size) -> list[Finding]:
    """Ends of the Hessian's spectrum and its index, at saddles of every rank."""
    findings = []
    for depth in (2, 3) if size == "quick" else (2, 3, 4, 5):
        for rank in range(len(STRENGTHS)):
            cost, network = _saddle(depth, rank)
            found = hessian_spectrum(cost, network, rank)
            # the formulas are for (1/2) |A - S|^2
            expected = exact.saddle_hessian(STRENGTHS, rank, WIDTH, depth)
            slack = ROUNDING * max(found.largest, 1.0)
            where = f"L={depth}, rank {rank}"
            findings.append(Finding.near(f"{where}: least eigenvalue", 2 * expected.least, [found.least], slack))
            findings.append(
                Finding.near(f"{where}: largest eigenvalue", 2 * expected.largest, [found.largest], slack)
            )
            count = float(expected.index)
            findings.append(Finding(f"{where}: negative eigenvalues", count, float(found.index), count, count))
    return findings


def new_neuron(size: Size) -> list[Finding]:
    """What the loss loses when a neuron of size e is added along the top singular pair of grad C(A)."""
    findings, step = [], 1e-2
    for depth in (2, 3) if size == "quick" else (2, 3, 4):
        for rank in (0, 1, 2):
            cost, network = _saddle(depth, rank)
            gradient = np.asarray(cost.gradient(network.end_to_end()))
            u, s, vh = np.linalg.svd(gradient)
            # the saddle holds its modes in the first neurons; the last one of every space is free
            layers = [np.array(layer) for layer in network.layers]
            layers[0][-1], layers[-1][:, -1] = -step * vh[0], step * u[:, 0]
            for layer in layers[1:-1]:
                layer[-1, -1] = step
            loss = float(cost(DeepLinearNetwork(layers).end_to_end()) - cost(network.end_to_end()))
            # the next term is e^(2L), with curvature 2: a relative e^L / s_1
            tolerance = 1.1 * step**depth / s[0] + 1e-6
            name = f"L={depth}, rank {rank}: loss gained / (s_1 e^L), e={step:g}"
            findings.append(Finding.near(name, -1.0, [loss / (s[0] * step**depth)], tolerance))
    return findings


def symmetries(size: Size) -> list[Finding]:
    """The flow of A from a rotated and from a widened network, and what is conserved."""
    rtol, findings = 1e-8, []
    cost = MatrixCompletion.random(jax.random.key(0), shape=(4, 5), rank=2, observed=0.7)
    for depth in (3,) if size == "quick" else (2, 3, 4):
        theta = gaussian(jax.random.key(1), depth=depth, width=6, shape=(4, 5), gamma=1.0)
        keys = jax.random.split(jax.random.key(2), depth - 1)
        rotations = [jnp.linalg.qr(jax.random.normal(key, (6, 6)))[0] for key in keys]
        # a mild start: an explicit method does, and there is less to compile
        how = {"rtol": rtol, "save_at": [1.0, 5.0, 20.0], "solver": diffrax.Dopri8(), "progress": False}
        base = gradient_flow(cost, theta, **how)
        scale = np.linalg.norm(base.end_to_end, axis=(1, 2)).max()
        for name, other in (("rotated", rotate(theta, rotations)), ("widened to 9", include(theta, 9))):
            run = gradient_flow(cost, other, **how)
            apart = np.linalg.norm(run.end_to_end - base.end_to_end, axis=(1, 2)).max() / scale
            # ten times the tolerance of a step is what the solver's global error is held to
            findings.append(Finding.at_most(f"L={depth}, {name}: largest |A - A'| / |A|", 10 * rtol, [apart]))
        drift = base.stats["balancedness_drift"]
        findings.append(Finding.at_most(f"L={depth}: drift of W_(l+1)^T W_(l+1) - W_l W_l^T", 10 * rtol, [drift]))
        gradient = geometry.gradient(cost, theta)
        turned = geometry.gradient(cost, rotate(theta, rotations))
        expected = rotate(gradient, rotations)
        difference = jax.tree.map(jnp.subtract, turned, expected)
        apart = float(geometry.norm(difference) / geometry.norm(gradient))
        findings.append(Finding.at_most(f"L={depth}: |grad(R theta) - R grad(theta)| / |grad|", 1e-12, [apart]))
    return findings


CLAIMS: Sequence[Claim] = (
    Claim(
        "symmetry",
        "Rotations of the hidden spaces and dead neurons do not change the flow of A; balancedness is conserved",
        r"A_{R\theta}(t) = A_{I\theta}(t) = A_\theta(t)",
        "recalled",
        symmetries,
    ),
    Claim(
        "strictness",
        "Saddles are strict for L = 2; for L > 2 the rank-k saddles have no negative eigenvalue",
        r"\lambda_{\min} = -s_{k+1} \text{ for } L = 2, \text{ else } 0; \quad \lambda_{\max} = L\, s_1^{2-2/L}",
        "ours",
        spectra,
    ),
    Claim(
        "new-neuron",
        "A minimum of width k that is not a global one is a saddle in any larger width",
        r"C(\theta + \epsilon\, (-v^T, 1, \dots, 1, u)) - C(\theta) = -s_1(\nabla C)\, \epsilon^L + O(\epsilon^{2L})",
        "ours",
        new_neuron,
    ),
)
