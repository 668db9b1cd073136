"""EfficientNet and the mobile networks that are built of the same blocks.

"EfficientNet" (Tan & Le 2019, arXiv:1905.11946), its Lite and EdgeTPU variants, "EfficientNetV2" (Tan & Le 2021,
arXiv:2104.00298), "Searching for MobileNetV3" (Howard et al. 2019, arXiv:1905.02244) and the convolutional models of
"MobileNetV4" (Qin et al. 2024, arXiv:2404.10518).
"""

from finetune.models.families.efficientnet.architectures import ARCHITECTURES
from finetune.models.families.efficientnet.module import EfficientNetConfig, EfficientNetModule
from finetune.models.families.efficientnet.timm import read_timm
from finetune.models.families.efficientnet.transformers import read_transformers
from finetune.models.family import Family, Reader

FAMILY = Family(
    name="efficientnet",
    title="EfficientNet, MobileNetV3, MobileNetV4",
    module=EfficientNetModule,
    config=EfficientNetConfig,
    license="Apache-2.0",
    readers=(
        Reader(
            "transformers",
            "efficientnet",
            read_transformers,
            "EfficientNet",
            head="classifier",
            verified=("features", "other image sizes", "logits", "a training step"),
        ),
        Reader(
            "timm",
            "|".join(ARCHITECTURES),
            read_timm,
            head="classifier",
            label="efficientnet_*, efficientnetv2_*, mobilenetv3_*, mobilenetv4_conv_*",
            verified=("features", "other image sizes", "logits"),
        ),
    ),
)
