"""The shapes of a network that a file describes, held against the arrays that are there.

A description is cheap to write and costly to follow: one number makes a network of three thousand layers. So a network
is traced only as far as its arrays go, and ends at the first one that is not among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict

from finetune.errors import ModelError
from finetune.models.classifier import Classifier, init_shapes

_UNEVIDENT = 2048  # a size up to which no array has to show it: images, windows and grids of patches
_LAYERS = ("num_hidden_layers", "depths")


def check_sizes(config: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Before a backbone is built: that no number in its configuration is beyond what its arrays show.

    Args:
        config: of a family, JSON values.
        saved: path -> shape of every array there is.

    Raises:
        ModelError: names the number.
    """
    largest = max([_UNEVIDENT, *(length for shape in saved.values() for length in shape)])

    def check(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                check(key, item)
        elif isinstance(value, list | tuple):
            _limit(name, len(value), len(saved), saved)
            for item in value:
                check(name, item)
        elif isinstance(value, int):
            _limit(name, value, len(saved) if name in _LAYERS else largest, saved)

    for key, item in config.items():
        check(key, item)


def _limit(name: str, value: int, most: int, saved: Mapping[str, Any]) -> None:
    if not 0 <= value <= most:
        raise ModelError(f"{name}: {value}, which {len(saved)} saved arrays do not bear out: 0 to {most}")


def shapes_as_saved(classifier: Classifier, inputs: Any, saved: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The shapes of a classifier's variables, which are those of the arrays that are there.

    Args:
        inputs: the shape of a batch of images.
        saved: ``collection/path`` -> shape of every array there is.

    Raises:
        ModelError: the classifier has a variable that is not among them or has another shape, they are more than its
            variables, or its logits are not those of its classes.
    """

    def compare(path: str, shape: tuple[int, ...]) -> None:
        if path not in saved:
            raise ModelError(f"the network has {path}, and the weights do not")
        if saved[path] != shape:
            raise ModelError(
                f"{path} has the shape {list(shape)} in the network and {list(saved[path])} in the weights"
            )

    def compare_own(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """Compares a module's own variables as soon as it has run."""
        result = call(*args, **kwargs)
        module = context.module
        for collection, tree in module.variables.items():
            for name, leaf in nn.meta.unbox(tree).items():
                if not isinstance(leaf, Mapping | tuple):  # of a submodule, or sown
                    compare("/".join([collection, *module.path, name]), tuple(leaf.shape))
        return result

    with nn.intercept_methods(compare_own):
        logits, shapes = init_shapes(classifier, inputs)
    described = {"/".join(path): leaf for path, leaf in flatten_dict(shapes).items()}
    for path, leaf in described.items():
        compare(path, tuple(leaf.shape))
    if unused := sorted(saved.keys() - described.keys()):
        raise ModelError(f"the weights have {unused[0]}, and the network does not")
    expected = (inputs.shape[0], classifier.num_classes)
    if logits.shape != expected:
        raise ModelError(f"the network gives {list(logits.shape)} for {expected[1]} classes")
    return shapes
