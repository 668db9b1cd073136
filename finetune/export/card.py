"""The model card of a bundle: README.md, as the Hugging Face hub reads it.

Its front matter is JSON values under YAML keys, which every version of YAML reads alike; all names in its text are
escaped, so that the name of a class or a folder is never markup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.errors import shown
from finetune.export.description import Description

_PLACE = "DIR"  # in what is to be typed: where the bundle is
_MOST_CLASSES = 200  # that are listed
# Ids that the hub knows; all others are "other", with a name.
_HUB_LICENSE = re.compile(
    r"apache-2\.0|mit|bsd(-[23]-clause)?|cc0-1\.0|cc-by(-nc)?(-nd|-sa)?-4\.0|[al]?gpl-3\.0|mpl-2\.0|openrail"
)
_MARKUP = re.compile(r"[\\`*_\[\]<>|#&!~@$]|:(?=/)|(?<=www)\.")  # also what GitHub's Markdown makes links of
_METRICS = {  # key of a result -> (the hub's name of it, ours)
    "accuracy": ("accuracy", "accuracy"),
    "mean_average_precision": ("mean_average_precision", "mean average precision"),
    "macro_f1": ("f1", "macro F1"),
    "loss": ("loss", "loss"),
    "expected_calibration_error": ("expected_calibration_error", "expected calibration error before calibration"),
}


@dataclass(frozen=True)
class CardFacts:
    """What a run knows of its model beyond what the bundle holds.

    Attributes:
        name: of the run.
        backbone: the pretrained model, as others may read it: without folders of this machine. None where the network
            began without pretrained weights.
        base_model: its hub id; None where it has none.
        license: that the backbone's files state; None where they state none.
        data: the source of the images, as others may read it.
        dataset: its hub id; None where it has none.
        images: number by split.
        result: what :func:`describe_result` says of the test images; None where they were not measured.
        also: the same of further sets, by name.
        calibration: what the summary says of it.
    """

    name: str
    backbone: str | None
    base_model: str | None
    license: str | None
    data: str
    dataset: str | None
    images: Mapping[str, int]
    result: Mapping[str, Any] | None = None
    also: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None


def render_card(description: Description, facts: CardFacts | None = None) -> str:
    """The text of a bundle's card.

    Args:
        facts: of the run; None where the bundle was made without one, and says only what it holds.
    """
    head = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in _front(description, facts))
    sections = [_title(description, facts), _use()]
    if facts is not None and facts.result is not None:
        sections.append(_results(facts.result, facts))
    sections += [_confidence(description), _data(description, facts)]
    if facts is not None and facts.backbone is not None:
        sections.append(_license(facts))
    return f"---\n{head}\n---\n\n" + "\n\n".join(sections) + "\n"


def addressed(card: str, place: str) -> str:
    """A card whose commands name the place where the bundle is."""
    return card.replace(f'restore("{_PLACE}")', f'restore("{place}")').replace(
        f"finetune predict {_PLACE} ", f"finetune predict {place} "
    )


def _front(description: Description, facts: CardFacts | None) -> Iterator[tuple[str, Any]]:
    """Keys and values of the hub's metadata."""
    yield "library_name", "flax-finetune"
    yield "pipeline_tag", "image-classification"
    yield "tags", ["image-classification", "jax", "flax", shown(description.backbone.family)]
    if facts is None:
        return
    if facts.license is not None:
        known = _HUB_LICENSE.fullmatch(facts.license.lower()) is not None
        yield "license", facts.license.lower() if known else "other"
        if not known:
            yield "license_name", re.sub(r"[^a-z0-9.]+", "-", facts.license.lower()).strip("-.") or "unnamed"
    if facts.base_model is not None:
        yield "base_model", facts.base_model
        yield "base_model_relation", "finetune"
    if facts.dataset is not None:
        yield "datasets", [facts.dataset]
    if facts.result is not None:
        values = dict(_values(facts.result))
        yield "metrics", [_METRICS[key][0] for key in values]
        yield "model-index", [{"name": shown(facts.name), "results": [_evaluation(facts, values)]}]


def _evaluation(facts: CardFacts, values: Mapping[str, float]) -> dict[str, Any]:
    """A result as the hub's model index has it."""
    source = shown(facts.data)
    metrics = [{"type": _METRICS[key][0], "value": value, "name": _METRICS[key][1]} for key, value in values.items()]
    return {
        "task": {"type": "image-classification", "name": "Image Classification"},
        "dataset": {"type": facts.dataset or "images", "name": source, "split": "test"},
        "metrics": metrics,
    }


