"""One map over tasks: in this process, in local worker processes, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol

from ehrsequencing.errors import ConfigError, RunError

ENGINES = ("local", "ray")
_REMEDY = "free memory or pass fewer workers, and repeat the command: it continues where it stopped"


class WorkerDiedError(RunError):
    """A worker process died, most often for want of memory; what others finished stays."""


class Map(Protocol):
    """Yields the result of each task in order, whatever runs at the same time."""

    def __call__(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]: ...


@contextmanager
def task_map(name: str, workers: int) -> Iterator[Map]:
    """The map of an engine; its processes end with the block.

    Args:
        name: "local": processes of this machine. "ray": a Ray cluster, the one that `RAY_ADDRESS` names or else one
            started here; every machine of it must see the same folders.
        workers: Tasks at a time.

    Raises:
        ConfigError: an unknown engine, or Ray is not installed.
        WorkerDiedError: within the block, a worker process died.
    """
    if name not in ENGINES:
        raise ConfigError("engine", got=name, expected=" or ".join(ENGINES))
    if name == "ray":
        with _ray(workers) as run:
            yield run
    elif workers == 1:
        yield lambda function, tasks: map(function, tasks)
    else:
        with _processes(workers) as run:
            yield run


@contextmanager
def _processes(workers: int) -> Iterator[Map]:
    # Spawned: forking a process with threads of polars or arrow may lock up.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
    # They start while this process opens the dataset.
    for _ in range(workers):
        pool.submit(os.getpid)

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        try:
            yield from pool.map(function, tasks)
        except BrokenProcessPool:
            raise WorkerDiedError("a worker process died", remedy=_REMEDY) from None

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C is the parent's to handle; and a parent that is killed takes its workers along.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    import ehrsequencing.data.encode  # noqa: F401


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _ray(workers: int) -> Iterator[Map]:
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "engine ray needs the package ray", got="not installed", remedy='pip install "ehrsequencing[ray]"'
        ) from None
    ours = not ray.is_initialized()
    if ours:
        elsewhere = "RAY_ADDRESS" in os.environ
        ray.init(
            log_to_driver=False, include_dashboard=None if elsewhere else False, num_cpus=None if elsewhere else workers
        )

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        remote = ray.remote(function)
        waiting: list[Any] = []
        rest = iter(tasks)
        try:
            for task in rest:
                waiting.append(remote.remote(task))
                if len(waiting) >= 2 * workers:
                    yield ray.get(waiting.pop(0))
            while waiting:
                yield ray.get(waiting.pop(0))
        except ray.exceptions.RayTaskError as problem:
            raise problem.cause from None
        except ray.exceptions.RayError as problem:
            raise WorkerDiedError("a worker process died", got=str(problem).splitlines()[0], remedy=_REMEDY) from None
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)

    try:
        yield run
    finally:
        if ours:
            ray.shutdown()
