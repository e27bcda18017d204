"""Copies of a run's figures for other tools, on this machine alone: MLflow in a SQLite file, TensorBoard in a folder.

The run directory stays the record. A mirror that fails is given up with a warning, and the run goes on.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ehrsequencing.errors import ConfigError
from ehrsequencing.tracking.text import flatten

logger = logging.getLogger(__name__)

PACKAGES = {"mlflow": ("mlflow", "sqlalchemy", "alembic"), "tensorboard": ("tensorboard",)}
"""Mirrors and what must be installed for each."""
LONGEST_PARAMETER = 6000
"""Characters that MLflow keeps of a parameter."""


class Mirror(Protocol):
    """What a mirror is told."""

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Settings of the run."""

    def metrics(self, values: Mapping[str, float], epoch: int) -> None:
        """Finite figures of one epoch."""

    def close(self, status: str) -> None:
        """The run has ended so."""


class TensorBoard:
    """Event files in `RUN/tensorboard`.

    Args:
        folder: Of the event files.
        done: Last epoch that stays; what was written after it is hidden, since it is done again.
    """

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=done + 1)

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        rows = [f"| {key} | {value} |" for key, value in flatten(values).items()]
        self._writer.add_text("hyperparameters", "\n".join(["| option | value |", "|---|---|", *rows]))

    def metrics(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self, status: str) -> None:
        self._writer.add_text("status", status)
        self._writer.close()


class Mlflow:
    """A run in a SQLite file; experiments are named by the folder of the runs.

    Args:
        database: SQLite file, made where it is missing.
        experiment, name: Of the run.
        run_id: Of the run that goes on; None for a new one.
    """

    def __init__(self, database: Path, experiment: str, name: str, run_id: str | None) -> None:
        # MLflow reports its use to its makers unless told otherwise before it is imported.
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        from mlflow.tracking import MlflowClient

        for noisy in ("alembic", "mlflow"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        database.parent.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=f"sqlite:///{database.resolve()}")
        found = self._client.get_experiment_by_name(experiment)
        number = (
            found.experiment_id
            if found is not None
            else self._client.create_experiment(experiment, artifact_location=database.parent.resolve().as_uri())
        )
        self.run_id = run_id or self._client.create_run(number, run_name=name).info.run_id

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        for key, value in flatten(values).items():
            self._client.log_param(self.run_id, key, str(value)[:LONGEST_PARAMETER])

    def metrics(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self.run_id, name, value, step=epoch)

    def close(self, status: str) -> None:
        self._client.set_tag(self.run_id, "status", status)
        ended = {"failed": "FAILED", "interrupted": "KILLED"}.get(status, "FINISHED")
        self._client.set_terminated(self.run_id, ended)


def check_mirrors(asked: Sequence[str]) -> None:
    """Refuse what cannot be mirrored, before anything is written.

    Raises:
        ConfigError: an unknown name, one given twice, or a package that is not installed.
    """
    for item in asked:
        name, sign, place = item.partition("=")
        if name not in PACKAGES or bool(sign) != bool(place) or (place and name != "mlflow"):
            raise ConfigError("a mirror of the run", got=item, expected="mlflow, mlflow=FILE or tensorboard")
        if any(find_spec(package) is None for package in PACKAGES[name]):
            raise ConfigError(
                f"the mirror {name} needs packages that are not installed",
                expected=" and ".join(PACKAGES[name]),
                remedy=f"pip install 'ehrsequencing[{name}]'",
            )
    names = [item.partition("=")[0] for item in asked]
    if len(set(names)) < len(names):
        raise ConfigError("a mirror is asked for twice", got=", ".join(asked), remedy="name each once")


class Mirrors:
    """The mirrors of one run.

    Args:
        asked: As `check_mirrors` lets pass; `mlflow=FILE` names the database, `RUN/../mlflow.db` by default.
        run_dir: The run.
        earlier: `state` of the process before, for a run that goes on.
        done: Last epoch of the run that stays; -1 for a new one.
    """

    def __init__(self, asked: Sequence[str], run_dir: Path, earlier: Mapping[str, Any], done: int) -> None:
        self._open: dict[str, Mirror] = {}
        self.state: dict[str, Any] = {}
        for item in asked or earlier:
            name, _, place = item.partition("=")
            before = earlier.get(name, {})
            if name == "tensorboard":
                self._open[name] = TensorBoard(run_dir / "tensorboard", done)
                self.state[name] = {}
                continue
            database = Path(place or before.get("database", run_dir.parent / "mlflow.db")).resolve()
            same = str(database) == before.get("database")
            opened = Mlflow(database, run_dir.resolve().parent.name, run_dir.name, before.get("run") if same else None)
            self._open[name] = opened
            self.state[name] = {"database": str(database), "run": opened.run_id}

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        self._tell("hyperparameters", values)

    def metrics(self, values: Mapping[str, float], epoch: int) -> None:
        self._tell("metrics", {name: value for name, value in values.items() if math.isfinite(value)}, epoch)

    def close(self, status: str) -> None:
        self._tell("close", status)
        self._open.clear()

    def _tell(self, what: str, *values: Any) -> None:
        for name, mirror in list(self._open.items()):
            try:
                getattr(mirror, what)(*values)
            except Exception as problem:  # noqa: BLE001
                # Whatever another program's storage raises, hours of training are worth more than its copy.
                logger.warning("the mirror %s is given up: %s: %s", name, type(problem).__name__, problem)
                del self._open[name]
