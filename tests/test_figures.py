import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.figures import f1_plateaus, figure1


@pytest.fixture(scope="module")
def trajectory():
    return figure1()


def greedy_costs(cost, depth, count, epsilon=1e-2):
    """Costs of the rank-k stationary points that Algorithm A passes: add the escaping neuron, flow on."""
    costs, network = [float(cost(jnp.zeros(cost.shape)))], None
    for _ in range(count - 1):
        matrix = jnp.zeros(cost.shape) if network is None else network.end_to_end()
        u, _, vh = jnp.linalg.svd(cost.gradient(matrix))
        neuron = [-epsilon * vh[:1], *[epsilon * jnp.eye(1)] * (depth - 2), epsilon * u[:, :1]]
        if network is not None:
            first, *middle, last = network.layers
            neuron = [
                jnp.concatenate([first, neuron[0]]),
                *(jax.scipy.linalg.block_diag(a, b) for a, b in zip(middle, neuron[1:-1], strict=True)),
                jnp.concatenate([last, neuron[-1]], axis=1),
            ]
        # twice the time a neuron needs to escape, and the tail of the fit after it
        speed = float(jnp.linalg.norm(cost.gradient(matrix), 2))
        end = 2 / ((depth - 2) * speed * epsilon ** (depth - 2)) + 2000.0
        network = sf.gradient_flow(cost, sf.DeepLinearNetwork(neuron), rtol=1e-5, t1=end).network
        costs.append(float(cost(network.end_to_end())))
    return costs


def test_three_plateaus_at_the_greedy_costs(trajectory):
    visits = trajectory.saddles()
    assert [visit.rank for visit in visits] == [0, 1, 2]
    key_task, _ = jax.random.split(jax.random.key(3))
    cost = sf.MatrixCompletion.random(key_task, shape=(10, 10), rank=3, observed=0.8)
    np.testing.assert_allclose([visit.cost for visit in visits], greedy_costs(cost, 4, 3), rtol=1e-2)


def test_verdicts_hold_and_can_fail(trajectory):
    assert all(line.startswith("holds") for line in f1_plateaus.verdicts(trajectory))
    lazy = figure1(width=20, gamma=0.75, size=4, rank=2)
    assert any(line.startswith("FAILS") for line in f1_plateaus.verdicts(lazy))


def test_files_and_curves(trajectory, tmp_path):
    paths = f1_plateaus.write(trajectory, tmp_path)
    assert {path.name for path in paths} == {"figure1.png", "figure1.pdf", "figure1.nc"}
    np.testing.assert_array_equal(sf.load(tmp_path / "figure1.nc").train_cost, trajectory.train_cost)
    figure = f1_plateaus.draw(trajectory)
    left, right = figure.axes
    np.testing.assert_array_equal(left.lines[0].get_ydata(), trajectory.train_cost)
    assert left.lines[1].get_linestyle() == "--"
    assert len(right.lines) == 10
    plt.close(figure)
    with pytest.raises(ValueError, match="must not exist yet"):
        f1_plateaus.write(trajectory, tmp_path)
