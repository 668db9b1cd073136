from finetune.folder.run_folder import RunFolder
from finetune.run.page_facts import describe_weights

MOVED = {"parameters": 4, "distance": 0.5, "relative": 0.25}
STILL = {"parameters": 4, "distance": 0.0, "relative": 0.0}
NEW = {"parameters": 2, "distance": 3.0, "relative": None}


def test_a_stage_that_changed_pretrained_layers_has_a_chart_of_them(tmp_path):
    folder = RunFolder(tmp_path)
    probe, tune = describe_weights({"head": {"stem": STILL, "head": NEW}, "all": {"stem": MOVED, "head": NEW}}, folder)
    assert probe["chart"] is None
    assert "the most in stem, 25% of its norm" in tune["chart"]
    assert [layer["name"] for layer in tune["layers"]] == ["stem", "head"]
    assert folder.figure("weight_change").is_file()


def test_a_run_that_trained_heads_alone_has_no_figure_of_weights(tmp_path):
    assert describe_weights({}, RunFolder(tmp_path)) == []
    assert not (tmp_path / "figures").exists()
