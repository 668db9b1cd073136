from dataclasses import replace

from finetune.report.bottleneck import Settings, Speeds, find_bottleneck

GPU = Settings("gpu", "bfloat16", num_workers=0, processors=8, decodes=True, shrinks=False, trains=True)
FAST = Speeds(device=1000, input=5000, fed=980, dispatch=0.1, share_of_peak=0.5)


def test_a_loader_slower_than_the_device_is_the_input_and_workers_are_advised_first():
    found = find_bottleneck(replace(FAST, input=200, fed=190), GPU)
    assert found.what == "input"
    assert "200/s" in found.sentence
    assert "data.num_workers, up to 8" in found.sentence
    with_workers = find_bottleneck(replace(FAST, input=200, fed=190), replace(GPU, num_workers=8))
    assert "data.cache_shortest_edge" in with_workers.sentence


def test_an_option_that_is_set_already_or_cannot_help_is_not_advised():
    all_set = find_bottleneck(replace(FAST, input=200), replace(GPU, num_workers=8, shrinks=True))
    arrays = find_bottleneck(replace(FAST, input=200), replace(GPU, decodes=False))
    for found in (all_set, arrays):
        assert "num_workers" not in found.sentence
        assert "cache_shortest_edge" not in found.sentence


def test_a_step_that_is_mostly_its_start_is_the_hosts():
    assert find_bottleneck(replace(FAST, dispatch=0.8), GPU).what == "host"


def test_a_device_that_waits_though_the_loader_is_fast_is_the_hosts_and_on_a_cpu_shares_it():
    slowed = replace(FAST, fed=500)
    assert find_bottleneck(slowed, GPU).what == "host"
    on_cpu = find_bottleneck(slowed, replace(GPU, platform="cpu"))
    assert on_cpu.what == "device"
    assert "the loader has a part" in on_cpu.sentence


def test_the_device_is_what_is_left_and_float32_on_an_accelerator_is_named():
    assert find_bottleneck(FAST, GPU).what == "device"
    low = replace(FAST, share_of_peak=0.1, input=None, fed=None)
    assert "compute_dtype: bfloat16" in find_bottleneck(low, replace(GPU, compute_dtype="float32")).sentence
    assert "bfloat16" not in find_bottleneck(low, GPU).sentence
