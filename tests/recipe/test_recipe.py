import pytest

from finetune import resources
from finetune.errors import RecipeError
from finetune.recipe import LinearProbeStage, TrainStage, load_recipe
from finetune.recipe.source import purpose

TEXT = """\
# Purpose: a recipe to break.
seed: 3
backbone: {source: "builtin:tiny-clip"}
data: {source: digits}
stages:
  - {name: probe, type: linear_probe}
  - name: tune
    epochs: 2
    partitions:
      - {match: "head/.*", learning_rate: 1e-3}
      - {match: ".*", frozen: true}
"""


@pytest.fixture
def load(tmp_path):
    """Loads TEXT with some of it replaced."""

    def load(old="", new="", overrides=()):
        assert old in TEXT
        file = tmp_path / "mine.yaml"
        file.write_text(TEXT.replace(old, new, 1) if old else TEXT + new)
        return load_recipe(file, overrides)

    return load


def test_a_recipe_is_read_with_its_defaults(load):
    recipe = load()
    assert (recipe.name, recipe.seed, recipe.backbone.source) == ("mine", 3, "builtin:tiny-clip")
    assert (recipe.head.init, recipe.data.test) == ("zeros", 0.2)
    assert isinstance(recipe.stages[0], LinearProbeStage)
    assert isinstance(recipe.stages[1], TrainStage)
    assert recipe.stages[1].partitions[0].learning_rate == 1e-3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed: 3", "sed: 3", r":2: unknown key 'sed' \(did you mean 'seed'\?\); valid here: backbone, data,"),
        (
            "epochs",
            "epoch",
            r":8: unknown key 'stages\.1\.epoch' \(did you mean 'epochs'\?\); valid here: augment, batch_size",
        ),
        (
            "learning_rate",
            "lr",
            r":10: unknown key 'stages\.1\.partitions\.0\.lr' \(did you mean 'learning_rate'\?\); valid here:",
        ),
        (
            "type: linear_probe",
            "type: linear_probe, l2_: 1",
            r":6: unknown key 'stages\.0\.l2_'.*'l2'.*; valid here: class_weights, l2, name",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_one_and_its_line(load, old, new, message):
    with pytest.raises(RecipeError, match=rf"mine\.yaml{message}"):
        load(old, new)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 2", "epochs: two", r":8: stages\.1\.epochs: input should be a valid integer; received 'two'"),
        ("epochs: 2", "epochs: true", r":8: stages\.1\.epochs: .*integer; received True"),
        ("epochs: 2", "epochs: 1.5", r":8: stages\.1\.epochs: .*integer; received 1\.5"),
        ("epochs: 2", "epochs: 0", r":8: stages\.1\.epochs: .*greater than or equal to 1; received 0"),
        ("1e-3", "-1", r":10: stages\.1\.partitions\.0\.learning_rate: .*greater than 0; received -1"),
        ("1e-3", ".nan", r":10: .*finite number"),
        ("1e-3", '"1e-3"', r":10: .*valid number; received '1e-3'"),
        (
            "linear_probe",
            "linear_prob",
            r":6: stages\.0: unknown type 'linear_prob' .did you mean 'linear_probe'.*choose train, linear_probe, ",
        ),
        ("{source: digits}", "digits", r":4: data: .*dictionary.*; received 'digits'"),
    ],
)
def test_a_wrong_value_is_shown_with_its_line_and_what_is_valid(load, old, new, message):
    with pytest.raises(RecipeError, match=rf"mine\.yaml{message}"):
        load(old, new)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 2", "epochs: 2\n    steps: 9", "a stage needs either epochs, steps or examples"),
        ("    epochs: 2\n", "", "a stage needs either epochs, steps or examples"),
        ("learning_rate: 1e-3", "frozen: true", "every partition is frozen: nothing would be trained"),
        (", learning_rate: 1e-3", "", "a partition needs learning_rate, or frozen: true"),
        ("name: tune", "name: probe", r":7: stages\.1\.name: stages need different names; used twice: probe"),
        ("seed: 3", "head: {init: none}", r":2: head\.init: .*a pretrained backbone needs a head; received 'none'"),
        (
            "source: digits",
            "source: digits, shots_per_class: 5, fraction: 0.5",
            r":4: data\.fraction: shots_per_class and fraction both say",
        ),
        ("1e-3", "1e-3, optimizer: {nesterov: true}", r"\.0\.optimizer: 'name' is missing: it says which optimizer"),
        ("1e-3", "1e-3, name: frozen", "the name 'frozen' is reserved for frozen parameters"),
        ("seed: 3", "head: {templates: [a photo]}", "each template needs {} once"),
        ("name: tune", "name: a/b", r"stages\.1\.name: .*pattern"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(load, old, new, message):
    with pytest.raises(RecipeError, match=message):
        load(old, new)


@pytest.mark.parametrize(
    ("old", "message"),
    [("data: {source: digits}\n", "'data' is missing"), ("source: digits", r":4: 'data\.source' is missing")],
)
def test_a_missing_key_is_named(load, old, message):
    with pytest.raises(RecipeError, match=rf"mine\.yaml.*{message}"):
        load(old, "")


def test_several_mistakes_are_reported_together(load):
    with pytest.raises(RecipeError) as raised:
        load("epochs: 2\n", "epochs: two\n    batchsize: 4\n")
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "seed: 4\n", r":12: not valid YAML: found duplicate key .seed."),
        ("epochs: 2", "epochs: [2", r":\d+: not valid YAML"),
        ("epochs: 2", "\tepochs: 2", r":8: not valid YAML: .*'\\t'"),
    ],
)
def test_broken_yaml_names_the_line(load, old, new, message):
    with pytest.raises(RecipeError, match=rf"mine\.yaml{message}"):
        load(old, new)


