from command_line import finetune


def test_models_lists_every_family_and_layout():
    shown = finetune("models").stdout
    for word in ("SigLIP", "DINOv2", "ConvNeXt", "MobileNetV2", "timm", "open_clip", "features, other image sizes"):
        assert word in shown
