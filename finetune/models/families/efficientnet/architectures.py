"""timm's architectures: block strings, and how their channels and depths are scaled.

A string names a kind of block and its options: ``ir_r2_k5_s2_e6_c40_se0.25`` is two inverted residuals (``ir``) with
kernel 5, the first with stride 2, expansion 6, 40 channels, squeezed to a quarter. The kinds:

    cn    convolution
    ds    depthwise separable convolution: an inverted residual without expansion
    ir    inverted residual (MobileNetV2, arXiv:1801.04381)
    er    fused inverted residual: the expanding convolution has the kernel, and there is no depthwise one
    uir   universal inverted bottleneck (MobileNetV4): ``a`` is the kernel of a depthwise convolution at its start

Further options: ``nre`` ReLU, ``noskip`` never a shortcut, ``skip`` a convolution with a shortcut, ``fc`` channels that
the expansion counts from in place of the block's input.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from finetune.models.families.efficientnet.module import BlockConfig
from finetune.models.layers.convolution import divisible

Stages = tuple[tuple[str, ...], ...]

_OPTION = re.compile(r"([a-z]+)([\d.]+)")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What one of timm's model functions passes on.

    Attributes:
        stages: strings of the blocks in each stage.
        width, depth: multipliers of channels and of the blocks in each stage.
        stem_size, num_features: channels of stem and top; their ``fixed_`` says that the width does not scale them.
        fixed_ends: the depth does not scale the first and the last stage.
        limit: rounding may not make channels smaller than by this factor.
        hidden_act: where a string names none.
        pad_type, bn_eps: timm's arguments.
        top, squeeze_act, squeeze_gate: see EfficientNetConfig.
        squeeze_from_inner: squeezed widths are ratios of the expanded channels, not of the block's input.
        squeeze_divisor: that squeezed widths are rounded to.
    """

    stages: Stages
    width: float = 1.0
    depth: float | tuple[float, ...] = 1.0
    stem_size: int = 32
    fixed_stem: bool = False
    num_features: int = 1280
    fixed_features: bool = False
    fixed_ends: bool = False
    limit: float = 0.9
    hidden_act: str = "silu"
    pad_type: str = ""
    bn_eps: float = 1e-5
    top: Literal["convolution", "dense", "dense without bias", "dense with norm"] = "convolution"
    squeeze_act: str = ""
    squeeze_gate: str = "sigmoid"
    squeeze_from_inner: bool = False
    squeeze_divisor: int = 1

    def scaled(self, channels: int) -> int:
        return divisible(channels * self.width, limit=self.limit)


@dataclass(frozen=True)
class NamedBlock:
    """A block, its kind, and its module's name in timm as a regular expression."""

    name: str
    kind: str
    config: BlockConfig


def build_blocks(arch: Architecture) -> list[NamedBlock]:
    """All blocks of an architecture, from input to output."""
    blocks: list[NamedBlock] = []
    width = arch.stem_size if arch.fixed_stem else arch.scaled(arch.stem_size)
    depths = arch.depth if isinstance(arch.depth, Sequence) else (arch.depth,) * len(arch.stages)
    for i, (strings, depth) in enumerate(zip(arch.stages, depths, strict=True)):
        fixed = arch.fixed_ends and i in (0, len(arch.stages) - 1)
        options = [_parse(string) for string in strings]
        repeats = _scaled_depths([int(o["r"]) for o in options], 1.0 if fixed else depth)
        stage = [option for option, count in zip(options, repeats, strict=True) for _ in range(count)]
        for j, option in enumerate(stage):
            config = _block(arch, option, width, stride=1 if j else int(option["s"]))
            blocks.append(NamedBlock(rf"blocks\.{i}\.{j}", option["kind"], config))
            width = config.hidden_size
    return blocks


