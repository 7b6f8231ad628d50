"""Networks kept from where the gradient norm dips: near the saddles that a flow visits."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from saddleflow.flow.graded import Frame
from saddleflow.flow.landscape import Parameters

# A visit to a saddle is a dip of the gradient norm by at least this factor below its surroundings on both sides.
# Passing near a saddle of a stretched landscape dips far deeper; solver noise on a fast stretch stays well above.
MIN_DIP = 3.0


class Dips(eqx.Module):
    """The lowest point since the last rise, and the networks of the dips that a rise has confirmed."""

    network: Parameters  # at the lowest gradient norm since the last rise, in its frame
    frame: Frame | None
    gradient_norm: Float[Array, ""]  # the lowest; while rising, the highest
    time: Float[Array, ""]
    rising: Bool[Array, ""]
    networks: Parameters  # of the confirmed dips: a leading axis of dips, coordinates of the start
    times: Float[Array, " dips"]
    peaks: Float[Array, " dips"]  # times of the highest gradient norm of the rises that followed
    falls: Float[Array, " dips"]  # what the cost has fallen by until the dip, by the gradient norms
    last: Float[Array, ""]  # gradient norm after the last accepted step
    fall: Float[Array, ""]  # what the cost has fallen by until then: the integral of |grad|^2, trapezoidal
    fall_at_low: Float[Array, ""]  # until the lowest point since the last rise
    count: Int[Array, ""]  # may exceed the number of those kept

    @classmethod
    def start(
        cls, network: Parameters, frame: Frame | None, gradient_norm: Float[Array, ""], capacity: int
    ) -> "Dips":
        """The start is the lowest point so far."""
        empty = jax.tree.map(lambda layer: jnp.zeros((capacity, *layer.shape)), network)
        zero = jnp.zeros(())
        return cls(
            network=network,
            frame=frame,
            gradient_norm=gradient_norm,
            time=zero,
            rising=jnp.zeros((), bool),
            networks=empty,
            times=jnp.zeros(capacity),
            peaks=jnp.zeros(capacity),
            falls=jnp.zeros(capacity),
            last=gradient_norm,
            fall=zero,
            fall_at_low=zero,
            count=jnp.zeros((), int),
        )

    def follow(
        self,
        network: Parameters,
        frame: Frame | None,
        gradient_norm: Float[Array, ""],
        time: Float[Array, ""],
        step: Float[Array, ""],
        accepted: Bool[Array, ""],
    ) -> "Dips":
        """The state after one more step."""
        lower = accepted & ~self.rising & (gradient_norm < self.gradient_norm)
        confirmed = accepted & ~self.rising & (gradient_norm > MIN_DIP * self.gradient_norm)
        higher = accepted & self.rising & (gradient_norm > self.gradient_norm)
        falls = accepted & self.rising & (MIN_DIP * gradient_norm < self.gradient_norm)
        here = lower | falls
        fall = self.fall + jnp.where(accepted, 0.5 * step * (self.last**2 + gradient_norm**2), 0.0)

        def chosen(new: PyTree, old: PyTree) -> PyTree:
            return jax.tree.map(lambda a, b: jnp.where(here, a, b), new, old)

        def plain() -> Parameters:
            return self.network if self.frame is None else self.frame.undo(self.network)

        row = jax.lax.cond(confirmed, plain, lambda: jax.tree.map(jnp.zeros_like, self.network))
        place = jnp.where(confirmed, self.count, len(self.times))
        return Dips(
            chosen(network, self.network),
            chosen(frame, self.frame),
            jnp.where(here | confirmed | higher, gradient_norm, self.gradient_norm),
            jnp.where(here, time, self.time),
            (self.rising | confirmed) & ~falls,
            jax.tree.map(lambda kept, layer: kept.at[place].set(layer, mode="drop"), self.networks, row),
            self.times.at[place].set(self.time, mode="drop"),
            self.peaks.at[jnp.where(higher, self.count - 1, place)].set(time, mode="drop"),
            self.falls.at[place].set(self.fall_at_low, mode="drop"),
            jnp.where(accepted, gradient_norm, self.last),
            fall,
            jnp.where(here, fall, self.fall_at_low),
            self.count + confirmed,
        )
