from command_line import finetune
from paths import SMALL


def test_plan_shows_what_is_trained_how_fast_and_what_a_step_costs():
    shown = finetune("plan", SMALL, "--parameters", "stages.1.partitions.0.layer_decay=0.9").stdout
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip().startswith("backbone/")}
    assert rows["backbone/encoder/layers/0/mlp/fc1/kernel"] == ["192x768", "frozen", "frozen"]
    assert rows["backbone/encoder/layers/3/mlp/fc1/kernel"][2:] == ["sgd", "0.001"]
    for line in ("446,794 trainable, 1,375,680 frozen", "GFLOP for a batch of 32", "MB at the peak", "at most about"):
        assert line in shown
