"""Your own Linen modules as backbones: imported by name, built from plain values, initialized or restored from Orbax.

Importing a module runs its code. Code from outside this toolkit is imported only if the caller permits it, never just
because a recipe or a bundle names it.
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
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from finetune.checkpoint import find_bundle, shapes_in_place
from finetune.errors import ModelError, first_line, nearest
from finetune.images.spec import ImageSpec
from finetune.models.backbone import Backbone
from finetune.models.classifier import Classifier, state_of, training_switch
from finetune.models.surgery import TransferReport, transplant
from finetune.trees import hash_tree
from finetune.untrusted import read_json
from finetune.weights.tensors import require_finite

FAMILY = "module"  # its family in a saved bundle
_TRUSTED = "finetune.models."


@dataclass(frozen=True)
class CustomModule:
    """A Linen module by name.

    Attributes:
        module: ``package.module:ClassName``.
        kwargs: the module's attributes, JSON values.
    """

    module: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def build(self, *, allow_local_code: bool = False) -> nn.Module:
        """Imports the class and creates the module.

        Args:
            allow_local_code: permit code from outside this toolkit.

        Raises:
            ModelError: the code is not permitted, cannot be imported, is not a Linen module, or does not take these
                kwargs.
        """
        module_class = _import_class(self.module, allow_local_code)
        try:
            return module_class(**self.kwargs)
        except Exception as error:  # unknown names, or whatever the module's own code raises
            attributes = [f.name for f in fields(module_class) if f.init and f.name not in ("parent", "name")]
            unknown = [name for name in self.kwargs if name not in attributes]
            hint = nearest(unknown[0], attributes) if unknown else ""
            raise ModelError(
                f"{self.module}: cannot be built with these kwargs{hint}: {first_line(error)}; its attributes: "
                f"{', '.join(attributes) or 'none'}"
            ) from None


def load_module(
    custom: CustomModule,
    spec: ImageSpec,
    *,
    seed: int = 0,
    weights: str | Path | None = None,
    allow_local_code: bool = False,
) -> Backbone:
    """Your own module as a backbone.

    Args:
        spec: its images; ``module.apply`` takes float32 [N, height, width, channels].
        seed: of the initial variables, ``module.init(jax.random.key(seed), images)``.
        weights: where to read the variables instead: a run's folder or a model bundle whose backbone is the same
            module, or a folder to which Orbax saved the variables.
        allow_local_code: permit code from outside this toolkit.

    Raises:
        ModelError: see :meth:`CustomModule.build`; the module cannot take such images; or the weights are missing.
        TransferError: the weights do not fit the module.
    """
    module = custom.build(allow_local_code=allow_local_code)
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
        raise ModelError(f"{custom.module}: cannot take images {list(pixels.shape)}: {first_line(error)}") from None
    if weights is None:
        variables = state_of(init(key, jnp.zeros(pixels.shape)))
        report = TransferReport((), fresh=tuple("/".join(key) for key in flatten_dict(variables)))
    else:
        variables, report = transplant(_read_weights(Path(weights).expanduser()), shapes)
    return Backbone(
        module=module,
        variables=variables,
        config=custom,
        image_spec=spec,
        num_features=features.shape[-1],
        text=None,
        report=report,
        family=FAMILY,
        layout="its own",
    )


def _import_class(reference: str, allow_local_code: bool) -> type[nn.Module]:
    path, _, name = reference.partition(":")
    if not path.startswith(_TRUSTED) and not allow_local_code:
        raise ModelError(
            f"{reference}: code from outside this toolkit, which runs only with your permission: review it, then pass "
            "--allow-local-code (in Python allow_local_code=True)"
        )
    if str(Path.cwd()) not in sys.path and not path.startswith(_TRUSTED):
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        source = importlib.import_module(path)
    except Exception as error:  # whatever the module's own code raises
        raise ModelError(
            f"{reference}: {path} cannot be imported: {type(error).__name__}: {first_line(error)}"
        ) from None
    modules = {
        key: value for key, value in vars(source).items() if isinstance(value, type) and issubclass(value, nn.Module)
    }
    if name not in modules:
        defined_there = [key for key, value in modules.items() if value.__module__ == source.__name__]
        problem = "is not a Linen module" if hasattr(source, name) else "does not exist"
        raise ModelError(
            f"{reference}: {name} {problem}{nearest(name, defined_there)}; Linen modules in {path}: "
            f"{', '.join(defined_there) or 'none'}"
        )
    return modules[name]


def _check_digest(file: Path, weights_sha256: str) -> None:
    """That a bundle's weights are those that its description was written with."""
    if read_json(file).get("weights_sha256") != weights_sha256:
        raise ModelError(f"weights: {file.parent}: the weights are not those that model.json was written with")


def _read_weights(folder: Path) -> Mapping[str, Any]:
    """The variables in a folder of Orbax's, or those of the backbone in a bundle."""
    bundle = find_bundle(folder)
    directory = folder if bundle is None else bundle / "weights"
    if not directory.is_dir():
        raise ModelError(f"weights: {folder}: no such folder")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            saved = checkpointer.metadata(directory.absolute())
            shapes = shapes_in_place(getattr(saved, "item_metadata", saved))
            variables = checkpointer.restore(directory.absolute(), shapes)
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise ModelError(
            f"weights: {folder}: neither a run, nor a bundle, nor variables saved by Orbax: {first_line(error)}"
        ) from None
    if bundle is not None:
        _check_digest(bundle / "model.json", hash_tree(variables))
        variables = {name: tree["backbone"] for name, tree in variables.items() if "backbone" in tree}
    for path, leaf in flatten_dict(dict(variables), sep="/").items():
        if isinstance(leaf, jax.Array):
            require_finite(np.asarray(leaf), path)
    return variables
