"""MLflow: a server, a database or a folder."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Mapping

from finetune.recipe.trackers import MlflowConfig
from finetune.trackers.tracker import Status, TrackedRun

_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "diverged": "FAILED", "failed": "FAILED"}
_PARAMETERS = 100  # that one request takes
_LONGEST = 500  # characters of a parameter's value, that every store takes


class MlflowTracker:
    """Follows a run by MLflow's client. A run that goes on has the id of before."""

    name = "mlflow"

    def __init__(self, config: MlflowConfig) -> None:
        self._config = config

    def start(self, run: TrackedRun) -> str:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing goes where the user has not said
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table that it makes
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # and of each try

        config = self._config
        self._client = MlflowClient(tracking_uri=config.tracking_uri)
        if run.id is not None:
            self._id = run.id
            self._client.update_run(self._id, status="RUNNING")
            return self._id
        experiment = self._client.get_experiment_by_name(config.experiment)
        number = self._client.create_experiment(config.experiment) if experiment is None else experiment.experiment_id
        created = self._client.create_run(number, tags=config.tags, run_name=config.run_name or run.name)
        self._id = str(created.info.run_id)
        self._log_parameters(run.config)
        return self._id

    def _log_parameters(self, config: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        values = zip(safe_names(config), config.values(), strict=True)
        parameters = [Param(name, str(value)[:_LONGEST]) for name, value in values]
        for i in range(0, len(parameters), _PARAMETERS):
            self._client.log_batch(self._id, params=parameters[i : i + _PARAMETERS])

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        values = zip(safe_names(scalars), scalars.values(), strict=True)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values])

    def finish(self, status: Status) -> None:
        self._client.set_terminated(self._id, _STATUS[status])


def safe_names(names: Iterable[str]) -> list[str]:
    """As MLflow takes them: ``head/.*`` becomes ``head/._``, and of two that would be one, the second ``head/.__2``."""
    safe: list[str] = []
    for name in names:
        parts = re.sub(r"[^\w ./-]", "_", name, flags=re.ASCII).split("/")
        plain = "/".join(part if part.strip(".") else part.replace(".", "_") or "_" for part in parts)
        same = sum(other == plain or re.fullmatch(rf"{re.escape(plain)}_\d+", other) is not None for other in safe)
        safe.append(f"{plain}_{same + 1}" if plain in safe else plain)
    return safe
