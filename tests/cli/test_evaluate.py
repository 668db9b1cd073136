import json

from command_line import finetune


def test_evaluate_repeats_the_accuracy_of_the_run(small_run):
    found = json.loads(finetune("evaluate", small_run.directory, "--json").stdout)
    result = small_run.summary["results"][-1]
    assert (found["n"], found["accuracy"]) == (result["n"], result["accuracy"])
