from finetune.run.curves import curve_charts, curves_by_stage, curves_of


def record(stage, epoch, split, **values):
    return {"stage": stage, "epoch": epoch, "split": split, **values}


RECORDS = [
    {"stage": "probe", "split": "train", "l2": 0.1},
    record("warm", 1, "train", loss=2.0, learning_rate={"head": 0.1, "rest": 0.2}),
    record("warm", 1, "validation", loss=2.5, accuracy=0.5),
    record("warm", 1, "epoch", validation=0.5),
    record("all", 0.5, "train", loss=1.0, learning_rate={"head": 0.1}),
    record("all", 1, "train", loss=None, learning_rate={"head": 0.05}),
]


def test_each_stage_has_its_curves_and_epochs_go_on():
    first, second = curves_by_stage(RECORDS, "accuracy")
    assert (first["name"], second["name"]) == ("warm", "all")
    assert first["curves"] == {
        "train_loss": [[1, 2.0]],
        "validation_loss": [[1, 2.5]],
        "validation_accuracy": [[1, 0.5]],
        "learning_rate": [[1, 0.2]],
    }
    assert second["curves"]["train_loss"] == [[1.5, 1.0]]  # a loss that is not finite is no point
    assert curves_of(RECORDS, "accuracy")["train_loss"] == [[1, 2.0], [1.5, 1.0]]


def test_the_losses_share_a_chart_and_a_run_without_epochs_has_none():
    assert list(curve_charts(curves_by_stage(RECORDS, "accuracy"))) == ["loss", "validation accuracy", "learning rate"]
    assert "training loss" in curve_charts([{"name": "a", "curves": curves_of(RECORDS, "accuracy")}])
    assert curve_charts(curves_by_stage(RECORDS[:1], "accuracy")) == {}
