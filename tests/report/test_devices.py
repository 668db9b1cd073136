import pytest

from finetune.report.devices import known_peak


@pytest.mark.parametrize(
    ("kind", "platform", "bfloat16", "float32"),
    [
        ("NVIDIA A100-SXM4-80GB", "gpu", (312, "bfloat16"), (156, "tf32")),
        ("NVIDIA H100 80GB HBM3", "gpu", (989, "bfloat16"), (494, "tf32")),
        ("NVIDIA H100 PCIe", "gpu", (756, "bfloat16"), (378, "tf32")),
        ("NVIDIA H200", "gpu", (989, "bfloat16"), (494, "tf32")),
        ("NVIDIA GH200 480GB", "gpu", (990, "bfloat16"), (494, "tf32")),
        ("NVIDIA B200", "gpu", (2250, "bfloat16"), (1125, "tf32")),
        ("NVIDIA L4", "gpu", (121, "bfloat16"), (60, "tf32")),
        ("NVIDIA L40S", "gpu", (362, "bfloat16"), (183, "tf32")),
        ("NVIDIA A10G", "gpu", (70, "bfloat16"), (35, "tf32")),
        ("NVIDIA A10", "gpu", (125, "bfloat16"), (62.5, "tf32")),
        ("Tesla T4", "gpu", (8.1, "float32"), (8.1, "float32")),
        ("Tesla V100-SXM2-16GB", "gpu", (15.7, "float32"), (15.7, "float32")),
        ("Tesla V100-PCIE-16GB", "gpu", (14, "float32"), (14, "float32")),
        ("NVIDIA GeForce RTX 4090", "gpu", (165, "bfloat16"), (82.6, "tf32")),
        ("NVIDIA GeForce RTX 3090", "gpu", (71, "bfloat16"), (35.6, "tf32")),
        ("AMD Instinct MI300X", "gpu", (1307, "bfloat16"), (163, "float32")),
        ("TPU v4", "tpu", (275, "bfloat16"), (275, "bfloat16")),
        ("TPU v5 lite", "tpu", (197, "bfloat16"), (197, "bfloat16")),
        ("TPU v5", "tpu", (459, "bfloat16"), (459, "bfloat16")),
        ("TPU v6 lite", "tpu", (918, "bfloat16"), (918, "bfloat16")),
    ],
)
def test_the_peak_is_that_of_the_unit_which_multiplies_by_default(kind, platform, bfloat16, float32):
    for dtype, (teraflops, format) in (("bfloat16", bfloat16), ("float32", float32)):
        peak = known_peak(kind, platform, dtype)
        assert (peak.flops / 1e12, peak.format, peak.source) == (pytest.approx(teraflops), format, "data sheet")


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA GeForce GTX 1080", "TPU7x"])
def test_a_device_that_is_not_in_the_table_has_no_known_peak(kind):
    assert known_peak(kind, "cpu", "float32") is None
