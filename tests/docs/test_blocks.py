"""Every block of the documentation says what the code understands, and runs, or says why no test runs it."""

import ast
import importlib.util
import re
import shutil
from io import StringIO

import numpy as np
import pytest
from command_line import finetune as run_command
from doc_blocks import PAGES, Block, blocks, commands, prose
from filelock import FileLock
from paths import ROOT
from photographs import photograph
from ruamel.yaml import YAML
from typer.main import get_command

import finetune
from finetune import resources
from finetune.cli.grammar import EXAMPLES
from finetune.cli.main import app
from finetune.recipe import Partition, Recipe

VERBS = get_command(app).commands
COPIES = {"mine.yaml": "clip_vit_b32", "digits.yaml": "quickstart"}  # what pages copy them from
EXAMPLE_BLOCKS = [
    Block(f"finetune {verb} --help", 1, "bash", "\n".join(lines), None) for verb, lines in EXAMPLES.items()
]
BASE = {
    "name": "base",
    "backbone": {"source": "builtin:tiny-clip"},
    "data": {"source": "digits"},
    "stages": [{"epochs": 1, "partitions": [{"match": ".*", "learning_rate": 1e-3}]}],
}


def test_pages_have_blocks_of_every_kind():
    assert all(len(blocks(language)) > 8 for language in ("bash", "python", "yaml"))
    assert {COPIES[file] for file in COPIES} <= resources.recipes().keys()


@pytest.mark.parametrize("block", [*blocks("bash"), *EXAMPLE_BLOCKS], ids=str)
def test_its_commands_are_what_the_parser_takes(block):
    for verb, *words in commands(block.code):
        context = VERBS[verb].make_context(verb, words)
        for recipe, overrides in asked_recipes(context.params):
            finetune.load_recipe(recipe, overrides)


def asked_recipes(params):
    """(recipe, overrides) of a command, where it names a bundled one or a copy of one."""
    words = params.get("recipes") or [params.get("recipe"), *(params.get("overrides") or [])]
    overrides = [word for word in words if word and ("=" in word or word.startswith("~"))]
    for name in words:
        if name and name not in overrides:
            known = COPIES.get(name, name)
            assert known in resources.recipes() or known.endswith(".yaml"), f"{name}: no recipe"
            if known in resources.recipes():
                yield known, overrides


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_its_sentences_exist(page):
    for verb in re.findall(r"`finetune ([a-z-]+)", prose(page.read_text(encoding="utf-8"))):
        assert verb in VERBS or verb.startswith("--"), verb


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_its_python_compiles_and_takes_names_that_exist(block):
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "finetune":
            assert node.attr in finetune.__all__
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "finetune":
            assert all(is_defined_in(node.module, name.name) for name in node.names)


def is_defined_in(module, name):
    """Whether a module defines a name at its top, without importing what that costs."""
    path = importlib.util.find_spec(module).origin
    with open(path, encoding="utf-8") as file:
        return any(getattr(node, "name", None) == name for node in ast.parse(file.read()).body)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_its_yaml_is_a_recipe_or_part_of_one(block, tmp_path):
    documents = list(YAML(typ="safe").load_all(StringIO(block.code)))
    if all("apiVersion" in document for document in documents):
        return  # Kubernetes'
    [document] = documents
    if document.keys() >= {"backbone", "data", "stages"}:
        (tmp_path / "recipe.yaml").write_text(block.code, encoding="utf-8")
        finetune.load_recipe(tmp_path / "recipe.yaml")
    elif document.keys() <= Partition.model_fields.keys():
        Partition(**{"match": ".*", "learning_rate": 1e-3} | document)
    else:
        assert Recipe.model_fields.keys() >= document.keys()
        Recipe(**BASE | completed(document))


def completed(part):
    """A part of a recipe with what its stages leave out, as pages show only what they are about."""
    for stage in part.get("stages", []):
        if stage.get("type", "train") == "train":
            stage.setdefault("partitions", [{"match": ".*", "learning_rate": 1e-3}])
            if not stage.keys() & {"epochs", "steps", "examples"}:
                stage["epochs"] = 1
    return part