def _values(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The metrics that were measured and are finite."""
    for key in _METRICS:
        value = result.get(key)
        if isinstance(value, int | float) and abs(value) < float("inf"):
            yield key, round(float(value), 6)


def _title(description: Description, facts: CardFacts | None) -> str:
    kind = "classes that an image may have several of" if description.multi_label else "classes"
    sentence = f"A classifier of images into {len(description.class_names):,} {kind}"
    if facts is None:
        return f"# Image classifier\n\n{sentence}, made with flax-finetune."
    made = "trained" if facts.backbone is None else f"fine-tuned from {escape(facts.backbone)}"
    return f"# {escape(facts.name)}\n\n{sentence}, {made} with flax-finetune in JAX."


def _use() -> str:
    return f"""## Use

```python
import finetune  # pip install flax-finetune

predictor = finetune.restore("{_PLACE}")
for prediction in predictor.predict(["image.png"]):
    print(prediction.label, prediction.confidence)
```

Or on the command line: `finetune predict {_PLACE} image.png`. The weights are arrays, and nothing here runs code."""


def _results(result: Mapping[str, Any], facts: CardFacts) -> str:
    rows = [f"| {_METRICS[key][1]} | {value:.4f} | {_interval(result, key)} |" for key, value in _values(result)]
    after = ((facts.calibration or {}).get("test") or {}).get("expected_calibration_error_after")
    if after is not None:
        rows.append(f"| expected calibration error after calibration | {after:.4f} | |")
    text = [
        "## Results",
        "",
        f"On {result['n']:,} test images, which neither trained nor chose it:",
        "",
        "| metric | value | 95% interval |",
        "| --- | --- | --- |",
        *rows,
    ]
    for name, further in facts.also.items():
        low_high = _interval(further, "accuracy")
        interval = f" (95% interval: {low_high})" if low_high else ""
        text += ["", f"On {further['n']:,} images of {escape(name)}: accuracy {further['accuracy']:.4f}{interval}."]
    return "\n".join(text)


def _interval(result: Mapping[str, Any], key: str) -> str:
    bounds = result.get("accuracy_interval") if key == "accuracy" else None
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else ""


def _confidence(description: Description) -> str:
    confidence = description.confidence
    if confidence is None:
        return "## Confidence\n\nProbabilities are as trained: no validation images have calibrated them."
    sentences = [f"Probabilities are calibrated on {len(confidence.novelties):,} validation images."]
    if confidence.thresholds:
        sentences.append("The same images chose the probability from which on an image is of a class.")
    else:
        sentences.append("`--coverage 0.9` answers with sets of classes, `--max-error 0.05` only where sure enough.")
    sentences.append(f"Images out of the ordinary are called unknown, by {_NOVELTY[confidence.novelty]}.")
    return "## Confidence\n\n" + "\n".join(sentences)


_NOVELTY = {"energy": "energy", "knn": "distance to training images", "mahalanobis": "Mahalanobis distance"}


def _data(description: Description, facts: CardFacts | None) -> str:
    names = [escape(name) for name in description.class_names[:_MOST_CLASSES]]
    more = len(description.class_names) - len(names)
    rest = f" and {more:,} more, which `model.json` lists" if more else ""
    spec = description.image_spec
    text = ["## Data", ""]
    if facts is not None:
        counts = ", ".join(f"{number:,} {split}" for split, number in facts.images.items())
        text.append(f"Images of {escape(facts.data)}: {counts}.")
    text += [
        f"They are resized and cropped to {spec.width} x {spec.height} pixels.",
        "",
        f"Classes: {', '.join(names)}{rest}.",
        "",
        "An image of anything else is given one of these classes as well; on images unlike those above, expect more "
        "errors than above.",
    ]
    return "\n".join(text)


def _license(facts: CardFacts) -> str:
    if facts.license is None:
        stated = "The files of the backbone state no license; look for one where it comes from."
    else:
        stated = f"The files of the backbone state: {escape(facts.license)}. Its terms may bind these weights as well."
    return f"## License\n\n{stated} What the license of the images asks for is not known here."


def escape(name: str) -> str:
    """A name as Markdown that shows it on one line, and is no markup, link or table cell of its own."""
    return _MARKUP.sub(r"\\\g<0>", shown(" ".join(name.split())))
