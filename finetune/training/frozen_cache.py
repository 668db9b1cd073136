"""Whether a stage computes what is frozen once for each image: what that takes, what it saves, and why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from finetune.images.spec import ImageSpec
from finetune.training.features import CacheCost, FeatureExtractor
from finetune.training.flops import count_lowered
from finetune.training.stage_trainer import StageTrainer

_SHARE_OF_FREE_DISK = 0.25


@dataclass(frozen=True)
class CacheDecision:
    """What a stage does about its frozen part.

    Attributes:
        extractor: of the frozen part; None where there is none.
        cost: None without an extractor.
        use: compute it once; None where that depends on the number of epochs, which is not known.
        reason: in words, with the numbers; empty where there is nothing to tell.
    """

    extractor: FeatureExtractor | None
    cost: CacheCost | None
    use: bool | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        cost = self.cost
        numbers: dict[str, Any] = {}
        if cost is not None:
            numbers = {**vars(cost), "fewer_flops": round(cost.fewer_flops, 3) if cost.passes else None}
        return {"use": self.use, "reason": self.reason, **numbers}


def decide_cache(
    trainer: StageTrainer,
    spec: ImageSpec,
    batch_size: int,
    *,
    passes: float | None,
    images: int | None,
    others: int = 0,
    free_gb: float,
) -> CacheDecision:
    """Decides for a stage, by its ``frozen_cache``.

    Args:
        batch_size: images at a time when they are computed.
        passes: over the training images; None where they are not known yet.
        images: their number; None where it is not known yet.
        others: number of the images that are evaluated on, which are kept as well.
        free_gb: room on the disk.
    """
    stage, wish = trainer.stage, trainer.stage.frozen_cache
    nothing = CacheDecision(None, None, False, "")
    if wish.mode == "off":
        return CacheDecision(None, None, False, "frozen_cache: off")
    if stage.augments_on_device or not any(rule.frozen or rule.lora for rule in stage.partitions):
        return nothing
    prefix = trainer.find_frozen_prefix(batch_size)
    if prefix is None:
        return nothing if wish.mode == "auto" else CacheDecision(None, None, False, "no part of the network is frozen")
    views = stage.kept_views
    extractor = FeatureExtractor(prefix, trainer.frozen, spec, batch_size, wish.dtype, trainer.placement)
    trainer.train_from(prefix)
    step_flops = _step_flops(trainer, extractor, spec)
    cost = CacheCost(extractor.flops_per_image, step_flops, extractor.bytes_per_image, passes or 0.0, views)
    share = f"{_percent(cost.prefix_flops, cost.step_flops)} of a step's FLOPs are frozen"
    if stage.augments_on_host and wish.views == 1:
        reason = f"{share}, and computed in each step, as training images are augmented (frozen_cache.views keeps some)"
        return CacheDecision(extractor, cost, False, reason)
    kept = f"{cost.bytes_per_image * views / 1e3:,.1f} kB an image"
    if images is not None:
        needed = cost.bytes_per_image * (views * images + others) / 1e9
        room = _SHARE_OF_FREE_DISK * free_gb if wish.max_gb is None else wish.max_gb
        kept += f", {needed:,.3g} GB"
        if needed > room:
            limit = f"at most {room:,.3g} GB are to be kept (frozen_cache.max_gb)"
            return CacheDecision(extractor, cost, False, f"{share}, and computed in each step: {kept}, and {limit}")
    if passes is None:
        return CacheDecision(extractor, cost, None, f"{share}; keeping what follows from them takes {kept}")
    saved = f"{cost.fewer_flops:,.3g} times fewer FLOPs in {passes:,.3g} epochs"
    if wish.mode == "auto" and not cost.pays:
        return CacheDecision(extractor, cost, False, f"{share}, and computed in each step: {saved} for {kept}")
    return CacheDecision(extractor, cost, True, f"{share}, and computed once: {saved} for {kept}")


def _step_flops(trainer: StageTrainer, extractor: FeatureExtractor, spec: ImageSpec) -> float:
    """Of one image in a step that starts from what is kept, by XLA's count."""
    size = trainer.stage.batch_size
    kept = [jax.ShapeDtypeStruct((size, *row.shape), row.dtype) for row in extractor.specs]
    sets = trainer.stage.loss.name == "binary_cross_entropy"
    label = jax.ShapeDtypeStruct((size, trainer.num_classes), jnp.float32) if sets else None
    batch = {"kept": kept, "label": label or jax.ShapeDtypeStruct((size,), jnp.int32)}
    traced = trainer.step.trace(jax.eval_shape(trainer.init_state), trainer.frozen, batch)  # type: ignore[attr-defined]
    return count_lowered(traced) / size


def _percent(part: float, rest: float) -> str:
    share = 100 * part / (part + rest)
    return f"{share:.3g}%" if share < 99.9 else "over 99.9%"