def _parse(string: str) -> dict[str, str]:
    """``ir_r2_k3`` to {"kind": "ir", "r": "2", "k": "3"}; options without a number have themselves as value."""
    kind, *options = string.split("_")
    found = {option: _OPTION.fullmatch(option) for option in options}
    return {"kind": kind, **{m[1] if m else option: m[2] if m else option for option, m in found.items()}}


def _scaled_depths(repeats: Sequence[int], multiplier: float) -> list[int]:
    """The blocks of a stage, scaled in all and shared out from its end, so that the first strings grow last."""
    before, after = sum(repeats), math.ceil(sum(repeats) * multiplier)
    scaled = []
    for count in reversed(repeats):
        scaled.append(max(1, round(count / before * after)))
        before, after = before - count, after - scaled[-1]
    return scaled[::-1]


def _block(arch: Architecture, option: dict[str, str], width: int, stride: int) -> BlockConfig:
    """The block that a string describes, with its channels scaled.

    Args:
        width: channels of its input.
    """
    kind, kernel, hidden = option["kind"], int(option["k"]), arch.scaled(int(option["c"]))
    expansion = float(option.get("e", 1)) if kind not in ("cn", "ds") else 1.0
    base = arch.scaled(int(option["fc"])) if "fc" in option else width
    inner = {"cn": hidden, "ds": width}.get(kind, divisible(base * expansion))
    ratio = float(option.get("se", 0))
    squeezed = inner * (ratio if arch.squeeze_from_inner else ratio / expansion)
    fits = stride == 1 and width == hidden
    return BlockConfig(
        input_size=width,
        hidden_size=hidden,
        inner_size=inner,
        stride=stride,
        first_depthwise=int(option["a"]) if kind == "uir" else 0,
        expand={"cn": kernel, "er": kernel, "ds": 0}.get(kind, 1),
        depthwise=0 if kind in ("cn", "er") else kernel,
        squeezed=round(squeezed) if arch.squeeze_divisor == 1 or not ratio else divisible(squeezed),
        project=kind != "cn",
        shortcut=fits and ("skip" in option if kind == "cn" else "noskip" not in option),
        hidden_act="relu" if "nre" in option else arch.hidden_act,
    )


# Table 1 of "EfficientNet: Rethinking Model Scaling" (Tan & Le 2019, arXiv:1905.11946).
_EFFICIENTNET: Stages = (
    ("ds_r1_k3_s1_c16_se0.25",),
    ("ir_r2_k3_s2_e6_c24_se0.25",),
    ("ir_r2_k5_s2_e6_c40_se0.25",),
    ("ir_r3_k3_s2_e6_c80_se0.25",),
    ("ir_r3_k5_s1_e6_c112_se0.25",),
    ("ir_r4_k5_s2_e6_c192_se0.25",),
    ("ir_r1_k3_s1_e6_c320_se0.25",),
)
# Without squeeze-and-excitation.
_LITE: Stages = tuple((stage[0].removesuffix("_se0.25"),) for stage in _EFFICIENTNET)
_EDGE: Stages = (
    ("er_r1_k3_s1_e4_c24_fc24_noskip",),
    ("er_r2_k3_s2_e8_c32",),
    ("er_r4_k3_s2_e8_c48",),
    ("ir_r5_k5_s2_e8_c96",),
    ("ir_r4_k5_s1_e8_c144",),
    ("ir_r2_k5_s2_e8_c192",),
)
# "EfficientNetV2: Smaller Models and Faster Training" (Tan & Le 2021, arXiv:2104.00298): for each size the blocks and
# the channels of each stage; the last stage is only in the larger ones.
_V2_STAGES = ("cn_k3_s1", "er_k3_s2_e4", "er_k3_s2_e4", "ir_k3_s2_e4", "ir_k3_s1_e6", "ir_k3_s2_e6", "ir_k3_s1_e6")
_V2_SIZES = {
    "b": ((1, 2, 2, 3, 5, 8), (16, 32, 48, 96, 112, 192)),
    "s": ((2, 4, 4, 6, 9, 15), (24, 48, 64, 128, 160, 256)),
    "m": ((3, 5, 5, 7, 14, 18, 5), (24, 48, 80, 160, 176, 304, 512)),
    "l": ((4, 7, 7, 10, 19, 25, 7), (32, 64, 96, 192, 224, 384, 640)),
    "xl": ((4, 8, 8, 16, 24, 32, 8), (32, 64, 96, 192, 256, 512, 640)),
}


