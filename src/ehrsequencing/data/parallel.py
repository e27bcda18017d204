"""One map over tasks: on threads of this process, or on a Ray cluster."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Protocol

from ehrsequencing.errors import ConfigError, RunError

ENGINES = ("local", "ray")
CONNECT_SECONDS = 5.0
_ADDRESSES = "HOST:PORT, ray://HOST:PORT, auto or local"
_RAY_REMEDY = "set RAY_ADDRESS to the cluster's address, or unset it to have one started here"
_REMEDY = "free memory or pass fewer workers, and repeat the command: it continues where it stopped"


class WorkerDiedError(RunError):
    """A worker process died, most often for want of memory; what others finished stays."""


class Map(Protocol):
    """Yields the result of each task in order, whatever runs at the same time."""

    def __call__(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]: ...


@contextmanager
def task_map(name: str, workers: int) -> Iterator[Map]:
    """The map of an engine; its workers end with the block.

    Args:
        name: "local": threads of this process. "ray": a Ray cluster, the one that `RAY_ADDRESS` names or else one
            started here; every machine of it must see the same folders.
        workers: Tasks at a time.

    Raises:
        ConfigError: an unknown engine, Ray is not installed, or no cluster answers at `RAY_ADDRESS`.
        WorkerDiedError: within the block, a worker of the cluster died.
    """
    if name not in ENGINES:
        raise ConfigError("engine", got=name, expected=" or ".join(ENGINES))
    if name == "ray":
        with _ray(workers) as run:
            yield run
    elif workers == 1:
        yield lambda function, tasks: map(function, tasks)
    else:
        with _threads(workers) as run:
            yield run


@contextmanager
def _threads(workers: int) -> Iterator[Map]:
    # The work is numpy's and arrow's, which hold no lock of the interpreter; processes would first import them all.
    with ThreadPoolExecutor(workers) as pool:

        def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
            futures = [pool.submit(function, task) for task in tasks]
            try:
                for future in futures:
                    yield future.result()
            finally:
                # After an error nobody writes any more, so that what is there can be removed.
                for future in futures:
                    future.cancel()
                wait(futures)

        yield run


def refuse_unreachable(address: str) -> None:
    """Ask whether anything answers at a cluster's address, since Ray itself would wait for minutes.

    Args:
        address: As in `RAY_ADDRESS`: `HOST:PORT` or `ray://HOST:PORT`; `auto` and `local` name no place.

    Raises:
        ConfigError: it is no address, or nobody listens there.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rstrip("/").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError("RAY_ADDRESS names no cluster", got=address, expected=_ADDRESSES, remedy=_RAY_REMEDY)
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, UnicodeError) as problem:
        raise ConfigError(f"no Ray cluster at {address}", got=str(problem), remedy=_RAY_REMEDY) from None


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
        address = os.environ.get("RAY_ADDRESS")
        if address:
            refuse_unreachable(address)
        try:
            ray.init(
                log_to_driver=False, include_dashboard=None if address else False, num_cpus=None if address else workers
            )
        except (ValueError, ConnectionError, RuntimeError) as problem:
            raise ConfigError(
                f"no Ray cluster at {address}" if address else "Ray does not start a cluster here",
                got=str(problem).partition("\n")[0][:200], remedy=_RAY_REMEDY,
            ) from None  # fmt: skip

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
