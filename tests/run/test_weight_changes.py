import numpy as np

from finetune.models.depth import TRANSFORMER
from finetune.run.weight_changes import compare_frozen, layers_of, measure_change
from finetune.trees import hash_leaves

VARIABLES = {
    "params": {"backbone": {"fc": {"kernel": np.ones((2, 2), np.float32)}, "norm": {"scale": np.ones(2, np.float32)}}},
    "batch_stats": {"backbone": {"norm": {"mean": np.zeros(2, np.float32)}}},
}


def test_one_flipped_bit_dtype_or_shape_is_a_change_and_is_named():
    before = hash_leaves(VARIABLES)
    assert compare_frozen(before, hash_leaves(VARIABLES)) == {"parameters": 2, "statistics": 1, "changed": []}
    for other in (np.array([1, np.nextafter(np.float32(1), 2)], np.float32), np.ones(2), np.ones((1, 2), np.float32)):
        params = {"backbone": {**VARIABLES["params"]["backbone"], "norm": {"scale": other}}}
        after = hash_leaves({**VARIABLES, "params": params})
        assert compare_frozen(before, after)["changed"] == ["params/backbone/norm/scale"]


def test_a_leaf_that_is_gone_is_a_change():
    after = hash_leaves({"params": VARIABLES["params"]})
    assert compare_frozen(hash_leaves(VARIABLES), after)["changed"] == ["batch_stats/backbone/norm/mean"]


def test_change_is_the_distance_from_the_pretrained_values_and_the_heads_is_from_zero():
    params = {
        "backbone": {"fc": {"kernel": np.full((2, 2), 1.5, np.float32)}, "norm": {"scale": np.ones(2, np.float32)}},
        "head": {"kernel": np.full((3, 3), 2.0, np.float32)},
    }
    labels = {"backbone/fc/kernel": "fc", "backbone/norm/scale": "frozen", "head/kernel": "head"}
    (change,) = measure_change(params, VARIABLES["params"]["backbone"], labels)
    assert change == {
        "fc": {"parameters": 4, "distance": 1.0, "relative": 0.5},
        "frozen": {"parameters": 2, "distance": 0.0, "relative": 0.0},
        "head": {"parameters": 9, "distance": 6.0, "relative": None},
    }


def test_layers_are_the_blocks_in_their_order_what_is_around_them_and_the_head():
    names = ["post_layernorm/scale", "encoder/layers/10/mlp/kernel", "encoder/layers/2/mlp/kernel", "embeddings/patch"]
    paths = ["head/kernel", "head/bias", *(f"backbone/{name}" for name in names)]
    layers = layers_of(paths, TRANSFORMER)
    order = ["embeddings", "encoder/layers/2", "encoder/layers/10", "post_layernorm", "head"]
    assert list(dict.fromkeys(layers.values())) == order
    assert layers["backbone/encoder/layers/10/mlp/kernel"] == "encoder/layers/10"


def test_without_a_known_order_the_first_names_are_layers():
    assert layers_of(["backbone/conv1/kernel", "backbone/conv1/bias", "head/bias"], None) == {
        "backbone/conv1/bias": "conv1",
        "backbone/conv1/kernel": "conv1",
        "head/bias": "head",
    }


def test_several_ways_to_see_the_parameters_are_measured_at_once():
    params = {"backbone": {"fc": {"kernel": np.ones((2, 2), np.float32) * 3}}, "head": {"bias": np.ones(1, np.float32)}}
    parts = {"backbone/fc/kernel": "all", "head/bias": "all"}
    layers = {"head/bias": "head", "backbone/fc/kernel": "fc"}
    by_part, by_layer = measure_change(params, VARIABLES["params"]["backbone"], parts, layers)
    assert by_part["all"]["distance"] == np.sqrt(17)
    assert list(by_layer) == ["head", "fc"]
    assert by_layer["fc"] == {"parameters": 4, "distance": 4.0, "relative": 2.0}
