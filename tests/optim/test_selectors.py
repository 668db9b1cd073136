import pytest
from flax.traverse_util import flatten_dict

from finetune.errors import PartitionError
from finetune.models.depth import TRANSFORMER
from finetune.optim.parameter_plan import ParameterPlan
from finetune.optim.partitions import label_params
from finetune.optim.selectors import classifier_depths, select
from finetune.recipe import Partition


@pytest.fixture(scope="module")
def paths(tiny_clip):
    """Of a classifier on a transformer of four blocks."""
    return [f"backbone/{path}" for path in flatten_dict(tiny_clip.variables["params"], sep="/")] + [
        "head/kernel",
        "head/bias",
    ]


def layers(selected):
    return sorted({int(path.split("/")[3]) for path in selected})


def test_head_and_backbone_are_all_there_is(paths):
    assert select("head", paths) == {"head/kernel", "head/bias"}
    assert select("head", paths) | select("backbone", paths) == set(paths)


def test_norms_have_a_scale_and_biases_are_everywhere(paths):
    norms = select("norms", paths)
    assert {"backbone/pre_layrnorm/scale", "backbone/encoder/layers/3/layer_norm2/bias"} <= norms
    assert all("norm" in path for path in norms)
    assert {"head/bias", "backbone/pre_layrnorm/bias", "backbone/encoder/layers/0/mlp/fc1/bias"} <= select(
        "biases", paths
    )


def test_embeddings_are_learned_tokens_and_positions_but_not_the_patches_kernel(paths):
    assert select("embeddings", paths) == {
        "backbone/embeddings/class_embedding",
        "backbone/embeddings/position_embedding/embedding",
    }


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("blocks[0]", [0]),
        ("blocks[-1]", [3]),
        ("blocks[-2:]", [2, 3]),
        ("blocks[:1]", [0]),
        ("blocks[1:3]", [1, 2]),
        ("blocks[:]", [0, 1, 2, 3]),
    ],
)
def test_blocks_are_counted_as_python_counts(paths, selector, expected):
    selected = select(selector, paths, TRANSFORMER)
    assert layers(selected) == expected
    assert len(selected) == 16 * len(expected)


def test_a_block_that_is_not_there_is_refused_with_their_number(paths):
    with pytest.raises(PartitionError, match=r"'blocks\[4\]': the backbone has 4 blocks"):
        select("blocks[4]", paths, TRANSFORMER)


def test_blocks_of_a_backbone_without_a_known_order_are_refused_with_the_way_out():
    with pytest.raises(PartitionError, match=r"not known: match its parts by regular expressions, .*or declare"):
        select("blocks[0]", ["backbone/conv/kernel", "head/kernel"])


def test_the_head_is_as_deep_as_the_top_of_the_backbone(paths):
    depth = classifier_depths(paths, TRANSFORMER)
    assert depth["backbone/embeddings/class_embedding"] == depth["backbone/pre_layrnorm/scale"] == 0
    assert [depth[f"backbone/encoder/layers/{i}/mlp/fc1/kernel"] for i in range(4)] == [1, 2, 3, 4]
    assert depth["backbone/post_layernorm/scale"] == depth["head/kernel"] == 5


def test_selectors_and_expressions_mix_and_the_first_decides(paths):
    tree = dict.fromkeys(paths, 0)
    rules = [("norms", "norms"), ("blocks[-1]", "last"), ("head/.*", "head"), ("backbone", "rest")]
    labels = label_params(_nested(tree), rules)
    flat = flatten_dict(labels, sep="/")
    assert flat["backbone/encoder/layers/3/layer_norm1/scale"] == "norms"
    assert flat["backbone/encoder/layers/3/mlp/fc1/kernel"] == "last"
    assert flat["backbone/encoder/layers/2/mlp/fc1/kernel"] == "rest"


def test_a_misspelt_selector_is_answered_with_the_nearest(paths):
    rules = [Partition(match="norm", learning_rate=0.1), Partition(match=".*", frozen=True)]
    with pytest.raises(PartitionError, match=r"'norm' takes no parameter.*did you mean 'norms'"):
        ParameterPlan.make({"params": _nested(dict.fromkeys(paths, 0))}, rules)


def _nested(flat):
    from flax.traverse_util import unflatten_dict

    return unflatten_dict({tuple(path.split("/")): value for path, value in flat.items()})
