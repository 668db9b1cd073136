"""Recipes, configurations and weights that others wrote are read, or refused at once with one of our errors."""

import json
import resource
import shutil
import struct

import numpy as np
import pytest
from hostile import SCALARS, THOROUGHLY, VALUES, answered_at_once, garbled, mutations, paths_in
from hypothesis import given
from hypothesis import strategies as st
from paths import GOLDENS, SMALL
from rich_recipes import rich_recipes
from ruamel.yaml import YAML
from safetensors.numpy import save

from finetune import resources
from finetune.models.backbone import load_backbone
from finetune.models.pretrained import check_pretrained, find_reader
from finetune.optim.selectors import select
from finetune.recipe import load_recipe
from finetune.weights.layout import open_checkpoint
from finetune.weights.preprocessor import from_processor
from finetune.weights.tensors import TensorFolder

pytestmark = pytest.mark.slow

# The short ones, since most of the time goes into parsing.
RECIPES = sorted((path.read_text(encoding="utf-8") for path in resources.recipes().values()), key=len)[:4]
DOCUMENTS = [*rich_recipes().values(), *(YAML(typ="safe").load(text) for text in RECIPES)]
DOCUMENTS = sorted(DOCUMENTS, key=lambda document: len(json.dumps(document)))[:8]
OF_YAML = st.one_of(
    st.sampled_from(["&a ", "*a", "<<: *a\n", "!!python/object:os.system ", "!foo ", "---\n", "...\n", "%YAML 1.1\n"]),
    st.sampled_from(
        ["\t", "\0", "\x85", "? ", ": ", "[", "]", "{", "}", "- ", "|\n", ">\n", '"', "'", "\\", "\\x1b", "~"]
    ),
    st.sampled_from(["2024-99-99", "0x" + "f" * 5000, "9" * 5000, ".nan", ".inf", "1e999", "\ufeff"]),
    st.sampled_from(["[" * 2000, "{a: " * 500, "- " * 500, "#" * 5000, "{" * 30]),
    st.text(max_size=10),
)
FOLDERS = sorted(path.parent for path in GOLDENS.glob("*/*.safetensors"))
CONFIGS = {
    file: json.loads(file.read_text(encoding="utf-8"))
    for folder in FOLDERS
    for file in folder.glob("*config.json")
    if file.name in ("config.json", "open_clip_config.json")
}


@pytest.fixture(scope="module", autouse=True)
def _within_a_gigabyte():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # in KiB


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@THOROUGHLY
@given(data=st.data())
def test_recipes_as_text(folder, data):
    text = data.draw(st.sampled_from(RECIPES).flatmap(lambda text: garbled(text, OF_YAML)))
    (folder / "garbled.yaml").write_bytes(text.encode(errors="surrogatepass"))
    with answered_at_once():
        load_recipe(folder / "garbled.yaml")


@THOROUGHLY
@given(data=st.data())
def test_recipes_as_documents(folder, data):
    document = data.draw(st.sampled_from(DOCUMENTS).flatmap(mutations))
    (folder / "mutated.yaml").write_text(json.dumps(document))  # which is YAML too
    with answered_at_once():
        load_recipe(folder / "mutated.yaml")


KEYS = sorted({".".join(map(str, path)) for document in DOCUMENTS for path in paths_in(document)})


@THOROUGHLY
@given(
    key=st.one_of(
        st.sampled_from(KEYS), st.text(max_size=12), st.sampled_from(["a." * 500 + "b", "stages.1000000000.x"])
    ),
    value=st.one_of(OF_YAML, VALUES.map(lambda value: json.dumps(value)[:100_000]), st.just("x" * 2**20)),
    delete=st.booleans(),
)
def test_overrides(key, value, delete):
    with answered_at_once():
        load_recipe(SMALL, [f"~{key}" if delete else f"{key}={value}"])