def _v2_stages(size: str) -> Stages:
    def string(stage: str, blocks: int, channels: int) -> str:
        extra = {"cn": "_skip", "ir": "_se0.25"}.get(stage[:2], "")
        return f"{stage}_r{blocks}_c{channels}{extra}"

    return tuple((string(*stage),) for stage in zip(_V2_STAGES, *_V2_SIZES[size], strict=False))


def _v2(size: str, **options: object) -> Architecture:
    large = size in ("m", "l", "xl")
    arch = Architecture(stages=_v2_stages(size), stem_size=32 if size in ("b", "l", "xl") else 24, fixed_features=large)
    return replace(arch, **options)  # type: ignore[arg-type]


def _v2_rw(**options: object) -> Architecture:
    """The small size as it was read from the paper's figure, before there was code."""
    stages = (("er_r2_k3_s1_e1_c24",), *_v2_stages("s")[1:-1], ("ir_r15_k3_s2_e6_c272_se0.25",))
    return _v2("s", stages=stages, num_features=1792, **options)


# A real network of 0.4 million parameters, which timm publishes to test with.
_TEST: Stages = (
    ("cn_r1_k3_s1_c16_skip",),
    ("er_r1_k3_s2_e4_c24",),
    ("er_r1_k3_s2_e4_c32",),
    ("ir_r1_k3_s2_e4_c48_se0.25",),
    ("ir_r1_k3_s2_e4_c64_se0.25",),
)

# Tables 1 and 2 of "Searching for MobileNetV3" (Howard et al. 2019, arXiv:1905.02244).
_V3_LARGE: Stages = (
    ("ds_r1_k3_s1_c16_nre",),
    ("ir_r1_k3_s2_e4_c24_nre", "ir_r1_k3_s1_e3_c24_nre"),
    ("ir_r3_k5_s2_e3_c40_se0.25_nre",),
    ("ir_r1_k3_s2_e6_c80", "ir_r1_k3_s1_e2.5_c80", "ir_r2_k3_s1_e2.3_c80"),
    ("ir_r2_k3_s1_e6_c112_se0.25",),
    ("ir_r3_k5_s2_e6_c160_se0.25",),
    ("cn_r1_k1_s1_c960",),
)
_V3_SMALL: Stages = (
    ("ds_r1_k3_s2_c16_se0.25_nre",),
    ("ir_r1_k3_s2_e4.5_c24_nre", "ir_r1_k3_s1_e3.67_c24_nre"),
    ("ir_r1_k5_s2_e4_c40_se0.25", "ir_r2_k5_s1_e6_c40_se0.25"),
    ("ir_r2_k5_s1_e3_c48_se0.25",),
    ("ir_r3_k5_s2_e6_c96_se0.25",),
    ("cn_r1_k1_s1_c576",),
)
_V3 = Architecture(
    stages=_V3_LARGE,
    stem_size=16,
    fixed_features=True,
    hidden_act="hard_swish",
    top="dense",
    squeeze_act="relu",
    squeeze_gate="hard_sigmoid",
    squeeze_from_inner=True,
    squeeze_divisor=8,
)


def _v3(size: str, width: float, depth: float = 1.0) -> Architecture:
    arch = replace(_V3, width=width, depth=depth, fixed_stem=width < 0.75)
    return replace(arch, stages=_V3_SMALL, num_features=1024) if size == "small" else arch


