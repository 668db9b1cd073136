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
        misnamed: what the checkpoint says of the names, where it cannot be of these outputs.
    """

    kernel: jax.Array
    bias: jax.Array
    class_names: tuple[str, ...] = ()
    misnamed: str = ""

    def _facts(self) -> dict[str, Any]:
        return {"classes": len(self.bias), "class_names": self.class_names or None}

    def select(self, class_names: Sequence[str]) -> tuple[jax.Array, jax.Array]:
        """Kernel and bias of these classes, in this order; they may be fewer than those that the head knows.

        Names are compared without regard to case, underscores and what follows a comma (``tench, Tinca tinca``). A head
        without names, or with placeholders such as ``LABEL_0``, is taken class by class.

        Raises:
            ModelError: the head does not know some of them, has several classes of the same name, or is misnamed.
        """
        if self.misnamed:
            raise ModelError(
                f"head.init: pretrained: the checkpoint's head has {self.kernel.shape[1]} classes, and its files do "
                f"not name each of them once, numbered from 0; received {self.misnamed}: correct the names, or use "
                "another init"
            )
        if not self.class_names or _are_placeholders(self.class_names):
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
    return PretrainedHead(jnp.asarray(kernel.T), jnp.asarray(bias, jnp.float32), *_names(checkpoint, len(kernel)))


def _read(checkpoint: Checkpoint, tensors: TensorFolder, name: str) -> np.ndarray:
    try:
        return require_finite(np.asarray(tensors[name]), name).astype(np.float32)
    except ModelError as error:
        raise ModelError(f"{shown(checkpoint.folder)}: {error}") from None


def _names(checkpoint: Checkpoint, count: int) -> tuple[tuple[str, ...], str]:
    """The names of a head's outputs, and what the files say where they have names, and none that can be used.

    They are those of transformers' ``id2label``, or the inverse of its ``label2id``, or timm's ``label_names``.
    """
    config, timm = checkpoint.config, checkpoint.pretrained_cfg
    given = {key: config.get(key) or timm.get(key) for key in ("id2label", "label2id", "label_names")}
    numbered = {key: _numbered(key, value) for key, value in given.items() if value}
    named = {key: pairs for key, pairs in numbered.items() if not _are_placeholders([name for _, name in pairs])}
    for pairs in named.values():
        if names := _in_order(pairs, count):
            return names, ""
    return (), " and ".join(f"{key} {shown(given[key])}" for key in named)


def _numbered(key: str, value: Any) -> list[tuple[Any, Any]]:
    """(number of an output, name), both as the file has them; none where the value is not of the key's type."""
    if isinstance(value, dict):
        return [(number, name) for name, number in value.items()] if key == "label2id" else list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def _in_order(pairs: Sequence[tuple[Any, Any]], count: int) -> tuple[str, ...]:
    """The names in the order of the outputs; empty where they are not one for each."""
    try:
        names = {int(number): name for number, name in pairs}
    except (TypeError, ValueError, OverflowError):
        return ()
    if len(pairs) != count or names.keys() != set(range(count)) or not all(isinstance(n, str) for n in names.values()):
        return ()
    return tuple(names[i] for i in range(count))


def _are_placeholders(names: Sequence[Any]) -> bool:
    return bool(names) and all(isinstance(x, str) and re.fullmatch(r"label \d+", _plain(x)) for x in names)


def _whole(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _plain(name: str) -> str:
    return name.split(",")[0].strip().replace("_", " ").casefold()
