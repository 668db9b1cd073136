import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from finetune.errors import ModelError, TransferError
from finetune.models.surgery import TransferReport, extract_submodule, transplant

SOURCE = {
    "params": {"conv": {"kernel": np.arange(6.0).reshape(2, 3)}, "norm": {"scale": np.ones(3)}},
    "batch_stats": {"norm": {"mean": np.full(3, 5.0)}},
}


class Stages(nn.Module):
    """Has lists of submodules."""

    def setup(self):
        self.stages = [[nn.Dense(3), nn.BatchNorm(use_running_average=True)], [nn.Dense(2)]]
        self.heads = (nn.Dense(5),)
        self.widths = [3, 2]

    def __call__(self, x):
        for stage in self.stages:
            for part in stage:
                x = part(x)
        return self.heads[0](x)


@pytest.fixture(scope="module")
def stages():
    module = Stages()
    return module, jax.jit(module.init)(jax.random.key(0), jnp.ones((1, 4)))


SHAPES = jax.eval_shape(lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), SOURCE))


def test_a_nested_submodule_comes_out_with_all_its_collections(batch_norm_net):
    module, variables = batch_norm_net
    part, own = extract_submodule(module, variables, "stem.norm")
    x = jax.random.normal(jax.random.key(2), (2, 3, 3, 4))
    mean, var = variables["batch_stats"]["stem"]["norm"].values()
    scale, bias = (variables["params"]["stem"]["norm"][name] for name in ("scale", "bias"))
    assert set(own) == {"params", "batch_stats"}
    assert np.abs(mean).max() > 0.01  # a fresh norm would not do
    expected = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(part.apply(own, x, use_running_average=True), expected, atol=1e-5)


def test_an_extracted_submodule_computes_as_it_did_inside(tiny_clip, images):
    whole = tiny_clip.text
    part, own = extract_submodule(whole.module, whole.variables, "vision_model.encoder")
    shapes = jax.eval_shape(part.init, jax.random.key(0), jnp.zeros((1, 17, 192)))
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, dict(shapes))
    np.testing.assert_array_equal(
        own["params"]["layers"]["0"]["mlp"]["fc1"]["kernel"],
        whole.variables["params"]["vision_model"]["encoder"]["layers"]["0"]["mlp"]["fc1"]["kernel"],
    )


def test_a_number_selects_a_submodule_from_a_list(stages):
    module, variables = stages
    part, own = extract_submodule(module, variables, "heads.0")
    np.testing.assert_array_equal(own["params"]["kernel"], variables["params"]["heads_0"]["kernel"])
    assert part.apply(own, jnp.ones((1, 2))).shape == (1, 5)


def test_a_list_is_not_a_submodule_and_the_error_names_one(stages):
    with pytest.raises(ModelError, match=r"heads: a list of 1 submodules; choose one of them, such as heads\.0"):
        extract_submodule(*stages, "heads")


@pytest.mark.parametrize("name", ["1", "-1", "x", "0.y"])
def test_an_index_that_a_list_does_not_have_is_refused_and_valid_ones_are_listed(stages, name):
    parent, existing = ("heads.0", "none") if "." in name else ("heads", "0")
    with pytest.raises(
        ModelError, match=rf"{parent} has no submodule '{name[-2:].lstrip('.')}'.*; it has: {existing} \("
    ):
        extract_submodule(*stages, f"heads.{name}")


def test_lists_of_modules_are_listed_among_the_submodules_and_other_lists_are_not(stages):
    with pytest.raises(ModelError, match=r"Stages has no submodule 'widths'; it has: heads"):
        extract_submodule(*stages, "widths")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("stemm", r"BatchNormNet has no submodule 'stemm' \(did you mean 'stem'\?\); it has: stem, top"),
        ("stem.conf", r"stem has no submodule 'conf' \(did you mean 'conv'\?\); it has: conv, norm"),
        ("top.kernel", r"top has no submodule 'kernel'; it has: none"),
    ],
)
def test_the_error_about_an_unknown_submodule_lists_the_existing_ones(batch_norm_net, path, message):
    with pytest.raises(ModelError, match=message):
        extract_submodule(*batch_norm_net, path)