@pytest.fixture(scope="module")
def desk(small_run, tmp_path_factory, worker_id):
    """A reader's folder, made once for all processes: photographs, a finished run, and one on the photographs."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "desk"
    with FileLock(f"{folder}.lock"):
        if not (folder / "photo.jpg").is_file():
            lay_out(folder)
            shutil.copytree(small_run.directory, folder / "checkpoints" / "quickstart")
            type_commands_for_own_images(folder)
            shutil.copy(folder / "photos" / "cat" / "1.jpg", folder / "photo.jpg")
    return folder


def lay_out(folder):
    for seed in range(60):
        name = "cat" if seed % 2 else "dog"
        (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
        photograph(48, 48, seed).convert("L" if seed % 2 else "RGB").save(folder / "photos" / name / f"{seed}.jpg")
    (folder / "scans").mkdir()
    photograph(8, 8).convert("L").save(folder / "digit.png")
    shutil.copy(folder / "digit.png", folder / "scans")


def type_commands_for_own_images(folder):
    """As printed, but with the small model that is here, for a short time."""
    printed = [block.code.splitlines() for block in blocks("bash") if block.page == "docs/your-images.md"]
    (setup, train, predict), (copy, run) = printed[:2]
    assert setup.startswith("python3 -m venv .venv && .venv/bin/pip install")
    quick = ["--backbone", "builtin:tiny-clip", "--minutes", "0.02"]
    small = ["backbone.source=builtin:tiny-clip", "stages.1.epochs=1", "stages.1.batch_size=8", "data.num_workers=0"]
    small.append("evaluate.interpolation=off")
    for line, more in ((train, quick), (predict, []), (copy, []), (run, small)):
        done = run_command(*next(commands(line)), *more, cwd=folder)
        assert done.returncode == 0, done.stderr
    recipe = folder / "mine.yaml"
    recipe.write_text(recipe.read_text().replace("openai/clip-vit-base-patch32", '"builtin:tiny-clip"'))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["photos", "mine"])
def test_three_commands_end_with_a_classifier(desk, name):
    assert (desk / "checkpoints" / name / "report.html").is_file()
    assert finetune.restore(desk / "checkpoints" / name).class_names == ("cat", "dog")


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in blocks("bash") if not block.reason], ids=str)
def test_its_commands_run(block, desk):
    assert list(commands(block.code)), "nothing to run: say why, as in <!-- not run: needs a cluster -->"
    for words in commands(block.code):
        done = run_command(*words, cwd=desk)
        assert done.returncode == 0, (words, done.stdout, done.stderr)


def reader(page):
    """What a page's Python blocks take as given."""
    import jax

    batches = [{"image": np.zeros((8, 32, 32, 3), np.uint8), "label": np.arange(8)}] * 2
    given = {"batches": batches, "jax": jax, "finetune": finetune, "images": np.zeros((8, 32, 32, 3), np.uint8)}
    if page == "docs/modules.md":
        given["images"] = np.zeros((1, 64, 64, 3), np.float32)
    if page == "docs/heads.md":
        backbone = finetune.load_backbone("builtin:tiny-clip")
        classifier, variables = finetune.build_classifier(backbone, num_classes=10)
        partitions = [{"match": "head", "learning_rate": 1e-3}, {"match": ".*", "frozen": True}]
        stage = finetune.TrainStage(steps=2, batch_size=8, partitions=partitions)
        length = finetune.StageLength(2)
        given["trainer"] = finetune.StageTrainer(stage, classifier, variables, backbone.image_spec, length)
        given |= {"state": given["trainer"].init_state(), "labels": np.arange(8)}
    return given


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in blocks("python") if not block.reason}))
def test_its_python_runs_from_the_first_block_to_the_last(page, desk, monkeypatch):
    monkeypatch.chdir(desk)
    names = reader(page) | {"__name__": "reader"}
    for block in blocks("python"):
        if block.page == page and not block.reason:
            exec(compile(block.code, str(ROOT / page), "exec"), names)
