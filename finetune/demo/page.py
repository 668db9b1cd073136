"""The page, by Gradio, which is here to carry images to the model and the answer back; all else is its own HTML."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.demo.answer import Respondent
from finetune.demo.neighbors import TrainingImages, read_training_images
from finetune.errors import FinetuneError, MachineError, cut, first_line, listed
from finetune.inference.explain import Explainer
from finetune.inference.predictor import restore
from finetune.page.html import render
from finetune.tracking import Track, untracked

_MOST = "256mb"  # of a file; as much as is read of one
_KEPT = 600  # seconds, of an uploaded file
_CLASSES, _LONGEST = 8, 24  # names of classes at the top, and their characters
_SYSTEM_FONTS = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
# Gradio calls home and keeps a history of answers in the browser unless it is told otherwise.
_SILENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
}


def prepare(
    directory: str | Path,
    *,
    coverage: float = 0.9,
    neighbors: bool = True,
    allow_local_code: bool = False,
    track: Track = untracked,
) -> Respondent:
    """A model that is ready to answer, with all of its programs compiled.

    Args:
        directory: as in :func:`finetune.restore`.
        coverage: of the sets of classes, in (0, 1).
        neighbors: look for the training images.

    Raises:
        FinetuneError: as in :func:`finetune.restore`.
    """
    predictor = restore(directory, allow_local_code=allow_local_code)
    training: TrainingImages | str | None = None
    if neighbors:
        try:
            training = read_training_images(directory, predictor, track)
        except FinetuneError as error:  # the model answers all the same
            training = first_line(error)
    respondent = Respondent(predictor, Explainer(predictor), coverage, training)
    respondent.warm_up()
    return respondent


def make_app(respondent: Respondent, title: str, uploads: Path) -> Any:
    """The page as an ASGI app.

    Args:
        uploads: a folder for images while they are looked at.

    Raises:
        MachineError: Gradio is not installed.
    """
    gradio = import_gradio(uploads)
    from fastapi import FastAPI

    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(_KEPT, _KEPT)) as blocks:
        gradio.HTML(_head(title, respondent.predictor.class_names), elem_id="head")
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                file = gradio.File(label="Image", type="filepath", height=140)
                view = gradio.HTML()
            with gradio.Column(scale=3, min_width=300):
                result = gradio.HTML(render("demo_empty.html"))

        def answer(path: str) -> tuple[None, str, str]:
            """Without a file in it, there is room for the next one to be dropped."""
            return None, *respondent.answer(Path(path))

        file.upload(answer, file, [file, view, result], api_visibility="private", show_progress_on=result)

    theme = gradio.themes.Default(primary_hue="blue", font=_SYSTEM_FONTS[0], font_mono=_SYSTEM_FONTS[1])
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    return gradio.mount_gradio_app(
        app, blocks, "/", theme=theme, css=render("demo.css"), footer_links=[], max_file_size=_MOST, show_error=False
    )


def _head(title: str, class_names: Sequence[str]) -> str:
    names = listed([cut(name, _LONGEST) for name in class_names], _CLASSES)
    return render("demo_head.html", title=title, count=f"{len(class_names):,}", classes=names)


def import_gradio(uploads: Path) -> Any:
    """Gradio, told to keep to itself.

    Raises:
        MachineError: it is not installed.
    """
    os.environ |= {**_SILENT, "GRADIO_TEMP_DIR": str(uploads)}
    try:
        import gradio
    except ImportError as error:
        raise MachineError(f"the demo needs Gradio: pip install 'flax-finetune[demo]' ({first_line(error)})") from None
    return gradio
