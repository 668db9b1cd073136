"""What a run was made of, for its page: steps, curves, data, partitions, weights, environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from finetune.data.labeled_images import Split, count_classes
from finetune.folder.run_folder import RunFolder
from finetune.page.figures import Line, bar_chart, line_chart, save_charts, svg
from finetune.page.html import picture
from finetune.recipe import TrainStage
from finetune.run.curves import curve_charts, curves_by_stage
from finetune.run.setup import RunSetup

_BATCH_EDGE = 1024  # pixels; the grids of images have this width


def describe_curves(records: Sequence[Mapping[str, Any]], metric: str) -> list[Any]:
    """A chart for each curve, with a line for each stage.

    Args:
        records: of ``metrics.jsonl``.
        metric: name of the one that decides.
    """
    stages = curves_by_stage(records, metric)
    names = ", ".join(stage["name"] for stage in stages)
    charts = curve_charts(stages)
    return [svg(chart, f"Curves of the {title} by epoch, of {names}") for title, chart in charts.items()]


def describe_interpolation(found: Mapping[str, Any] | None) -> list[Any]:
    """A chart of the validation metric by the share of the fine-tuned weights; none where nothing was interpolated.

    Args:
        found: as in summary.json.
    """
    if not found:
        return []
    (first, second), metric = found["between"], found["metric"].replace("_", " ")
    line = Line(f"best: {found['best']:.1f}", list(zip(found["shares"], found["validation"], strict=True)))
    chart = line_chart(f"validation {metric} between weights", [line], f"share of {second}, the rest {first}")
    return [svg(chart, f"Validation {metric} of the weights between {first} and {second}, by the share of {second}")]


def describe_batches(setup: RunSetup, folder: RunFolder) -> list[tuple[str, Any]]:
    """(stage, picture of its first images) of each training stage that left one."""
    shown = []
    for stage in setup.recipe.train_stages.values():
        file = folder.figure(f"{stage.name}_batch")
        if file.is_file():
            alt = f"Training images of stage {stage.name} as the model sees them, with augmentation, and their classes"
            with Image.open(file) as grid:
                shown.append((stage.name, picture(grid, alt, _BATCH_EDGE)))
    return shown


def describe_data(setup: RunSetup) -> dict[str, Any]:
    """The images of each split, and what was said about them."""
    splits = setup.splits
    return {
        "source": setup.recipe.data.source,
        "classes": len(splits.class_names),
        "splits": [_describe_split(name, split, setup) for name, split in splits.named().items()],
        "left_out": len(splits.left_out),
        "skipped": splits.skipped,
        "notes": [line for line in (*splits.notes, setup.leakage) if line],
    }


def _describe_split(name: str, split: Split, setup: RunSetup) -> dict[str, Any]:
    names, facts = setup.splits.class_names, {"name": name, "images": len(split)}
    counts = count_classes(split.labels, len(names))
    facts |= {"rarest": int(counts.min()), "rarest_class": names[int(counts.argmin())]}
    facts |= {"most_frequent": int(counts.max()), "most_frequent_class": names[int(counts.argmax())]}
    facts["without_label"] = int((~split.labels.any(1)).sum()) if split.multi_label else 0
    facts["skipped"] = setup.splits.skipped_from(name)
    facts["sizes"] = facts["modes"] = ""
    if (stats := split.stats) is not None:
        ends = [int(np.argmin(stats.width * stats.height)), int(np.argmax(stats.width * stats.height))]
        smallest, largest = (f"{stats.width[i]} x {stats.height[i]}" for i in ends)
        facts["sizes"] = smallest if smallest == largest else f"{smallest} to {largest}"
        facts["modes"] = ", ".join(f"{mode} ({count:,})" for mode, count in Counter(stats.mode.tolist()).most_common())
    return facts


def describe_stages(setup: RunSetup) -> list[dict[str, Any]]:
    """What each stage trained and how: a record for each partition, or for the head that was fitted."""
    records: list[dict[str, Any]] = []
    for index, stage in enumerate(setup.recipe.stages):
        if not isinstance(stage, TrainStage):
            head = {"partition": "head", "parameters": None, "treatment": f"{stage.type}, fitted to features"}
            records.append({"stage": stage.name, **head, "length": ""})
            continue
        length = setup.lengths[index]
        for part in setup.partitions[index]:
            records.append(
                {
                    "stage": stage.name,
                    "partition": part["name"],
                    "parameters": part["parameters"],
                    "treatment": _treatment(part, stage),
                    "length": f"{length.total_steps:,} steps of {stage.batch_size}",
                }
            )
    return records


def _treatment(part: Mapping[str, Any], stage: TrainStage) -> str:
    if part["frozen"]:
        return "frozen"
    rule = next(rule for rule in stage.partitions if rule.label == part["name"])
    words = [part["optimizer"], f"learning rate {part['learning_rate']:g} ({rule.schedule.name})"]
    if rule.weight_decay:
        words.append(f"weight decay {rule.weight_decay:g}")
    if rule.layer_decay is not None:
        words.append(f"layer decay {rule.layer_decay:g}")
    if part["lora"] is not None:
        words.append(f"LoRA of rank {part['lora']}")
    return ", ".join(words)


def describe_weights(layer_change: Mapping[str, Mapping[str, Any]], folder: RunFolder) -> list[dict[str, Any]]:
    """The stage, a chart of the relative change of each layer (None where none of the pretrained ones changed), and the
    numbers.

    Args:
        layer_change: as in summary.json.
    """
    shown, charts = [], []
    for stage, layers in layer_change.items():
        bars = {layer: 100 * change["relative"] for layer, change in layers.items() if change["relative"] is not None}
        drawn = None
        if any(bars.values()):
            most = max(bars, key=lambda layer: bars[layer])
            alt = f"Change of the weights by layer after {stage}: the most in {most}, {bars[most]:.2g}% of its norm"
            charts.append(bar_chart(f"after {stage}", bars, "change in % of the pretrained norm"))
            drawn = svg(charts[-1], alt)
        records = [{"name": layer, **change} for layer, change in layers.items()]
        shown.append({"stage": stage, "chart": drawn, "layers": records})
    if charts:
        save_charts(folder.figure("weight_change"), charts)
    return shown
