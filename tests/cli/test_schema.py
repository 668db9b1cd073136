import json

from command_line import finetune


def test_schema_is_json_that_describes_a_recipe():
    schema = json.loads(finetune("schema").stdout)
    assert {"backbone", "data", "stages"} <= schema["properties"].keys()
