"""YAML is read within bounds, and what is beyond them is named with its line."""

import pytest

from finetune.errors import PartitionError, RecipeError
from finetune.optim.selectors import select
from finetune.recipe import load_recipe
from finetune.recipe.patterns import check_pattern, matching
from finetune.recipe.yaml_text import Unreadable, parse_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        (LAUGHS, "more than 10,000 values, with those that aliases repeat", 5),
        ("a: 1\nb: &b [*b]", r"the alias \*b stands inside what it refers to", 2),
        ("a: &a {<<: *a}", r"the alias \*a stands inside what it refers to", 1),
        ("a: " + "[" * 40, "nested deeper than 32 levels", 1),
        ("a: !!python/object:os.system x", "the tag tag:yaml.org,2002:python/object:os.system is not supported", 1),
        ("a: 1\n? [b]\n: c", "a key is no text", 2),
        ("{" * 30 + "}" * 30, "a key is no text", 1),
        ("a: 1\n---\nb: 2", "another document", 2),
        ("a: 1\nb: 0x" + "f" * 5000, "a whole number is out of range", 2),
        ("a: " + "9" * 5000, "not a YAML text", None),
        ("a: 2024-99-99", "not a YAML text: month must be in 1..12", None),
        ("a: \0", "not a YAML text", None),
        (b"a: \xff", "not a YAML text", None),
    ],
)
def test_what_no_recipe_needs_is_refused(text, message, line):
    with pytest.raises(Unreadable, match=message) as raised:
        parse_yaml(text)
    assert raised.value.line == line


def test_anchors_aliases_and_merged_keys_are_read():
    document = parse_yaml("a: &a {x: 1, y: [2, 3]}\nb: *a\nc:\n  <<: *a\n  x: 4\n")
    assert document["b"]["y"] == [2, 3]
    assert dict(document["c"].items()) == {"x": 4, "y": [2, 3]}


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/stdin", "x" * 5000, "a\0b"])
def test_a_recipe_is_a_file(name):
    with pytest.raises(RecipeError, match=r"not a regular file|no such file|cannot be read"):
        load_recipe(name)


@pytest.mark.parametrize(
    "override", ["a." * 1000 + "b=1", "seed=" + "x" * 10**6, "stages." + "9" * 5000 + "=1", "seed=[*a]", "seed=&a [*a]"]
)
def test_an_endless_override_is_named_in_short(override):
    with pytest.raises(RecipeError, match="^override ") as raised:
        load_recipe("quickstart", [override])
    assert len(str(raised.value)) < 5000


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["(a|a)*b", "(a|aa)+b"])
def test_a_pattern_that_backtracks_without_end_is_stopped(pattern):
    with pytest.raises(PartitionError, match="takes more than a second to match"):
        select(pattern, ["a" * 100 + "cb"])


@pytest.mark.parametrize(
    "pattern", ["a{1000000000}", "((a{100}){100}){100}", "(" * 2000, "a{99999999999999999999}", "["]
)
def test_a_pattern_that_is_costly_to_compile_is_refused(pattern):
    with pytest.raises(ValueError, match="regular expression"):
        check_pattern(pattern)


def test_patterns_are_those_of_re():
    paths = ["backbone/layers/11/kernel", "backbone/layers/3/bias", "head/kernel"]
    assert matching(r"backbone/(?!layers/11/).*", paths) == {paths[1]}
    assert matching(r".*/(?P<leaf>kernel|bias)", paths) == set(paths)
    assert matching(r"backbone/layers/\d{2}/\w+", paths) == {paths[0]}