def _minimal(arch: Architecture) -> Architecture:
    """MobileNetV3 with kernels of 3, ReLU, and without squeeze-and-excitation."""
    plain = {"k5": "k3", "_se0.25": "", "_nre": ""}
    stages = tuple(tuple(_replaced(string, plain) for string in stage) for stage in arch.stages)
    return replace(arch, stages=stages, hidden_act="relu")


def _replaced(string: str, words: dict[str, str]) -> str:
    for old, new in words.items():
        string = string.replace(old, new)
    return string


# Tables of "MobileNetV4: Universal Models for the Mobile Ecosystem" (Qin et al. 2024, arXiv:2404.10518).
_V4_STAGES: dict[str, Stages] = {
    "small": (
        ("cn_r1_k3_s2_c32", "cn_r1_k1_s1_c32"),
        ("cn_r1_k3_s2_c96", "cn_r1_k1_s1_c64"),
        ("uir_r1_a5_k5_s2_e3_c96", "uir_r4_a0_k3_s1_e2_c96", "uir_r1_a3_k0_s1_e4_c96"),
        (
            "uir_r1_a3_k3_s2_e6_c128",
            "uir_r1_a5_k5_s1_e4_c128",
            "uir_r1_a0_k5_s1_e4_c128",
            "uir_r1_a0_k5_s1_e3_c128",
            "uir_r2_a0_k3_s1_e4_c128",
        ),
        ("cn_r1_k1_s1_c960",),
    ),
    "medium": (
        ("er_r1_k3_s2_e4_c48",),
        ("uir_r1_a3_k5_s2_e4_c80", "uir_r1_a3_k3_s1_e2_c80"),
        (
            "uir_r1_a3_k5_s2_e6_c160",
            "uir_r2_a3_k3_s1_e4_c160",
            "uir_r1_a3_k5_s1_e4_c160",
            "uir_r1_a3_k3_s1_e4_c160",
            "uir_r1_a3_k0_s1_e4_c160",
            "uir_r1_a0_k0_s1_e2_c160",
            "uir_r1_a3_k0_s1_e4_c160",
        ),
        (
            "uir_r1_a5_k5_s2_e6_c256",
            "uir_r1_a5_k5_s1_e4_c256",
            "uir_r2_a3_k5_s1_e4_c256",
            "uir_r1_a0_k0_s1_e4_c256",
            "uir_r1_a3_k0_s1_e4_c256",
            "uir_r1_a3_k5_s1_e2_c256",
            "uir_r1_a5_k5_s1_e4_c256",
            "uir_r2_a0_k0_s1_e4_c256",
            "uir_r1_a5_k0_s1_e2_c256",
        ),
        ("cn_r1_k1_s1_c960",),
    ),
    "large": (
        ("er_r1_k3_s2_e4_c48",),
        ("uir_r1_a3_k5_s2_e4_c96", "uir_r1_a3_k3_s1_e4_c96"),
        (
            "uir_r1_a3_k5_s2_e4_c192",
            "uir_r3_a3_k3_s1_e4_c192",
            "uir_r1_a3_k5_s1_e4_c192",
            "uir_r5_a5_k3_s1_e4_c192",
            "uir_r1_a3_k0_s1_e4_c192",
        ),
        (
            "uir_r4_a5_k5_s2_e4_c512",
            "uir_r1_a5_k0_s1_e4_c512",
            "uir_r1_a5_k3_s1_e4_c512",
            "uir_r2_a5_k0_s1_e4_c512",
            "uir_r1_a5_k3_s1_e4_c512",
            "uir_r1_a5_k5_s1_e4_c512",
            "uir_r3_a5_k0_s1_e4_c512",
        ),
        ("cn_r1_k1_s1_c960",),
    ),
}


