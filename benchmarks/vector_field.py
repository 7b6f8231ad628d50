"""Cost of one vector field and one Hessian-vector product: the sweeps of saddleflow beside plain autodiff.

Run: python benchmarks/vector_field.py
"""

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table
from timing import timed

import saddleflow as sf

CHAIN = 200  # evaluations per timed call, so that dispatch does not count


def repeated(function):
    """The function applied CHAIN times to a slowly changing network, compiled."""

    def step(theta, _):
        return jax.tree.map(lambda x, y: x - 1e-6 * y, theta, function(theta)), None

    return jax.jit(lambda theta: jax.lax.scan(step, theta, length=CHAIN)[0])


def main() -> None:
    table = Table(title="microseconds an evaluation (depth 4, 10x10, median of 5)")
    for name in ("width", "gradient", "jax.grad", "Hessian product", "autodiff Hessian product"):
        table.add_column(name, justify="right")
    cost = sf.MatrixCompletion.random(jax.random.key(0))
    for width in (10, 30, 100, 300, 1000):
        theta = sf.gaussian(jax.random.key(1), depth=4, width=width, shape=(10, 10), gamma=1.0)
        direction = sf.gaussian(jax.random.key(2), depth=4, width=width, shape=(10, 10), gamma=1.0)
        autodiff = jax.grad(lambda theta: cost(theta.end_to_end()))
        functions = (
            lambda theta: sf.gradient(cost, theta),
            autodiff,
            lambda theta, direction=direction: sf.hessian_vector_product(cost, theta, direction),
            lambda theta, direction=direction, autodiff=autodiff: jax.jvp(autodiff, (theta,), (direction,))[1],
        )
        times = [timed(repeated(function), theta)[1] / CHAIN * 1e6 for function in functions]
        table.add_row(str(width), *(f"{seconds:.1f}" for seconds in times))
    Console().print(table)


if __name__ == "__main__":
    jnp.zeros(())  # starts the backend before anything is timed
    main()
