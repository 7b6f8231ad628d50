"""Steps that grind: telling a flow that slides along kinks from a smooth one.

Where the vector field jumps (the gradient of a ReLU network where a preactivation changes sign), the error of a step
across the jump falls only like h, not like h^k, k the order of the solver's error estimate. A controller expects h^k:
its next try is too long again, and so on, until the step ends before the jump. A flow that crosses such a surface is
through after some rejections; one that slides along it meets it anew at every step, and never gets on.

So a rejection counts where the try before was rejected, too, and the error has fallen by less than `h^(k/2)` since.
(Errors that are not finite, of steps whose linear systems cannot be solved or that leave the cost's domain, say
nothing about order.) Where such rejections are a large share of all tries, the run grinds. Measured
(`docs/kinks.md`): with ReLU the share over the last hundred tries comes to 0.45 and more and passes 0.3 within 300
tries; in smooth flows it stays below 0.15, networks with `saddleflow.activations.relu` at epsilon = 1e-3 among them.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# The share is a mean over about so many tries, with weights that fade exponentially.
MEMORY = 100
# Softened kinks of width 1e-4 come to 0.19, which is slow going but goes on; kinks, to 0.45 at least.
LARGEST_SHARE = 0.3
# An error that falls with less than this share of its order does not fall as a smooth flow's does.
SLOW = 0.5


class Grinding(eqx.Module):
    """How tries to step went lately.

    An example, in which tries fail again and again with an error that falls like h::

        grinding = Grinding.start()
        for step in 0.5 ** jnp.arange(60.0):
            grinding = grinding.follow(step, jnp.asarray(False), 1e20 * step, 4)
        grinding.grinds  # True
    """

    share: Float[Array, ""]  # of tries whose error had fallen too slowly, among the last ones
    step: Float[Array, ""]  # length of the last try, if it was rejected with a finite error; else zero
    error: Float[Array, ""]  # and its error, in units of the tolerance

    @classmethod
    def start(cls) -> "Grinding":
        """Before the first step."""
        zero = jnp.zeros((), float)  # a weak type would have the loop compiled twice
        return cls(zero, zero, zero)

    def follow(
        self, step: Float[Array, ""], accepted: Bool[Array, ""], error: Float[Array, ""], order: int | float
    ) -> "Grinding":
        """The state after one more try.

        Args:
            step: its length h.
            accepted: whether the controller kept it.
            error: its error in units of the tolerance, as the controller judges it: rejected where not below one.
            order: of the solver's error estimate, k in h^k (`solver.error_order`).
        """
        rejected = ~accepted & jnp.isfinite(error)
        again = rejected & (self.step > 0)
        ratio = step / jnp.where(again, self.step, step)
        slow = again & (error > self.error * ratio ** (SLOW * order))
        return Grinding(
            self.share + (slow - self.share) / MEMORY,
            jnp.where(rejected, step, 0.0),
            jnp.where(rejected, error, 0.0),
        )

    @property
    def grinds(self) -> Bool[Array, ""]:
        """Whether the run does little else than to fail at kinks."""
        return self.share > LARGEST_SHARE
