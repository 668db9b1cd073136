"""The classification head that a checkpoint brings: its weights, and the names of its classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune.errors import ModelError, listed
from finetune.weights.layout import Checkpoint


@dataclass(frozen=True)
class PretrainedHead:
    """A linear head on a backbone's pooled features.

    Attributes:
        kernel: float32 [num_features, C]; bias: float32 [C].
        class_names: of its C outputs; empty where the checkpoint names none.
    """

    kernel: jax.Array
    bias: jax.Array
    class_names: tuple[str, ...] = ()

    def select(self, class_names: Sequence[str]) -> tuple[jax.Array, jax.Array]:
        """Kernel and bias of these classes, in this order; they may be fewer than those that the head knows.

        Names are compared without regard to case, underscores and what follows a comma (``tench, Tinca tinca``). A head
        without names, or with placeholders such as ``LABEL_0``, is taken class by class.

        Raises:
            ModelError: the head does not know some of them.
        """
        known = {_plain(name): index for index, name in enumerate(self.class_names)}
        if not known or all(re.fullmatch(r"label \d+", name) for name in known):
            if self.kernel.shape[1] != len(class_names):
                raise ModelError(
                    f"head.init: pretrained: the checkpoint's head has {self.kernel.shape[1]} classes without names, "
                    f"and the data has {len(class_names)}: use another init"
                )
            return self.kernel, self.bias
        if missing := [name for name in class_names if _plain(name) not in known]:
            raise ModelError(
                f"head.init: pretrained: the checkpoint's head does not know {listed(missing)}; it knows "
                f"{listed(self.class_names)}: rename the data's classes, or use another init"
            )
        indices = np.array([known[_plain(name)] for name in class_names])
        return self.kernel[:, indices], self.bias[indices]


def read_head(checkpoint: Checkpoint, pattern: str, num_features: int) -> PretrainedHead | None:
    """The head of a checkpoint; None where it has none that reads as many features.

    Args:
        pattern: regular expression of the layer's name, such as ``classifier``.
    """
    tensors = checkpoint.tensors
    tensors = tensors.without_wrapper() or tensors
    name = next((match[1] for tensor in tensors if (match := re.fullmatch(rf"({pattern})\.weight", tensor))), None)
    if name is None:
        return None
    shape = tensors[f"{name}.weight"].shape
    distilled = any(re.match(r"head_dist\.|.*distillation_classifier\.", tensor) for tensor in tensors)
    if len(shape) < 2 or shape[1] != num_features or distilled:  # a distilled model has two heads, on two tokens
        return None
    kernel = np.asarray(tensors[f"{name}.weight"], np.float32).reshape(shape[:2])  # also of a 1x1 convolution
    bias = np.asarray(tensors[f"{name}.bias"], np.float32) if f"{name}.bias" in set(tensors) else np.zeros(len(kernel))
    names = _names(checkpoint.config, len(kernel))
    return PretrainedHead(jnp.asarray(kernel.T), jnp.asarray(bias, jnp.float32), names)


def _names(config: dict[str, Any], count: int) -> tuple[str, ...]:
    """From transformers' ``id2label`` or timm's ``label_names``; empty where they are not of this head."""
    names = config.get("label_names") or config.get("pretrained_cfg", {}).get("label_names")
    if isinstance(config.get("id2label"), dict):
        by_index = {int(index): str(name) for index, name in config["id2label"].items()}
        names = [by_index.get(i) for i in range(len(by_index))]
    valid = isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names)
    return tuple(names) if valid and len(set(map(_plain, names))) == count else ()


def _plain(name: str) -> str:
    return name.split(",")[0].strip().replace("_", " ").casefold()
