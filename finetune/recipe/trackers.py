"""Who follows a run's numbers beside its folder. A tracker changes nothing of the result."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune.recipe.base import ByName, Part

Label = Annotated[str, Field(min_length=1, max_length=128)]


class TensorBoardConfig(Part):
    """TensorBoard: event files in the run's folder, for ``tensorboard --logdir checkpoints``."""

    name: Literal["tensorboard"] = "tensorboard"


class TrackioConfig(Part):
    """Trackio: a database on this machine, for ``trackio show``, or a Space of the Hugging Face hub.

    Attributes:
        project: that the run is among.
        run_name: the run's name there, by default the recipe's; four characters follow, as Trackio knows runs by name.
        group: of runs that belong together.
        space: ``owner/name`` of a Space to send the numbers to; by default nothing leaves the machine.
    """

    name: Literal["trackio"] = "trackio"
    project: Label = "finetune"
    run_name: Label | None = None
    group: Label | None = None
    space: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")


class WandbConfig(Part):
    """Weights & Biases: online with your key, or offline files for ``wandb sync``.

    Attributes:
        project: that the run is among.
        entity: user or team that owns the project; by default that of the key.
        run_name: the run's name there; by default the recipe's.
        group: of runs that belong together.
        tags: of the run.
        mode: by default ``WANDB_MODE``, or ``online``, which needs a key: ``wandb login`` or ``WANDB_API_KEY``.
            ``offline`` writes files in ``wandb/`` (``WANDB_DIR``) and sends nothing.
    """

    name: Literal["wandb"] = "wandb"
    project: Label = "finetune"
    entity: Label | None = None
    run_name: Label | None = None
    group: Label | None = None
    tags: list[Label] = Field(default_factory=list)
    mode: Literal["online", "offline"] | None = None


class MlflowConfig(Part):
    """MLflow: a server, a database or a folder.

    Attributes:
        experiment: that the run is among; it is made where there is none of that name.
        tracking_uri: such as ``http://localhost:5000``, ``sqlite:////data/mlflow.db`` or ``file:///data/mlruns``; by
            default ``MLFLOW_TRACKING_URI``, or what MLflow takes without.
        run_name: the run's name there; by default the recipe's.
        tags: of the run.
    """

    name: Literal["mlflow"] = "mlflow"
    experiment: Label = "finetune"
    tracking_uri: str | None = Field(None, pattern=r"^([A-Za-z][A-Za-z0-9+.-]*:.+|databricks)$")
    run_name: Label | None = None
    tags: dict[str, str] = Field(default_factory=dict)


TrackerConfig = Annotated[
    TensorBoardConfig | TrackioConfig | WandbConfig | MlflowConfig, Field(discriminator="name"), ByName()
]
