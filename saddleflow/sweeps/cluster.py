"""Chunks of a sweep elsewhere: on the workers of a Dask client, or divided among JAX processes."""

import queue
import uuid
from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from saddleflow._backend.checks import require
from saddleflow._backend.waiting import get
from saddleflow.sweeps.chunk import Chunk
from saddleflow.sweeps.chunks import run_chunk
from saddleflow.sweeps.workers import Report, Tally

Result = dict[str, np.ndarray]


def run_on_client(
    chunks: Sequence[Chunk], client: Any, slots: int | None, report: Report
) -> Generator[tuple[Chunk, Result], None, None]:
    """Run chunks as Dask tasks, in whatever order they finish; a lost worker's chunk is run again by Dask.

    Raises:
        RuntimeError: a chunk raised; the others are finished and handed over first.
    """
    name = f"saddleflow-{uuid.uuid4().hex[:8]}"
    # A task takes one thread: a Dask worker runs as many tasks as it has threads. (Bound here, for `submit` has a
    # `workers` of its own, which would pin every chunk to the Dask worker of that name.)
    # float64 is switched on when a worker unpickles a chunk, for that imports this package
    futures = {
        client.submit(partial(run_chunk, slots=slots, workers=1), chunk, key=f"{name}-{chunk.number}"): chunk
        for chunk in chunks
    }
    failed, done = [], queue.SimpleQueue()
    try:
        for future in futures:
            future.add_done_callback(done.put)
        for _ in futures:
            future = get(done)  # which an interrupt ends, as it does not end a wait of Dask's
            chunk = futures[future]
            if future.status == "error":
                failed.append((chunk.number, future.exception()))
                continue
            result = future.result()
            report(_tally(result))
            yield chunk, result
    finally:
        client.cancel(list(futures))
    if failed:
        numbers = ", ".join(map(str, sorted(number for number, _ in failed)))
        raise RuntimeError(f"chunks {numbers} failed on the cluster: {failed[0][1]}") from failed[0][1]


def _tally(result: Result) -> Tally:
    reasons = result["stop_reason"]
    return Tally(len(reasons), int(np.isin(reasons, Tally.FAILURES).sum()), *result["lane_steps"])


def own_chunks(chunks: Sequence[Chunk]) -> list[Chunk]:
    """The chunks of this JAX process; all of them where there is one process.

    Raises:
        ValueError: fewer chunks than processes.
    """
    processes = jax.process_count()
    require(
        len(chunks) >= processes,
        "chunk_size",
        f"leave a chunk for each of the {processes} JAX processes",
        f"{len(chunks)} chunk(s)",
        "Pass a smaller chunk_size.",
    )
    return list(chunks[jax.process_index() :: processes])


def gather(arrays: Result) -> Result:
    """Lanes of all processes together: each holds zeros where a lane was another's."""
    if jax.process_count() == 1:
        return arrays
    return {name: np.asarray(multihost_utils.process_allgather(x)).sum(axis=0) for name, x in arrays.items()}
