"""Swin (Liu et al. 2021, arXiv:2103.14030) and Swin V2 (Liu et al. 2022, arXiv:2111.09883)."""

from finetune.models.families.swin.module import SwinConfig, SwinModule
from finetune.models.families.swin.timm import ARCHITECTURES_V1, ARCHITECTURES_V2, read_timm_v1, read_timm_v2
from finetune.models.families.swin.transformers import read_transformers
from finetune.models.family import Family, Reader

FAMILY = Family(
    name="swin",
    title="Swin",
    module=SwinModule,
    config=SwinConfig,
    license="Apache-2.0; timm MIT",
    readers=(
        Reader(
            "transformers",
            "swin",
            read_transformers,
            "ViT",
            any_size=True,
            head="classifier",
            verified=("features", "other image sizes", "logits", "a training step"),
        ),
        Reader(
            "transformers",
            "swinv2",
            read_transformers,
            "ViT",
            any_size=True,
            head="classifier",
            verified=("features", "other image sizes", "logits", "a training step"),
        ),
        Reader(
            "timm",
            ARCHITECTURES_V1,
            read_timm_v1,
            head=r"head\.fc",
            label="swin_*, swin_s3_*",
            verified=("features", "other image sizes", "logits"),
        ),
        Reader(
            "timm",
            ARCHITECTURES_V2,
            read_timm_v2,
            head=r"head\.fc",
            label="swinv2_*",
            verified=("features", "other image sizes", "logits"),
        ),
    ),
)
