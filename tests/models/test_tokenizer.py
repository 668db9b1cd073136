"""A tokenizer has to belong to the text tower beside it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from finetune import resources
from finetune.errors import ModelError
from finetune.models.layers.text import TextConfig
from finetune.models.tokenizer import load_tokenizer, tokenize

SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def a_config(**values):
    return TextConfig(**{**SIZES, "vocab_size": 10, "max_position_embeddings": 4, **values})


class Fixed:
    """Answers each text with the same ids."""

    eos_token_id = 9
    sep_token_id = 3

    def __init__(self, *ids):
        self.ids = ids

    def __call__(self, texts, **_):
        return {"input_ids": np.array([self.ids] * len(texts))}


def test_ids_that_the_tower_has_embeddings_of_are_passed_on():
    ids, mask = tokenize(Fixed(1, 9, 0, 0), a_config(), ["a", "b"], Path("here"))
    assert ids.tolist() == [[1, 9, 0, 0]] * 2
    assert mask is None


@pytest.mark.parametrize("pooling", ["end", "first", "last", "mean"])
@pytest.mark.parametrize("unknown", [10, 49407, -1])
def test_an_id_beyond_the_vocabulary_is_refused_in_every_kind_of_tower(pooling, unknown):
    with pytest.raises(ModelError, match=f"^here: its tokenizer makes the token id {unknown}, and .* of 0 to 9"):
        tokenize(Fixed(1, unknown, 9, 0), a_config(pooling=pooling), ["a"], Path("here"))


@pytest.mark.parametrize("end", [7, None])
def test_a_text_without_the_token_that_is_pooled_is_refused(end):
    with pytest.raises(ModelError, match="does not end a text with the end-of-text token"):
        tokenize(Fixed(1, 2, 3, 4), a_config(eos_token_id=end), ["a"], Path("here"))
    tokenize(Fixed(1, 2, 3, 4), a_config(eos_token_id=end, pooling="last"), ["a"], Path("here"))


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(resources.checkpoint("tiny-clip"), tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", "{}", "its tokenizer cannot be read"),
        ("tokenizer.json", "[" * 100_000, "its tokenizer cannot be read"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: needs a JSON object"),
        ("tokenizer_config.json", '{"tokenizer_class": 3}', "its tokenizer cannot be read"),
        ("special_tokens_map.json", '{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("added_tokens.json", None, "added_tokens.json: cannot be read as JSON: not a regular file"),
        ("merges.txt", None, "merges.txt: cannot be read: not a regular file"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_named(folder, name, text, message):
    if text is None:
        os.mkfifo(folder / name)
    else:
        (folder / name).write_text(text)
    with pytest.raises(ModelError, match=message):
        load_tokenizer(folder)


def test_a_panic_of_the_library_is_named(folder):
    document = json.loads((folder / "tokenizer.json").read_text())
    piece = {"SpecialToken": {"id": "absent", "type_id": 0}}
    document["post_processor"] = {"type": "TemplateProcessing", "single": [piece], "pair": [], "special_tokens": {}}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match="its tokenizer cannot"):
        tokenize(load_tokenizer(folder), a_config(vocab_size=288), ["a"], folder)
