"""A sweep cut into chunks: a chunk is a pure task from numbers to numbers.

A chunk is what is computed, stored or sent to another machine as one piece. Its lanes run in one compiled program;
which lanes form a chunk depends on the grid alone.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from saddleflow._backend.devices import find_devices
from saddleflow.sweeps import host_lanes, scheduler
from saddleflow.sweeps.chunk import Chunk, Starts, SweepOptions
from saddleflow.sweeps.grid import Grid
from saddleflow.sweeps.host_lanes import HostGroup
from saddleflow.sweeps.networks import NetworkStarts
from saddleflow.sweeps.results import LaneResult
from saddleflow.sweeps.workers import Report

# A chunk holds a 32nd of the lanes, within these bounds: small enough to spread, large enough to keep workers busy.
SMALLEST_CHUNK, LARGEST_CHUNK = 8, 256

NETWORKS = NetworkStarts()


def cut(grid: Grid, options: SweepOptions, chunk_size: int | None, starts: Starts = NETWORKS) -> list[Chunk]:
    """The chunks of a sweep: lanes of one program together, those with the most work to be foreseen first."""
    if chunk_size is None:
        chunk_size = min(max(-(-grid.size // 32), SMALLEST_CHUNK), LARGEST_CHUNK)
    table = grid.coordinates()
    chunks: list[Chunk] = []
    for number, (make, lanes) in enumerate(starts.programs(grid, options)):
        members = np.asarray(lanes)
        # lanes are dealt out like cards, so that chunks are alike in work
        for start in range(-(-len(members) // chunk_size)):
            index = members[start :: -(-len(members) // chunk_size)]
            part = {axis: values[index] for axis, values in table.items()}
            used = sorted(set(part["cost"].tolist()))
            part["cost"] = np.searchsorted(used, part["cost"])
            costs = tuple(grid.costs[i] for i in used)
            chunks.append(make(len(chunks), number, index, costs, part, options))
    return chunks


def run_chunks(
    chunks: Sequence[Chunk],
    *,
    devices: int | Sequence[Any] | None = None,
    slots: int | None = None,
    workers: int | None = None,
    report: Report = lambda tally: None,
) -> Generator[tuple[Chunk, dict[str, np.ndarray]], None, None]:
    """Compute chunks; the same numbers whatever the devices, the machine or the other chunks.

    Args:
        chunks: the tasks. The lanes of all are computed together: none waits for another's chunk to end.
        devices: as `devices.find_devices` takes them.
        slots: slots of a program, as in `scheduler.run`.
        workers: threads, as in `scheduler.run`.
        report: told what each burst adds to the tally, from several threads.

    Yields:
        Chunks as they are complete, each with arrays by name: first axis the chunk's lanes, and lane_steps, the
        useful and the computed ones.
    """
    ended = _run_lanes(chunks, find_devices(devices), slots, workers, report)
    rows: dict[int, dict[int, Any]] = {chunk.number: {} for chunk in chunks}
    with closing(ended):  # who stops listening here stops the workers
        for (chunk, lane), result in ended:
            there = rows[chunk.number]
            there[lane] = chunk.arrays(result, lane)
            if len(there) == len(chunk.index):
                arrays = {name: np.stack([there[i][name] for i in range(len(there))]) for name in there[0]}
                arrays["lane_steps"] = arrays["lane_steps"].sum(axis=0)
                del rows[chunk.number]
                yield chunk, arrays


def run_chunk(chunk: Chunk, **options: Any) -> dict[str, np.ndarray]:
    """Compute one chunk: a pure task for another machine. Options as in `run_chunks`."""
    ((_, arrays),) = run_chunks([chunk], **options)
    return arrays


def _run_lanes(
    chunks: Sequence[Chunk], devices: Sequence[Any], slots: int | None, workers: int | None, report: Report
) -> Generator[tuple[Any, LaneResult], None, None]:
    """The lanes of the chunks, those that run on the host by themselves last."""
    programs: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        programs.setdefault(chunk.program_number, []).append(chunk)
    whole, on_host = [], []
    for members in programs.values():
        labelled = [item for chunk in members for item in chunk.labelled()]
        group = members[0].group(labelled)
        if isinstance(group, HostGroup):
            on_host.append(group)
        else:
            whole.append((group, labelled))
    host_lanes.check_groups(on_host, workers)
    yield from scheduler.run(whole, devices=devices, slots=slots, workers=workers, report=report)
    yield from host_lanes.run(on_host, workers=workers, report=report)
