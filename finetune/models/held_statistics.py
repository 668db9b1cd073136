"""Batch normalization that is held: it computes as in evaluation while the rest of the model trains."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn

from finetune.models.convolution import BatchNorm

_SWITCHES = ("train", "use_running_average")


@contextmanager
def hold_statistics(paths: Collection[str]) -> Iterator[None]:
    """Within it, the batch-normalization modules at ``paths`` normalize with their running statistics and leave them.

    Works on models as they are, ``flax.linen.BatchNorm`` included, by ``flax.linen.intercept_methods``: trained by
    calling ``apply(..., train=True, mutable=["batch_stats"])`` inside.

    Args:
        paths: of modules, from the module that is applied, joined by ``/``.
    """

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        held = isinstance(module, BatchNorm | nn.BatchNorm) and "/".join(module.path) in paths
        if context.method_name != "__call__" or not held:
            return call(*args, **kwargs)
        images, others = args[:1], {name: value for name, value in kwargs.items() if name not in _SWITCHES}
        if isinstance(module, BatchNorm):
            return call(*images, **others, train=False)
        if module.use_running_average is None:
            return call(*images, **others, use_running_average=True)
        # Flax takes the switch as an argument or as an attribute, and refuses both
        with _attribute(module, "use_running_average", True):
            return call(*images, **others)

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
