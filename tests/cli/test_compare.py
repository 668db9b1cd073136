from command_line import clean_failure, finetune


def test_compare_sets_runs_side_by_side(small_run, tmp_path):
    shown = finetune("compare", small_run.directory, small_run.directory, "--figure", "c.png", cwd=tmp_path).stdout
    assert shown.count(f"{small_run.summary['results'][-1]['accuracy']:.4f}") >= 2
    assert (tmp_path / "c.png").is_file()
    clean_failure(finetune("compare", tmp_path), "no run's folder")