def test_every_collection_is_transferred_and_counted():
    result, report = transplant(SOURCE, SHAPES)
    assert len(report.transferred) == 3
    assert (report.fresh, report.unused) == ((), ())
    assert ("batch_stats/norm/mean", "batch_stats/norm/mean") in report.transferred
    np.testing.assert_array_equal(result["batch_stats"]["norm"]["mean"], [5, 5, 5])
    np.testing.assert_array_equal(result["params"]["conv"]["kernel"], SOURCE["params"]["conv"]["kernel"])
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {jnp.dtype("float32")}


def test_into_places_the_source_inside_the_target_and_fresh_leaves_keep_their_values():
    head = {"kernel": jnp.full((3, 2), 7.0)}
    target = {
        "params": {"backbone": SHAPES["params"], "head": head},
        "batch_stats": {"backbone": SHAPES["batch_stats"]},
    }
    result, report = transplant(SOURCE, target, into="backbone", fresh=["params/head/.*"])
    assert report.fresh == ("params/head/kernel",)
    assert ("params/norm/scale", "params/backbone/norm/scale") in report.transferred
    np.testing.assert_array_equal(result["params"]["head"]["kernel"], head["kernel"])
    np.testing.assert_array_equal(result["batch_stats"]["backbone"]["norm"]["mean"], [5, 5, 5])


def test_unused_leaves_are_left_out_and_named():
    target = {"params": SHAPES["params"]}
    result, report = transplant(SOURCE, target, unused=["batch_stats/.*"])
    assert report.unused == ("batch_stats/norm/mean",)
    assert set(flatten_dict(result, sep="/")) == {"params/conv/kernel", "params/norm/scale"}


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ({"params": SOURCE["params"]}, "missing     batch_stats/norm/mean (3,)"),
        ({**SOURCE, "extra": {"a": np.zeros((1, 2))}}, "unexpected  extra/a (1, 2)"),
        ({**SOURCE, "batch_stats": {"norm": {"mean": np.zeros(4)}}}, "shape       batch_stats/norm/mean: (4,) given"),
    ],
)
def test_a_missing_unexpected_or_misshapen_leaf_raises_and_is_named(source, line):
    with pytest.raises(TransferError) as raised:
        transplant(source, SHAPES)
    assert line in str(raised.value)
    assert len(str(raised.value).splitlines()) == 2


def test_all_mismatches_are_reported_together():
    source = {"params": {"conv": {"kernel": np.zeros((2, 4))}, "head": {"bias": np.zeros(2)}}}
    with pytest.raises(TransferError) as raised:
        transplant(source, SHAPES)
    assert str(raised.value).splitlines()[1:] == [
        "  shape       params/conv/kernel: (2, 4) given, (2, 3) needed",
        "  missing     batch_stats/norm/mean (3,)",
        "  missing     params/norm/scale (3,)",
        "  unexpected  params/head/bias (2,)",
    ]


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ({"params": {"module": SOURCE["params"]}}, "no name fits, as if a program had put a prefix before them"),
        ({"params": SOURCE["params"]}, "some are missing"),
    ],
)
def test_the_message_begins_with_the_likeliest_cause(source, cause):
    with pytest.raises(TransferError) as raised:
        transplant(source, SHAPES)
    assert re.search(cause, str(raised.value).splitlines()[0])


def test_a_long_list_of_mismatches_is_cut():
    source = {"params": {f"layer{i}": {"kernel": np.zeros(2)} for i in range(200)}}
    with pytest.raises(TransferError, match="unexpected  and 192 more") as raised:
        transplant(source, SHAPES)
    assert len(str(raised.value).splitlines()) < 20


def test_a_leaf_known_by_its_shape_alone_cannot_stay_fresh():
    with pytest.raises(TransferError, match="missing     batch_stats/norm/mean"):
        transplant({"params": SOURCE["params"]}, SHAPES, fresh=[".*"])


def test_source_leaves_are_reported_by_their_names_in_the_checkpoint():
    names = {("params", "norm", "scale"): "norm.weight"}
    _, report = transplant(SOURCE, SHAPES, names=names)
    assert ("norm.weight", "params/norm/scale") in report.transferred


def test_a_report_prints_its_counts_and_the_leaves_that_were_not_transferred():
    report = TransferReport((("a", "b"), ("c", "d")), ("head/kernel",), ("old",), ("params/positions",))
    assert str(report).splitlines() == [
        "2 tensors transferred, 1 fresh, 1 unused",
        "  fresh   head/kernel",
        "  unused  old",
        "  resized params/positions",
    ]
