"""Which backbone and which head suit one's own images: every pair, from features that are computed once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from pydantic import TypeAdapter

from finetune.data.splits import Splits, describe_skipped, load_splits
from finetune.distributed.sharding import on_all_devices
from finetune.errors import CheckpointError, DataError, FinetuneError, RecipeError, nearest
from finetune.evaluation.metrics import Evaluation
from finetune.evaluation.statistics import wilson_interval
from finetune.files import write_json, write_text
from finetune.folder.run_folder import is_run_or_bundle
from finetune.models.backbone import Backbone
from finetune.models.build import attach_head, open_backbone
from finetune.models.classifier import head_paths, without_head
from finetune.models.zero_shot import TextClassifier, text_classifier
from finetune.recipe import DataConfig, HeadConfig, HeadStage, PretrainedConfig, Recipe, Stage
from finetune.recipe.heads import TextStage
from finetune.recipe.source import dump_recipe
from finetune.run.features import FeatureEvaluator, RunFeatures
from finetune.run.heads import FittedHead, FittingData, fit_head, head_config
from finetune.run.progress import Progress
from finetune.run.run import with_absolute_paths
from finetune.trees import count_values, merge
from finetune.weights.locate import locate

HEADS = ("linear_probe", "knn", "prototype", "tip_adapter", "lp++", "clap")
ZERO_SHOT = "zero_shot"
_BATCH = 256


def make_leaderboard(
    data: DataConfig,
    backbones: Sequence[str],
    heads: Sequence[str] = ("linear_probe", "knn", "prototype"),
    *,
    templates: Sequence[str] = ("a photo of a {}",),
    seed: int = 0,
    output: str | Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fits every head to the features of every backbone, and measures them on the test images.

    Args:
        data: the images.
        backbones: folders, hub ids, or ``builtin:tiny-clip``.
        heads: types of stages that fit a head, and ``zero_shot``; those that need class names are left out where a
            backbone has no text tower.
        templates: prompts for these; {} stands for the class name.
        seed: of the splits.
        output: a folder for ``leaderboard.json``, ``leaderboard.png`` and ``best.yaml``, the recipe of the best; None
            writes nothing.
        quiet: print nothing.

    Returns:
        ``rows``, the best first: ``backbone``, ``head``, ``n``, the test metrics, ``interval`` (of 95%, of the
        accuracy), ``validation`` (the metric that decides), ``fit_seconds``, ``features_seconds``, ``parameters`` and
        ``images_per_second``; ``metric``; ``chosen_on``, the split that the order follows; ``left_out``, in words.

    Raises:
        FinetuneError: an unknown head, a backbone or images that cannot be used, or nothing that could be fitted.
    """
    check_heads(heads)
    for source in backbones:
        locate(source)
    folder = None if output is None else _folder(Path(output))
    with Progress(quiet) as display:
        splits = load_splits(data, seed, track=display.track)
        for line in describe_skipped(splits.skipped):
            display.say(line)
        if splits.multi_label and set(heads) != {"linear_probe"}:
            raise DataError("these images have several labels each: the one head for them is linear_probe")
        rows: list[dict[str, Any]] = []
        left_out: list[str] = []
        for source in backbones:
            contender = _Contender(source, splits, templates, seed, display)
            for head in heads:
                if contender.lacks_text_for(head):
                    left_out.append(f"{head} on {source}, which has no text tower")
                    continue
                rows.append(contender.measure(head))
                display.say(describe(rows[-1]))
    if not rows:
        raise DataError(f"nothing to compare: {'; '.join(left_out)}")
    chosen_on = "test" if splits.validation is None else "validation"
    rows.sort(key=lambda row: row["score"], reverse=True)
    result = {"rows": rows, "metric": rows[0]["metric"], "chosen_on": chosen_on, "left_out": left_out}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "leaderboard.json", result)
        draw(rows, folder / "leaderboard.png")
        write_text(folder / "best.yaml", _recipe_text(rows[0], data, templates, seed, multi_label=splits.multi_label))
    return result


def check_heads(heads: Sequence[str]) -> None:
    """Raises RecipeError for a name that is none."""
    for head in heads:
        if head not in (*HEADS, ZERO_SHOT):
            valid = [*HEADS, ZERO_SHOT]
            raise RecipeError(f"heads: {head!r} is none{nearest(head, valid)}; choose from {', '.join(valid)}")


def describe(row: dict[str, Any]) -> str:
    metric = row["metric"]
    return f"{row['backbone']}, {row['head']}: {metric.replace('_', ' ')} {row[metric]:.4f}"