@pytest.mark.parametrize(("text", "kind"), [("", "nothing"), ("- 1\n", "a list"), ("words\n", "the value 'words'")])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, kind):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=f"a recipe is a mapping of keys to values; received {kind}"):
        load_recipe(file)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"a\.yaml: not a YAML text"):
        load_recipe(file)


@pytest.mark.parametrize(
    ("written", "value"), [("1e-3", 1e-3), ("1E-3", 1e-3), ("1.0e-3", 1e-3), ("1", 1.0), ("2.", 2.0)]
)
def test_numbers_are_read_as_yaml_1_2_reads_them(load, written, value):
    rate = load("1e-3", written).stages[1].partitions[0].learning_rate
    assert rate == value
    assert isinstance(rate, float)


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "y"])
def test_words_that_older_yaml_takes_for_booleans_stay_strings(load, word):
    assert load("name: tune", f"name: {word}").stages[1].name == word
    assert load(overrides=[f"name={word}"]).name == word
    assert load(overrides=[f"data.source={word}"]).data.source == word


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("seed=7", lambda recipe: recipe.seed == 7),
        ("stages.1.epochs=9", lambda recipe: recipe.stages[1].epochs == 9),
        ("stages.1.partitions.0.learning_rate=1e-2", lambda r: r.stages[1].partitions[0].learning_rate == 0.01),
        ("head.init=zero_shot", lambda recipe: recipe.head.init == "zero_shot"),  # head is made
        ("head={init: zero_shot, dropout: 0.5}", lambda recipe: recipe.head.dropout == 0.5),
        ("data.shots_per_class=null", lambda recipe: recipe.data.shots_per_class is None),
        ("~stages.0", lambda recipe: [stage.name for stage in recipe.stages] == ["tune"]),
        ("~seed", lambda recipe: recipe.seed == 0),
        ("name=other", lambda recipe: recipe.name == "other"),
        ("data.source=/a=b", lambda recipe: recipe.data.source == "/a=b"),
    ],
)
def test_an_override_sets_or_deletes(load, override, read):
    assert not read(load(overrides=["seed=1", "data.shots_per_class=5"]))
    assert read(load(overrides=["seed=1", "data.shots_per_class=5", override]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "write key=value, or ~key to delete a key"),
        ("=3", "write key=value, or ~key to delete a key"),
        ("~sede", r"there is no key 'sede' \(did you mean 'seed'\?\)"),
        ("stages.5.epochs=1", r"5 is no item of a list of 2 \(from 0\)"),
        ("stages.last.epochs=1", r"'last' is no item of a list of 2 \(from 0\)"),
        ("~stages.2", r"2 is no item of a list of 2 \(from 0\)"),
        ("seed.a=1", "seed has no keys inside"),
        ("seed=[1", r"'\[1' is not a YAML value"),
        ("stages.1.epoch=3", r"unknown key 'stages\.1\.epoch' \(did you mean 'epochs'\?\)"),
        ("head={inti: zeros}", r"unknown key 'head\.inti' \(did you mean 'init'\?\)"),
        ("seed=abc", "seed: input should be a valid integer; received 'abc'"),
        ("stages.1.epochs=0", r"stages\.1\.epochs: .*received 0"),
    ],
)
def test_a_wrong_override_is_named_itself(load, override, message):
    with pytest.raises(RecipeError, match=message) as raised:
        load(overrides=[override])
    assert str(raised.value).startswith(f"override {override!r}: ")