@THOROUGHLY
@given(pattern=st.text(st.sampled_from("()[]{}|*+?.^$\\abd/09,:=!<>-"), max_size=30))
def test_patterns(pattern):
    with answered_at_once():
        select(pattern, ["backbone/encoder/layers/0/mlp/fc1/kernel", "a" * 60, "head/kernel"])


@pytest.fixture(scope="module")
def copies(folder):
    """Of every reference checkpoint, whose configurations the tests write over."""
    for source in FOLDERS:
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("*.npz"))
    return folder


@THOROUGHLY
@given(data=st.data())
def test_configurations_beside_their_tensors(copies, data):
    file, config = data.draw(st.sampled_from(sorted(CONFIGS.items())).flatmap(_one_mutated))
    copy = copies / file.parent.name
    (copy / file.name).write_text(json.dumps(config))
    with answered_at_once():
        checkpoint = open_checkpoint(copy)
        check_pretrained(checkpoint, *find_reader(checkpoint))
    shutil.copyfile(file, copy / file.name)


@st.composite
def _one_mutated(draw, item):
    file, config = item
    return file, draw(mutations(config))


@THOROUGHLY
@given(data=st.data())
def test_image_processors(data):
    config = {
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
        "resample": 3,
        "crop_pct": 0.9,
    }
    config |= {
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
    }
    config |= {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "CLIPImageProcessor",
    }
    processor = data.draw(st.sampled_from(["CLIP", "ViT", "ConvNext", "EfficientNet", "DeiT"]))
    changed = data.draw(mutations({**config, "image_processor_type": f"{processor}ImageProcessor"}))
    with answered_at_once():
        spec = from_processor(changed, "here.json")
        assert np.isfinite(spec.normalize(np.full((1, 1, 1, 3), 255, np.uint8))).all()


SAVED = save({"a": np.zeros((2, 3), np.float32), "b.c": np.ones(4, np.float16), "é": np.zeros((0, 2), np.int8)})
HEADER = json.loads(SAVED[8 : 8 + int.from_bytes(SAVED[:8], "little")])


@THOROUGHLY
@given(data=st.data())
def test_files_of_tensors(folder, data):
    if data.draw(st.booleans()):
        header = json.dumps(data.draw(mutations(HEADER))).encode()
        length = data.draw(st.one_of(st.just(len(header)), st.integers(0, 2**64 - 1)))
        content = struct.pack("<Q", length) + header + SAVED[8 + int.from_bytes(SAVED[:8], "little") :]
    else:
        content = data.draw(garbled(SAVED, st.binary(max_size=12)))
    (folder / "model.safetensors").write_bytes(content)
    with answered_at_once():
        for tensor in TensorFolder(folder).values():
            np.asarray(tensor)


@THOROUGHLY
@given(index=st.one_of(mutations({"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}), SCALARS))
def test_indices_of_shards(folder, index):
    shards = folder / "shards"
    shards.mkdir(exist_ok=True)
    (shards / "model-1.safetensors").write_bytes(SAVED)
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    with answered_at_once():
        TensorFolder(shards)


@pytest.mark.parametrize("blocks", [3000, 10**9])
@pytest.mark.parametrize("name", [folder.name for folder in FOLDERS])
def test_blocks_that_the_tensors_are_not_of(copies, name, blocks):
    """Whatever a family calls them."""
    (file,) = (file for file in CONFIGS if file.parent.name == name)
    config = json.loads(file.read_text(encoding="utf-8"))
    for path in list(paths_in(config)):
        *above, key = path
        parent = config
        for step in above:
            parent = parent[step]
        if key in ("num_hidden_layers", "depth", "layers") and isinstance(parent[key], int):
            parent[key] = blocks
        elif key in ("depths", "layers", "num_block_repeats"):
            parent[key] = [blocks, *parent[key][1:]]
    (copies / name / file.name).write_text(json.dumps(config))
    with answered_at_once():
        load_backbone(copies / name)
    shutil.copyfile(file, copies / name / file.name)