class _Contender:
    """One backbone, whose features all of its heads share."""

    def __init__(self, source: str, splits: Splits, templates: Sequence[str], seed: int, display: Progress) -> None:
        self.source, self.splits, self.seed = source, splits, seed
        self._templates, self._display = templates, display
        self.backbone: Backbone = open_backbone(PretrainedConfig(source=source), seed=seed)
        self._classifier, self._variables = attach_head(self.backbone, HeadConfig(), len(splits.class_names), seed=seed)
        self._features = RunFeatures(self.backbone.image_spec, _BATCH, display, lambda when: None, on_all_devices())

    def lacks_text_for(self, head: str) -> bool:
        needs = head == ZERO_SHOT or isinstance(stage_of(head), TextStage)
        return needs and self.backbone.text is None

    def measure(self, head: str) -> dict[str, Any]:
        """One row of the table."""
        data, seconds = self._data
        stage, began = None if head == ZERO_SHOT else stage_of(head), time.perf_counter()
        if stage is None:
            text = self._text()
            kernel = text.kernel(data.features)
            fitted = FittedHead({"params": {"head": {"kernel": kernel, "bias": kernel[0] * 0}}})
        else:
            fitted = fit_head(stage, data, self._text)
        variables = merge(without_head(self._variables), fitted.variables)
        jax.block_until_ready(variables)
        fit_seconds = time.perf_counter() - began
        evaluations = self._evaluate(stage, variables)
        test, validation = evaluations["test"], evaluations.get("validation")
        correct = test.accuracy * test.n
        return {
            "backbone": self.source,
            "head": head,
            **test.to_json(),
            "interval": list(wilson_interval(correct, test.n)) if test.metric == "accuracy" else None,
            "validation": None if validation is None else validation.value(),
            "score": (validation or test).value(),
            "fit_seconds": round(fit_seconds, 3),
            "features_seconds": round(seconds, 3),
            "parameters": count_values(variables),
            "images_per_second": round(self._speed, 2),
        }

    @cached_property
    def _data(self) -> tuple[FittingData, float]:
        """What heads are fitted to, and the seconds that this took."""
        began, splits, held_out = time.perf_counter(), self.splits, None
        train = self._head_inputs("train")
        if splits.validation is not None:
            held_out = (self._head_inputs("validation"), splits.validation.labels)
        data = FittingData(train, splits.train.labels, held_out, len(splits.class_names), self.seed)
        return data, time.perf_counter() - began

    def _head_inputs(self, name: str) -> Any:
        split = self.splits.named()[name]
        return self._features.head_inputs(self._classifier, self._variables, split, f"{self.source}: {name}")

    @cached_property
    def _speed(self) -> float:
        return self._features.head_extractor(self._classifier, self._variables).images_per_second()

    def _text(self) -> TextClassifier:
        return text_classifier(self.backbone, self.splits.class_names, self._templates)

    def _evaluate(self, stage: HeadStage | None, variables: Any) -> dict[str, Evaluation]:
        text = self.backbone.text
        width = None if text is None else text.image_projection.shape[1]
        config = None if stage is None else head_config(stage, len(self.splits.train), width)
        classifier = self._classifier.clone(head_config=config)
        evaluator = FeatureEvaluator(self._features, classifier, variables, head_paths(variables), _BATCH)
        splits = {name: split for name, split in self.splits.named().items() if name != "train"}
        return {name: evaluator(variables, split, f"{self.source}: {name}") for name, split in splits.items()}


def stage_of(head: str) -> HeadStage:
    """A stage that fits a head, with its defaults."""
    stage = TypeAdapter[Any](Stage).validate_python({"type": head})
    assert isinstance(stage, HeadStage)
    return stage


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Every pair's test metric with its interval, by backbone; a color for each head."""
    from matplotlib.figure import Figure

    metric, backbones = rows[0]["metric"], list(dict.fromkeys(row["backbone"] for row in rows))
    heads = list(dict.fromkeys(row["head"] for row in rows))
    figure = Figure(figsize=(7, 1.2 + 0.28 * len(rows) + 0.3 * len(backbones)), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        place = backbones.index(row["backbone"]) + (heads.index(row["head"]) - (len(heads) - 1) / 2) * 0.8 / len(heads)
        low, high = row["interval"] or (row[metric], row[metric])
        error = [[row[metric] - low], [high - row[metric]]]
        color = f"C{heads.index(row['head']) % 10}"
        axes.errorbar(row[metric], place, xerr=error, fmt="o", capsize=3, color=color, label=row["head"])
    axes.set_yticks(range(len(backbones)), backbones)
    axes.invert_yaxis()
    axes.set_xlabel(f"test {metric.replace('_', ' ')}" + (", with its 95% interval" if rows[0]["interval"] else ""))
    axes.grid(alpha=0.3)
    labels = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(labels.values(), labels.keys(), loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=120)


def _folder(folder: Path) -> Path:
    """Where the results go.

    Raises:
        CheckpointError: that is a file, or the folder of a run.
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: the output is a folder, and a file has that name")
    if folder.is_dir() and is_run_or_bundle(folder):
        raise CheckpointError(f"{folder}: holds a run; choose another folder with --output")
    return folder


def _recipe_text(
    row: dict[str, Any], data: DataConfig, templates: Sequence[str], seed: int, *, multi_label: bool
) -> str:
    """The best pair as a recipe: the head, and where it is linear the fine-tuning of all parameters from there.

    Its paths are absolute, as those in a recipe start from its own folder.
    """
    head, texts = row["head"], list(templates)
    stages: list[dict[str, Any]] = [] if head == ZERO_SHOT else [{"type": head}]
    if head not in ("knn", "tip_adapter"):
        peak = {"schedule": {"name": "cosine", "warmup": 0.1}}
        rules = [{"match": "head", "learning_rate": 1e-4, **peak}, {"match": "backbone", "learning_rate": 1e-5, **peak}]
        loss = {"loss": "binary_cross_entropy"} if multi_label else {}
        stages.append({"name": "finetune", "epochs": 10, "batch_size": 32, **loss, "partitions": rules})
    text: dict[str, Any] = {"templates": texts} if head in ("tip_adapter", "lp++", "clap", ZERO_SHOT) else {}
    document = {
        "name": "best",
        "seed": seed,
        "backbone": {"source": row["backbone"]},
        "head": {**text, **({"init": ZERO_SHOT} if head == ZERO_SHOT else {})},
        "data": data.model_dump(mode="json"),
        "stages": stages,
    }
    metric = f"{row['metric'].replace('_', ' ')} {row[row['metric']]:.4f}"
    header = (
        f"# Purpose: the best of a leaderboard: {row['head']} on {row['backbone']}.\n"
        f"# Expect:  test {metric} on {row['n']} images from the head.\n"
    )
    try:
        return header + dump_recipe(with_absolute_paths(Recipe.model_validate(document)))
    except ValueError as error:
        raise FinetuneError(f"the best pair makes no recipe: {error}") from None
