"""Frozen batch normalization: it computes as in evaluation while the rest of the model trains."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn

from finetune.errors import ModelError
from finetune.models.classifier import train_flags

_EVALUATION = {**train_flags(False), "use_running_average": True}


@contextmanager
def freeze_batch_norm(paths: Collection[str]) -> Iterator[None]:
    """Within it, the modules at ``paths`` normalize with their running statistics and do not update them.

    Works on models as they are, by ``flax.linen.intercept_methods``: call ``apply(..., train=True,
    mutable=["batch_stats"])`` inside.

    Args:
        paths: of modules, from the module that is applied, joined by ``/``; ``flax.linen.BatchNorm``, or any that takes
            ``train``, ``training``, ``deterministic`` or ``use_running_average``.

    Raises:
        ModelError: while applying, where a module takes none of these.
    """

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name != "__call__" or "/".join(module.path) not in paths:
            return call(*args, **kwargs)
        bound = inspect.signature(type(module).__call__).bind(module, *args, **kwargs)
        evaluation = {name: value for name, value in _EVALUATION.items() if name in bound.signature.parameters}
        if not evaluation:
            raise ModelError(
                f"{type(module).__name__} at {'/'.join(module.path)}: its statistics cannot be frozen: its __call__ "
                f"takes none of {', '.join(_EVALUATION)}"
            )
        if getattr(module, "use_running_average", None) is not None:
            # Flax takes the switch as an argument or as an attribute, and refuses both
            with _attribute(module, "use_running_average", True):
                return call(*args, **kwargs)
        bound.arguments.update(evaluation)
        return call(*bound.args[1:], **bound.kwargs)

    with nn.intercept_methods(intercept):
        yield


@contextmanager
def _attribute(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Within it, a frozen module's attribute has another value."""
    before = getattr(module, name)
    object.__setattr__(module, name, value)
    try:
        yield
    finally:
        object.__setattr__(module, name, before)
