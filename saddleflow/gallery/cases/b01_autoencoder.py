"""B01: a linear autoencoder with weight decay, which finds the principal directions and their sizes."""

import jax
import jax.numpy as jnp
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve

SIZE, HIDDEN, SAMPLES, DECAY = 20, 5, 100, 10.0


def encode_and_decode(network, x):
    """The reconstruction."""
    return network.end_to_end() @ x


def pose():
    """The flow of `|X - W_2 W_1 X|^2 + lambda (|W_1|^2 + |W_2|^2)`, over the number of samples."""
    keys = jax.random.split(jax.random.key(0))
    spectrum = jnp.sqrt(SAMPLES * 2.0 ** -jnp.arange(SIZE))
    left, _, right = jnp.linalg.svd(jax.random.normal(keys[0], (SAMPLES, SIZE)), full_matrices=False)
    samples = left * spectrum @ right
    objective = sf.regression(encode_and_decode, samples, samples, regulariser=sf.weight_decay(2 * DECAY / SAMPLES))
    start = sf.gaussian(keys[1], depth=2, width=HIDDEN, shape=(SIZE, SIZE), variance=1e-4)
    run = sf.gradient_flow(
        objective, start, observables={"singular": sf.observables.REGISTRY["layer_singular_values"]}
    )
    return run, np.asarray(spectrum)


def judge(posed):
    """Transposed layers, and singular values `sqrt(1 - lambda / sigma^2)`, as the paper's theorems have them."""
    run, spectrum = posed
    encoder, decoder = map(np.asarray, run.model.layers)
    values = np.linalg.svd(decoder, compute_uv=False)
    expected = np.sqrt(np.maximum(1 - DECAY / spectrum[:HIDDEN] ** 2, 0))
    return [
        Number.at_most(
            "|W_1 - W_2^T| over |W_2|",
            1e-4,
            np.linalg.norm(encoder - decoder.T) / np.linalg.norm(decoder),
            origin="stated",
        ),
        *(
            Number.near(
                f"singular value {k + 1} of the decoder", expected[k], values[k], absolute=2e-3, origin="stated"
            )
            for k in range(HIDDEN)
        ),
    ]


def draw(axes, posed):
    """Singular values of the decoder against time."""
    run, spectrum = posed
    for k in range(HIDDEN):
        (line,) = axes.plot(run.time, run.observables["singular"][:, 1, k], color="C0")
        end = np.sqrt(max(1 - DECAY / spectrum[k] ** 2, 0))
        axes.axhline(end, color="C1", lw=0.7, ls=":")
        name_curve(line, f"{k + 1}", at=0.97, offset=(0, -6))
    axes.set(xlabel="time", ylabel="singular values of the decoder", title="dotted: the theorem", xscale="log")


CASE = Case(
    name="B01",
    title="a regularised linear autoencoder",
    source="danielkunin/Regularized-Linear-Autoencoders, commit ea061f3",
    paper="Kunin et al., ICML 2019, arXiv 1901.08168",
    computed=(
        "With weight decay on encoder and decoder every minimum has transposed layers, and their singular values "
        "determine those of the data: the source's `eigenvalues = sqrt(lambda / (1 - s^2))`."
    ),
    source_cost="some thousand steps of gradient descent or Adam",
    pose=pose,
    judge=judge,
    draw=draw,
    smaller="100 random samples in 20 dimensions.",
    in_law=True,
)
