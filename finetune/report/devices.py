"""What devices can compute at best, from their vendors' data sheets, and what one does compute when asked."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Literal

Format = Literal["bfloat16", "tf32", "float32"]


@dataclass(frozen=True)
class Peak:
    """The most that a device computes.

    Attributes:
        flops: FLOP/s of one device as JAX counts them, dense.
        format: of the numbers that are multiplied.
        source: ``data sheet``, or ``measured`` by a matrix product.
    """

    flops: float
    format: Format
    source: Literal["data sheet", "measured"]


# Pattern of the name that JAX gives a device -> TFLOP/s of bfloat16, TF32 and float32; None where it has no such unit.
# Dense figures, with float32 sums: data sheets that state them "with sparsity" count twice these. The first match wins.
# A JAX device of TPU v2 and v3 is a core, and of MI250X one of its two dies: half of what the sheet says of the whole.
#   TPU: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm
#   NVIDIA: the data sheet of each, and for GeForce the appendices of the Ampere GA102 and Ada white papers
#   AMD: https://www.amd.com/en/products/accelerators/instinct.html
_SHEETS: tuple[tuple[str, tuple[float | None, float | None, float | None]], ...] = (
    (r"TPU v2", (23, None, None)),
    (r"TPU v3", (61.5, None, None)),
    (r"TPU v4", (275, None, None)),
    (r"TPU v5( lite|e)", (197, None, None)),
    (r"TPU v5", (459, None, None)),  # v5p
    (r"TPU v6( lite|e)", (918, None, None)),
    (r"B200", (2250, 1125, 75)),
    (r"GH200", (990, 494, 67)),
    (r"H200 NVL|H100 NVL", (835, 417, 60)),
    (r"H200", (989, 494, 67)),
    (r"H100 PCIe", (756, 378, 51)),
    (r"H100", (989, 494, 67)),
    (r"A100", (312, 156, 19.5)),
    (r"A10G", (70, 35, 31.5)),
    (r"A10\b", (125, 62.5, 31.2)),
    (r"\bL40S", (362, 183, 91.6)),
    (r"\bL4\b", (121, 60, 30.3)),
    (r"V100.*PCIE", (None, None, 14)),
    (r"V100", (None, None, 15.7)),
    (r"\bT4\b", (None, None, 8.1)),
    (r"RTX 4090", (165, 82.6, 82.6)),
    (r"RTX 3090", (71, 35.6, 35.6)),
    (r"MI300X", (1307, 654, 163)),
    (r"MI250X", (191.5, None, 47.9)),
)


def known_peak(kind: str, platform: str, compute_dtype: str) -> Peak | None:
    """What a data sheet says; None for a device that is not in the table, such as a CPU.

    Args:
        kind: JAX's ``device_kind``; platform: ``cpu``, ``gpu`` or ``tpu``.
        compute_dtype: of the computation, which XLA carries out in what the device has for it by default: float32
            matrix products in bfloat16 on a TPU and in TF32 on an NVIDIA GPU since Ampere.
    """
    for pattern, (bfloat16, tf32, float32) in _SHEETS:
        if not re.search(pattern, kind, re.IGNORECASE):
            continue
        nvidia = not kind.upper().startswith("AMD") and "MI" not in kind
        choices: dict[Format, float | None] = {
            "bfloat16": bfloat16 if compute_dtype == "bfloat16" or platform == "tpu" else None,
            "tf32": tf32 if nvidia else None,
            "float32": float32,
        }
        if compute_dtype == "bfloat16" and bfloat16 is None:
            choices["tf32"] = None  # no unit for it: XLA computes in float32
        return next((Peak(1e12 * value, name, "data sheet") for name, value in choices.items() if value), None)
    return None


def measured_peak(compute_dtype: str, platform: str) -> Peak:
    """The best of several large matrix products on the default device."""
    import jax
    import jax.numpy as jnp

    size, name = 1024 if platform == "cpu" else 8192, jnp.dtype(compute_dtype)
    a = jnp.ones((size, size), name)
    product = jax.jit(jnp.matmul)
    best, began = float("inf"), time.perf_counter()
    jax.block_until_ready(product(a, a))
    for _ in range(100):
        start = time.perf_counter()
        jax.block_until_ready(product(a, a))
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - began > 2:
            break
    return Peak(2 * size**3 / best, "bfloat16" if compute_dtype == "bfloat16" else "float32", "measured")


def peak_of(kind: str, platform: str, compute_dtype: str) -> Peak:
    """By the data sheet where there is one, else measured now."""
    return known_peak(kind, platform, compute_dtype) or measured_peak(compute_dtype, platform)
