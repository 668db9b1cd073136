"""Linen modules of your own as backbones: found by name, built from plain values, initialized or read from Orbax.

Importing a module runs it. Code from outside of this toolkit is imported only where the caller allows it, never because
a recipe or a bundle names it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from finetune.checkpoint import find_bundle, on_this_device
from finetune.errors import ModelError, first_line, nearest
from finetune.images.spec import ImageSpec
from finetune.models.backbone import Backbone
from finetune.models.classifier import Classifier, state_of, training_switch
from finetune.models.surgery import TransferReport, transplant

FAMILY = "module"  # as a saved bundle names it
_TRUSTED = "finetune.models."


@dataclass(frozen=True)
class CustomModule:
    """What makes the module again: ``package.module:ClassName`` and its attributes, plain values."""

    module: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def build(self, *, allow_local_code: bool = False) -> nn.Module:
        """Raises ModelError: not allowed, not to be imported, no Linen module, or other attributes than it has."""
        kind = _find_class(self.module, allow_local_code)
        try:
            return kind(**self.kwargs)
        except Exception as error:  # of unknown names, or whatever the module's own code raises
            known = [f.name for f in fields(kind) if f.init and f.name not in ("parent", "name")]
            unknown = [name for name in self.kwargs if name not in known]
            hint = nearest(unknown[0], known) if unknown else ""
            raise ModelError(
                f"{self.module}: cannot be made with these kwargs{hint}: {first_line(error)}; it has: "
                f"{', '.join(known) or 'none'}"
            ) from None


def load_module(
    own: CustomModule,
    spec: ImageSpec,
    *,
    seed: int = 0,
    weights: str | Path | None = None,
    allow_local_code: bool = False,
) -> Backbone:
    """A module of your own as a backbone.

    Args:
        spec: what its images are; ``module.apply`` takes float32 [N, height, width, channels].
        seed: of its initializers: the variables are those of ``module.init(jax.random.key(seed), images)``.
        weights: read from there instead: a run's folder or model bundle with the same module as its backbone, or a
            folder that Orbax saved the variables to.

    Raises:
        ModelError: see :meth:`CustomModule.build`; a module that cannot take such images; or missing weights.
        TransferError: weights of another tree.
    """
    module = own.build(allow_local_code=allow_local_code)
    key = jax.random.key(seed)
    init: Callable[..., Any] = partial(module.init, **training_switch(module, False))  # type: ignore[arg-type]
    pixels = jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32)
    try:
        shapes = jax.eval_shape(lambda x: state_of(init(key, x)), pixels)
        features = jax.eval_shape(
            lambda v, x: Classifier(module, 1).apply(v, x, method="features"),
            {name: {"backbone": tree} for name, tree in shapes.items()},
            pixels,
        )
    except ModelError:
        raise
    except Exception as error:  # whatever the module's own code raises
        raise ModelError(f"{own.module}: cannot take images {list(pixels.shape)}: {first_line(error)}") from None
    if weights is None:
        variables = state_of(init(key, jnp.zeros(pixels.shape)))
        report = TransferReport((), fresh=tuple("/".join(key) for key in flatten_dict(variables)))
    else:
        variables, report = transplant(_read(Path(weights).expanduser()), shapes)
    return Backbone(
        module=module,
        variables=variables,
        config=own,
        image_spec=spec,
        num_features=features.shape[-1],
        text=None,
        report=report,
        family=FAMILY,
        layout="its own",
    )


def _find_class(reference: str, allow_local_code: bool) -> type[nn.Module]:
    path, _, name = reference.partition(":")
    if not path.startswith(_TRUSTED) and not allow_local_code:
        raise ModelError(
            f"{reference}: code from outside of this toolkit, which is not run unless you say so: look at it, then "
            "give --allow-local-code (in Python allow_local_code=True)"
        )
    if str(Path.cwd()) not in sys.path and not path.startswith(_TRUSTED):
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        source = importlib.import_module(path)
    except Exception as error:  # whatever the module's own code raises
        raise ModelError(
            f"{reference}: {path} cannot be imported: {type(error).__name__}: {first_line(error)}"
        ) from None
    kinds = {key: value for key, value in vars(source).items() if isinstance(value, type)}
    modules = [key for key, kind in kinds.items() if issubclass(kind, nn.Module) and kind.__module__ == source.__name__]
    if name not in kinds or not issubclass(kinds[name], nn.Module):
        what = "is no Linen module" if hasattr(source, name) else "is not there"
        raise ModelError(
            f"{reference}: {name} {what}{nearest(name, modules)}; {path} has: {', '.join(modules) or 'none'}"
        )
    return kinds[name]


def _read(folder: Path) -> Mapping[str, Any]:
    """Variables as Orbax saved them, or the backbone's of a bundle."""
    bundle = find_bundle(folder)
    home = folder if bundle is None else bundle / "weights"
    if not home.is_dir():
        raise ModelError(f"weights: {folder}: no such folder")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            saved = checkpointer.metadata(home.absolute())
            shapes = on_this_device(getattr(saved, "item_metadata", saved))
            variables = checkpointer.restore(home.absolute(), shapes)
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise ModelError(
            f"weights: {folder}: neither a run's folder nor variables saved by Orbax: {first_line(error)}"
        ) from None
    if bundle is None:
        return variables
    return {name: tree["backbone"] for name, tree in variables.items() if "backbone" in tree}