def test_a_key_that_is_no_text_does_not_hide_the_mistake(load):
    with pytest.raises(RecipeError, match="there is no key 'sede'"):
        load("", "1: 2\n", overrides=["~sede"])


def test_after_a_deletion_lines_are_still_those_of_the_file(load):
    with pytest.raises(RecipeError, match=r"mine\.yaml:8: stages\.0\.epochs"):
        load("epochs: 2", "epochs: 0", overrides=["~stages.0"])


@pytest.mark.parametrize("name", resources.recipes())
def test_every_bundled_recipe_loads_and_says_its_purpose(name):
    assert load_recipe(name).name == name
    assert len(purpose(resources.recipes()[name])) > 20


def test_a_recipe_that_is_not_there_offers_the_nearest_name(tmp_path):
    with pytest.raises(RecipeError, match=r"no bundled recipe of that name \(did you mean 'quickstart'\?\); bundled: "):
        load_recipe("quickstrt")
    with pytest.raises(RecipeError, match="a folder, not a recipe file"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    "text", ["2024", "1e3", "my photos #1", "true", "a: b", "- x", "{}", "[2024] cats", "007", "@home", "=1", "null.d"]
)
def test_a_text_in_an_override_is_what_was_typed(load, text):
    assert load(overrides=[f"data.source={text}"]).data.source == text


def test_quotes_around_a_text_are_no_part_of_it(load):
    assert load(overrides=["data.source='2024 # x'"]).data.source == "2024 # x"
    assert load(overrides=["data.source=s.csv", "data.columns.label=[a, b]"]).data.columns.label == ["a", "b"]
    assert load(overrides=["data.source=s.csv", "data.columns.label=7"]).data.columns.label == "7"
    assert load(overrides=["data.source=s.csv", "data.columns.label=null"]).data.columns.label is None


def test_paths_are_relative_to_where_they_stand(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path.parent)
    file = tmp_path / "recipe.yaml"

    def source(text, overrides=()):
        file.write_text(TEXT.replace("source: digits", f"source: {text}"), encoding="utf-8")
        return load_recipe(file, overrides).data.source

    assert source("photos") == str(tmp_path / "photos")
    assert source("./photos") == str(tmp_path / "photos")
    assert source("missing") == str(tmp_path / "missing")
    assert source("owner/name") == str(tmp_path / "owner" / "name")
    assert source("other/name") == "other/name"
    assert source("/photos") == "/photos"
    assert source("digits") == "digits"
    assert source("digits", ["data.source=photos"]) == "photos"


def test_a_bundled_recipes_path_is_relative_to_the_working_directory():
    assert load_recipe("clip_vit_b32").data.source == "images"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("mesh.fdsp=1", "unknown key 'mesh.fdsp' (did you mean 'fsdp'?); valid here: data, fsdp, rules, tensor"),
        ("mesh=atuo", "such as {data: -1, fsdp: 2}, or auto; received 'atuo'"),
        ("mesh.data=0", "mesh.data: a number of devices, or -1 for all that are left"),
    ],
)
def test_a_mesh_that_is_none_is_said_in_one_line(override, words):
    with pytest.raises(RecipeError) as error:
        load_recipe("quickstart", [override])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("match", ["blocks[:-2]", "blocks[0:-1]", "blocks[-3:-1]", "blocks[-1]", "blocks[:]"])
def test_blocks_are_counted_from_either_end(load, match):
    recipe = load('"head/.*"', f'"{match}"')
    assert recipe.train_stages[1].partitions[0].match == match
