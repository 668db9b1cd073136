"""``finetune predict``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import AsJson, LocalCode, RunOrBundle
from finetune.cli.tables import number, print_json, print_table


def predict(
    directory: RunOrBundle,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    as_json: AsJson = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Classify images with a trained model."""
    import finetune

    predictions = finetune.restore(directory, allow_local_code=allow_local_code).predict(images)
    if as_json:
        print_json(
            [
                {
                    "image": str(image),
                    "label": prediction.label,
                    "labels": prediction.labels,
                    "index": prediction.index,
                    "probabilities": prediction.probabilities,
                }
                for image, prediction in zip(images, predictions, strict=True)
            ]
        )
        return
    rows = [
        [str(image), prediction.label, number(prediction.probabilities[prediction.label])]
        for image, prediction in zip(images, predictions, strict=True)
    ]
    print_table(["image", "label", "probability"], rows)
