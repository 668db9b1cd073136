"""The classification head that a checkpoint brings: its weights, and the names of its classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune.errors import ModelError, listed, shown
from finetune.page.facts import ShownByFacts
from finetune.weights.layout import Checkpoint
from finetune.weights.tensors import TensorFolder, require_finite


@dataclass(frozen=True, repr=False)
class PretrainedHead(ShownByFacts):
    """A linear head on a backbone's pooled features.

    Attributes:
        kernel: float32 [num_features, C]; bias: float32 [C].
        class_names: of its C outputs; empty where the checkpoint names none.
    """

    kernel: jax.Array
    bias: jax.Array
    class_names: tuple[str, ...] = ()

    def _facts(self) -> dict[str, Any]:
        return {"classes": len(self.bias), "class_names": self.class_names or None}

    def select(self, class_names: Sequence[str]) -> tuple[jax.Array, jax.Array]:
        """Kernel and bias of these classes, in this order; they may be fewer than those that the head knows.

        Names are compared without regard to case, underscores and what follows a comma (``tench, Tinca tinca``). A head
        without names, or with placeholders such as ``LABEL_0``, is taken class by class.

        Raises:
            ModelError: the head does not know some of them, or has several classes of the same name.
        """
        if not self.class_names or all(re.fullmatch(r"label \d+", _plain(name)) for name in self.class_names):
            if self.kernel.shape[1] != len(class_names):
                raise ModelError(
                    f"head.init: pretrained: the checkpoint's head has {self.kernel.shape[1]} classes without names, "
                    f"and the data has {len(class_names)}: use another init"
                )
            return self.kernel, self.bias
        matches = {name: self._outputs(name) for name in class_names}
        if missing := [name for name, outputs in matches.items() if not outputs]:
            raise ModelError(
                f"head.init: pretrained: the checkpoint's head does not know {listed(missing)}; it knows "
                f"{listed(self.class_names)}: rename the data's classes, or use another init"
            )
        if several := [name for name, outputs in matches.items() if len(outputs) > 1]:
            outputs = " and ".join(map(str, matches[several[0]][:5]))
            raise ModelError(
                f"head.init: pretrained: the checkpoint's head has several classes called {several[0]!r} (its outputs "
                f"{outputs}), and which of them is meant is not known: use another init"
            )
        indices = np.array([matches[name][0] for name in class_names])
        return self.kernel[:, indices], self.bias[indices]

    def _outputs(self, name: str) -> list[int]:
        """The outputs of classes of that name; those with all of the name come before those with its first part."""
        return self._by_name[0].get(_whole(name)) or self._by_name[1].get(_plain(name)) or []

    @cached_property
    def _by_name(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """The outputs of each name: of all of it, and of its first part."""
        whole: dict[str, list[int]] = {}
        plain: dict[str, list[int]] = {}
        for index, name in enumerate(self.class_names):
            whole.setdefault(_whole(name), []).append(index)
            plain.setdefault(_plain(name), []).append(index)
        return whole, plain


def read_head(checkpoint: Checkpoint, pattern: str, num_features: int) -> PretrainedHead | None:
    """The head of a checkpoint; None where it has none that reads as many features.

    Args:
        pattern: regular expression of the layer's name, such as ``classifier``.

    Raises:
        ModelError: its weights are damaged.
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
    kernel = _read(checkpoint, tensors, f"{name}.weight").reshape(shape[:2])  # also of a 1x1 convolution
    bias = _read(checkpoint, tensors, f"{name}.bias") if f"{name}.bias" in tensors else np.zeros(len(kernel))
    if bias.shape != (len(kernel),):
        raise ModelError(f"{checkpoint.folder}: tensor '{name}.bias' has shape {bias.shape} for {len(kernel)} classes")
    names = _names(checkpoint, len(kernel))
    return PretrainedHead(jnp.asarray(kernel.T), jnp.asarray(bias, jnp.float32), names)


def _read(checkpoint: Checkpoint, tensors: TensorFolder, name: str) -> np.ndarray:
    try:
        return require_finite(np.asarray(tensors[name]), name).astype(np.float32)
    except ModelError as error:
        raise ModelError(f"{shown(checkpoint.folder)}: {error}") from None


def _names(checkpoint: Checkpoint, count: int) -> tuple[str, ...]:
    """From transformers' ``id2label`` or timm's ``label_names``; empty where they are not of this head."""
    names = checkpoint.config.get("label_names") or checkpoint.pretrained_cfg.get("label_names")
    labels = checkpoint.config.get("id2label")
    if isinstance(labels, dict):
        names = [labels.get(str(index)) for index in range(len(labels))]
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def _whole(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _plain(name: str) -> str:
    return name.split(",")[0].strip().replace("_", " ").casefold()
