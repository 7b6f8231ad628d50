"""The law of sampled networks along the whole flow, against full networks: 400 of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import saddleflow as sf

COST = sf.MatrixCompletion.random(jax.random.key(3), shape=(3, 3), rank=2, observed=0.8)
COUNT, CHUNK = 400, 50


def statistics(networks, times):
    """One row a network: escape time, |A| at three times, final nuclear norm and test cost."""

    @jax.jit
    @jax.vmap
    def run(network):
        matrices = sf.integrate(COST, network, rtol=1e-5, save_at=times).end_to_end
        train = jax.vmap(COST)(matrices)
        escape = jnp.interp(-0.6 * train[0], -train, times)
        norms = jnp.linalg.norm(matrices[jnp.array([5, 20, 59])], axis=(1, 2))
        nuclear = jnp.linalg.norm(matrices[-1], ord="nuc")
        return jnp.stack([escape, *norms, nuclear, COST.test(matrices[-1])])

    parts = [jax.tree.map(lambda x, i=i: x[i : i + CHUNK], networks) for i in range(0, COUNT, CHUNK)]
    return np.concatenate([np.asarray(run(part)) for part in parts])


@pytest.mark.slow
def test_the_law_along_the_flow():
    """Kolmogorov-Smirnov for every statistic; its p values are dependent, so Bonferroni combines them."""
    values = []
    for number, (depth, width, gamma, end) in enumerate([(3, 40, 0.75, 5.0), (3, 40, 1.5, 40.0), (4, 30, 1.0, 10.0)]):
        arguments = {"depth": depth, "width": width, "shape": (3, 3), "gamma": gamma}
        keys = jax.random.split(jax.random.key(number), 2 * COUNT)
        full = jax.vmap(lambda key, a=arguments: sf.gaussian(key, **a))(keys[:COUNT])
        reduced = jax.vmap(lambda key, a=arguments: sf.sample_reduced(key, **a, levels=6).network)(keys[COUNT:])
        assert reduced.hidden_widths != full.hidden_widths
        times = jnp.linspace(0.0, end, 60)
        ours, theirs = statistics(reduced, times), statistics(full, times)
        assert np.ptp(theirs, axis=0).min() > 0
        values += [stats.ks_2samp(a, b).pvalue for a, b in zip(ours.T, theirs.T, strict=True)]
    print("p values:", np.round(values, 3))
    assert len(values) * min(values) >= 0.01
