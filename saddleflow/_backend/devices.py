"""What there is to compute on: devices, cores, memory, and threads of LAPACK."""

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import jax
import psutil
from threadpoolctl import ThreadpoolController

from saddleflow._backend.arguments import refuse, scalar
from saddleflow._backend.checks import require

# Slots on an accelerator, where a step of 256 lanes takes less than twice as long as one of 32 (docs/sweeps.md).
ACCELERATOR_SLOTS = 256


def slots_per_program(device: Any, size: int = 0) -> int:
    """Slots of one compiled program on a device, of `size` bytes each; a slot holds one lane of a sweep.

    One on a CPU, as `saddleflow.sweeps.scheduler` explains; else `ACCELERATOR_SLOTS`, halved until they fit the
    memory.
    """
    slots = 1 if device.platform == "cpu" else ACCELERATOR_SLOTS
    while slots > 1 and slots * size > free_memory(device, slots * size):
        slots //= 2
    return slots


def free_memory(device: Any, unknown: int) -> int:
    """Bytes free on a device; `unknown` where it does not say."""
    if device.platform == "cpu":
        return psutil.virtual_memory().available
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", unknown) - stats.get("bytes_in_use", 0)


def find_devices(devices: int | Sequence[Any] | None) -> list[Any]:
    """Local devices to work on: all, the first so many, or those given.

    Raises:
        ValueError: more devices asked for than there are.
    """
    there = jax.local_devices()
    if devices is None:
        return there
    devices = scalar(devices)
    if isinstance(devices, int) and not isinstance(devices, bool):
        require(
            1 <= devices <= len(there),
            "devices",
            f"be at least 1 and at most the {len(there)} there are",
            devices,
            "Simulate more on a CPU with jax.config.update('jax_num_cpu_devices', n) at the start of the program.",
        )
        return there[:devices]
    if not isinstance(devices, Sequence) or not all(isinstance(one, jax.Device) for one in devices):
        refuse("devices", "be a number of devices or a list of them", devices, "For example jax.devices()[:1].")
    require(len(devices) > 0, "devices", "name at least one device", devices)
    return list(devices)


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# So many bytes are given without a look at the memory.
SMALL = 10**8


class _Lapack:
    """Who is in `one_lapack_thread`, and how to restore what was set before."""

    lock = threading.Lock()
    users = 0
    limit: Any = None
    setter: ThreadPoolExecutor


@cache  # slow to make
def _controller() -> ThreadpoolController:
    """The controller of all LAPACKs. It knows those that are loaded when it is made, so scipy's is loaded first."""
    import scipy.linalg  # noqa: F401

    return ThreadpoolController()


@contextmanager
def one_lapack_thread() -> Iterator[None]:
    """LAPACK on the calling thread alone, as long as anyone in the process is inside. Also a decorator.

    On CPUs XLA takes LAPACK from scipy, whose OpenBLAS keeps a thread a core spinning between the small
    factorisations of a step: the lanes of a sweep then fight for the cores and take twice as long (docs/sweeps.md).
    """
    with _Lapack.lock:
        _Lapack.users += 1
        if _Lapack.users == 1:
            # threadpoolctl lets one thread set limits, as long as it lives: this one, whoever is the last to leave
            _Lapack.setter = ThreadPoolExecutor(1, "lapack")
            limit = _controller().limit
            _Lapack.limit = _Lapack.setter.submit(limit, limits=1, user_api="blas").result()
    try:
        yield
    finally:
        with _Lapack.lock:
            _Lapack.users -= 1
            if _Lapack.users == 0:
                _Lapack.setter.submit(_Lapack.limit.restore_original_limits).result()
                _Lapack.setter.shutdown()


def check_room(argument: str, value: Any, need: int, remedy: str) -> None:
    """Refuse arrays of so many bytes that they do not fit into what is free.

    Args:
        argument: that asks for them.
        value: of that.
        need: bytes.
        remedy: what to ask for.

    Raises:
        ValueError: forecast and what is there.
    """
    if need < SMALL:
        return
    there = free_memory(jax.local_devices()[0], need)
    expected = f"fit the memory, of which {there / 1e9:.2f} GB are free"
    require(need <= there, argument, expected, value, f"A forecast says {need / 1e9:.3g} GB. {remedy}")


def check_memory(need: int, workers: int, device: Any, what: str) -> None:
    """Refuse what a forecast says will not fit: `need` bytes a worker; all workers of a CPU use one memory.

    Raises:
        ValueError: forecast and what is there, with the remedy.
    """
    if device.platform == "cpu":
        need *= workers
    there = free_memory(device, need)
    require(
        need <= there,
        "width, save_at, slots",
        f"fit the memory: {there / 1e9:.2f} GB are free",
        f"a forecast of {need / 1e9:.2f} GB for {workers} worker(s) of {what}",
        "Take fewer slots, fewer devices, fewer saved times or a smaller width.",
    )
