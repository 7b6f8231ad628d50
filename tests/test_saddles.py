import jax
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.saddles import find_visits


def test_dips_are_found_and_noise_in_the_tail_is_not():
    time = np.linspace(0, 10, 401)
    gradient_norm = 0.01 + 1.0 / (1 + np.exp(-20 * np.sin(1.5 * time) ** 2 + 6))
    rank = np.searchsorted([2 * np.pi / 3 / 2, 2 * np.pi / 3 * 1.5], time)
    visits = find_visits(time, np.exp(-time), gradient_norm, rank)
    assert [v.rank for v in visits] == [0, 1]
    assert visits[1].time == pytest.approx(2 * np.pi / 3, abs=0.1)


def test_no_rise_no_visit():
    time = np.linspace(0, 1, 50)
    assert find_visits(time, np.exp(-time), np.exp(-time), np.full(50, 3)) == []
    assert find_visits(time[:2], time[:2], time[:2], np.array([0, 1])) == []


def test_small_starts_visit_every_rank_and_lazy_ones_none():
    target = np.diag([3.0, 2.0, 1.0])
    cost = sf.MeanSquaredError.teacher(target)
    key = jax.random.key(0)
    small = sf.gradient_flow(cost, sf.gaussian(key, depth=3, width=30, shape=(3, 3), gamma=3.0), rtol=1e-5)
    visits = small.saddles()
    assert [v.rank for v in visits] == [0, 1, 2]
    assert [v.cost for v in visits] == pytest.approx([14.0, 5.0, 1.0], rel=1e-2)
    assert np.all(np.diff([v.time for v in visits]) > 0)
    lazy = sf.gradient_flow(cost, sf.gaussian(key, depth=3, width=300, shape=(3, 3), gamma=2 / 3), rtol=1e-5)
    assert lazy.saddles() == []
