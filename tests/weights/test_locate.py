import pytest

from finetune.errors import ModelError
from finetune.weights.locate import locate


def test_a_folder_is_itself(tmp_path):
    assert locate(tmp_path) == tmp_path
    assert locate(str(tmp_path)) == tmp_path


def test_the_bundled_weights_are_found_by_name():
    assert (locate("builtin:tiny-clip") / "model.safetensors").is_file()


def test_an_unknown_bundled_name_lists_those_that_are_there():
    with pytest.raises(ModelError, match="builtin:huge-clip: no such bundled checkpoint; there are: tiny-clip"):
        locate("builtin:huge-clip")


def test_a_file_in_place_of_its_folder_is_refused(tmp_path):
    file = tmp_path / "config.json"
    file.write_text("{}")
    with pytest.raises(ModelError, match=r"config.json: is a file; give the folder"):
        locate(file)


@pytest.mark.parametrize("source", ["./here/not", "/nowhere", "a/b/c", "word", "owner/"])
def test_what_is_neither_folder_nor_hub_id_is_refused(source):
    with pytest.raises(ModelError, match="no such folder, and neither a hub id"):
        locate(source)


@pytest.mark.parametrize("revision", [None, "v2"])
def test_a_hub_id_that_ends_in_at_needs_a_revision(revision):
    with pytest.raises(ModelError, match="owner/name@: no revision after @; add a branch, tag or commit"):
        locate("owner/name@", revision)


def test_two_revisions_that_differ_are_refused():
    with pytest.raises(ModelError, match="owner/name@v1: its revision differs from the argument revision='v2'; give"):
        locate("owner/name@v1", "v2")


def test_an_id_that_no_repository_can_have_is_refused():
    with pytest.raises(ModelError, match=r"owner/a name: not a hub id \(owner/name\), and no such folder: "):
        locate("owner/a name")


def test_a_hub_id_that_is_not_in_the_cache_says_what_to_do_without_a_network():
    with pytest.raises(ModelError, match="not-an-owner/not-a-model@v2: .*offline mode is on; unset HF_HUB_OFFLINE"):
        locate("not-an-owner/not-a-model", "v2")