def _v4(size: str, width: float = 1.0) -> Architecture:
    return Architecture(
        stages=_V4_STAGES[size],
        width=width,
        stem_size=24 if size == "large" else 32,
        fixed_stem=width < 1,
        fixed_features=True,
        hidden_act="relu",
        top="dense with norm",
        squeeze_from_inner=True,
    )


def _tensorflow(architectures: dict[str, Architecture]) -> dict[str, Architecture]:
    """The architectures that timm has for weights from TensorFlow, with its padding and epsilon."""
    return {f"tf_{name}": replace(arch, pad_type="same", bn_eps=1e-3) for name, arch in architectures.items()}


# Multipliers of width and depth.
_SCALES = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
    "b8": (2.2, 3.6),
    "l2": (4.3, 5.3),
}
_LITE_SCALES = {f"lite{i}": _SCALES[f"b{i}"] for i in range(5)}
_EDGE_SCALES = {"es": (1.0, 1.0), "em": (1.0, 1.1), "el": (1.2, 1.4)}
_V1 = {
    **{f"efficientnet_{n}": Architecture(stages=_EFFICIENTNET, width=w, depth=d) for n, (w, d) in _SCALES.items()},
    **{
        f"efficientnet_{n}": Architecture(
            stages=_LITE,
            width=w,
            depth=d,
            fixed_stem=True,
            fixed_features=True,
            fixed_ends=True,
            hidden_act="relu6",
        )
        for n, (w, d) in _LITE_SCALES.items()
    },
    **{
        f"efficientnet_{n}": Architecture(stages=_EDGE, width=w, depth=d, hidden_act="relu")
        for n, (w, d) in _EDGE_SCALES.items()
    },
}
_V2 = {f"efficientnetv2_{size}": _v2(size) for size in ("s", "m", "l", "xl")}
_V2_BASE = {
    f"efficientnetv2_b{i}": _v2("b", limit=0.0, width=w, depth=d)
    for i, (w, d) in enumerate(_SCALES[f"b{i}"] for i in range(4))
}
_V3_BOTH = {
    "mobilenetv3_large_075": _v3("large", 0.75),
    "mobilenetv3_large_100": _v3("large", 1.0),
    "mobilenetv3_small_075": _v3("small", 0.75),
    "mobilenetv3_small_100": _v3("small", 1.0),
}

ARCHITECTURES: dict[str, Architecture] = {
    **_V1,
    "efficientnet_es_pruned": _V1["efficientnet_es"],
    "efficientnet_el_pruned": _V1["efficientnet_el"],
    **_V2,
    "efficientnetv2_rw_t": _v2("s", width=0.8, depth=0.9),
    "efficientnetv2_rw_s": _v2_rw(),
    "efficientnetv2_rw_m": _v2_rw(width=1.2, depth=(1.2, 1.2, 1.2, 1.2, 1.6, 1.6)),
    **_tensorflow({**_V1, **_V2, **_V2_BASE}),
    "test_efficientnet": Architecture(stages=_TEST, stem_size=24, num_features=256, limit=0.0),
    **_V3_BOTH,
    "mobilenetv3_large_150d": _v3("large", 1.5, 1.2),
    "mobilenetv3_small_050": _v3("small", 0.5),
    "mobilenetv3_rw": replace(
        _V3,
        stages=(("ds_r1_k3_s1_c16_nre_noskip",), *_V3_LARGE[1:]),
        top="dense without bias",
        bn_eps=1e-3,
        squeeze_act="",
        squeeze_divisor=1,
    ),
    **_tensorflow(
        {
            **_V3_BOTH,
            "mobilenetv3_large_minimal_100": _minimal(_v3("large", 1.0)),
            "mobilenetv3_small_minimal_100": _minimal(_v3("small", 1.0)),
        }
    ),
    **{f"mobilenetv4_conv_{size}": _v4(size) for size in _V4_STAGES},
    "mobilenetv4_conv_small_035": _v4("small", 0.35),
    "mobilenetv4_conv_small_050": _v4("small", 0.5),
}
