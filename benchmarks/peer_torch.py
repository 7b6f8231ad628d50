"""torchdiffeq as a peer: an extra of its own (`bench-torch`), for torch is large and slow to import."""

import itertools
import time

import numpy as np
import torch
import torchdiffeq
from peers import Host, OutOfTimeError, Peer, Result
from problems import Problem, split


class TorchDiffeq(Peer[Problem]):
    """Dopri5 of torchdiffeq, eager, on the same sweeps in torch; it cannot stop at a train cost."""

    name = "torchdiffeq dopri5"
    tolerances = (1e-4, 1e-6)

    def suits(self, problem: Problem) -> bool:
        """Where the end is a time."""
        return problem.until_cost is None

    def run(self, problem: Problem, rtol: float) -> Result:
        """One eager run."""
        host = Host(problem)
        weight = torch.from_numpy(np.array(2 * problem.cost.weight))
        target = torch.from_numpy(np.array(problem.cost.target))

        def forward(y: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
            layers = split(y, problem.shapes)
            return layers, list(itertools.accumulate(layers, lambda right, layer: layer @ right))

        def field(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            host.tick()
            layers, right = forward(y)
            pulled, slopes = weight * (target - right[-1]), []
            for layer, before in zip(layers[:0:-1], right[-2::-1], strict=True):
                slopes.insert(0, (pulled @ before.T).ravel())
                pulled = layer.T @ pulled
            return torch.cat([pulled.ravel(), *slopes])

        start, times = torch.tensor(problem.start), torch.tensor(np.concatenate([[0.0], problem.times]))
        host.begin = time.perf_counter()
        try:
            saved = torchdiffeq.odeint(field, start, times, rtol=rtol, atol=rtol * problem.weight, method="dopri5")
        except OutOfTimeError:
            return host.result("max_seconds")
        except AssertionError as error:  # where its step size underflows
            return host.result(f"failed: {error}")
        assert isinstance(saved, torch.Tensor)
        host.values[:] = [forward(y)[1][-1].numpy() for y in saved[1:]]
        return host.result("t1")
