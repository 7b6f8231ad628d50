"""Growth that does not settle: telling a flow without a minimum from one that converges.

Where C has its infimum at infinity, |A| grows like a power of time, or like a logarithm (separable data), and the
gradient fades as on the way to a minimum. The two differ in how the growth goes on while its speed `v = d|A|/dt`
fades. Where |A| (its part that C does not bound, `Cost.unbounded`) tends to a limit as `t^-q`, the growth per e-fold
of v fades as `v^(q/(1+q))`, for exponential convergence as v; for a logarithm it stays the same, for a power it
rises. Speed stands for time here, so that neither the length of plateaus before nor the unit of time matters.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Growth is compared between marks, set each time its speed has fallen by this factor.
FALL = 3.0

# Growth per e-fold must be at least this share of that between the two marks before: convergence slower than t^-0.1
# is taken for none.
SUSTAINED = 0.9

# Over three spans between marks this share of |A| must be growth (a logarithm's is, up to 60 e-folds), over two this
# much larger one: the less has been seen, the more of it is asked.
LEAST_GROWTH = 0.05
GREAT_GROWTH = 0.25


class Growth(eqx.Module):
    """How |A|_F grew since its speed last rose: marks in order, the newest last, NaN where there are none yet."""

    norm: Float[Array, ""]  # |A| after the last accepted step
    norms: Float[Array, "4"]  # |A| at the marks
    speeds: Float[Array, "4"]  # d|A|/dt at the marks

    @classmethod
    def start(cls, norm: Float[Array, ""]) -> "Growth":
        """Before the first step: no growth."""
        none = jnp.full(4, jnp.nan, float)  # a weak type would have the loop compiled twice
        return cls(norm, none, none.at[-1].set(0.0))

    def follow(self, norm: Float[Array, ""], step: Float[Array, ""], accepted: Bool[Array, ""]) -> "Growth":
        """The state after one more step, `norm` the |A| that it led to."""
        speed = jnp.maximum((norm - self.norm) / step, 0.0)
        last = self.speeds[-1]
        # a new burst (noise of the steps is none), an end of growth, or a fall too steep for a tail
        anew = (speed > 2 * last) | (speed < last / FALL**2)
        marked = accepted & (anew | (speed < last / FALL))

        def marks(old: Float[Array, "4"], new: Float[Array, ""]) -> Float[Array, "4"]:
            return jnp.where(marked, jnp.append(jnp.where(anew, jnp.nan, old[1:]), new), old)

        return Growth(jnp.where(accepted, norm, self.norm), marks(self.norms, norm), marks(self.speeds, speed))

    def lasts(self, size: Float[Array, ""]) -> Bool[Array, ""]:
        """Whether A, of Frobenius norm `size`, grows without a sign of settling."""
        growth = -jnp.diff(self.norms) / jnp.diff(jnp.log(self.speeds))
        sustained = growth[1:] >= SUSTAINED * growth[:-1]
        grown = self.norms[-1] - self.norms
        two = sustained[1] & (grown[1] > GREAT_GROWTH * size)
        return two | jnp.all(sustained) & (grown[0] > LEAST_GROWTH * size)
