from command_line import clean_failure, finetune


def test_a_folder_without_a_run_is_an_error(tmp_path):
    clean_failure(finetune("resume", tmp_path), "has no recipe.yaml; give the folder of a run")


def test_a_finished_run_is_left_as_it_is(small_run):
    result = finetune("resume", small_run.directory)
    assert result.returncode == 0, result.stderr
    assert "already finished" in result.stderr
