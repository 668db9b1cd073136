import json

import pytest
from command_line import clean_failure, finetune, in_a_process, read_table
from paths import SMALL


@pytest.mark.slow
def test_bench_quickstart_works_as_typed(tmp_path):
    result = in_a_process("bench", "quickstart", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = {row["stage"]: row for row in read_table(result.stdout)}
    assert rows.keys() == {"probe: features", "finetune"}
    assert float(rows["finetune"]["images/s"].replace(",", "")) > 1
    assert "bounds it" in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_bench_as_json_has_the_same_numbers_for_programs():
    result = json.loads(finetune("bench", SMALL, "--synthetic", "--steps", "2", "--json").stdout)
    probe, train = result["stages"]
    assert probe["extraction"]["step_seconds"]["count"] == train["step_seconds"]["count"] == 2
    assert result["device"]["count"] == 1


def test_bench_of_what_is_no_recipe_is_one_message(tmp_path):
    clean_failure(finetune("bench", "builtin:tiny-clip"), "no such file, and no bundled recipe")
    clean_failure(finetune("bench", tmp_path), "a folder, not a recipe file")
    clean_failure(finetune("bench", SMALL, "--steps", "0"), "--steps")
    clean_failure(finetune("bench", SMALL, "stages.1.batchsize=3"), "did you mean 'batch_size'")
