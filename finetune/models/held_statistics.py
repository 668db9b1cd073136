"""Batch normalization that is held: it computes as in evaluation while the rest of the model trains."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn

from finetune.models.convolution import BatchNorm


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
        if context.method_name != "__call__" or "/".join(module.path) not in paths:
            return call(*args, **kwargs)
        if isinstance(module, BatchNorm):
            return call(args[0])
        if isinstance(module, nn.BatchNorm):
            return _by_running_average(module, call, args, kwargs)
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield


def _by_running_average(module: nn.BatchNorm, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Flax takes the switch as an argument or as an attribute, and refuses both."""
    kwargs = {name: value for name, value in kwargs.items() if name != "use_running_average"}
    if module.use_running_average is None:
        return call(args[0], use_running_average=True, **kwargs)
    before = module.use_running_average
    object.__setattr__(module, "use_running_average", True)  # modules are frozen; this one lives for one call
    try:
        return call(args[0], **kwargs)
    finally:
        object.__setattr__(module, "use_running_average", before)
