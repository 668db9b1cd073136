import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from finetune.distributed.sharding import SMALLEST, Placement
from finetune.errors import MeshError
from finetune.optim.optimizer import build_optimizer


def placement(data=1, fsdp=1, tensor=1, rules=None):
    mesh = AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    return Placement(mesh, rules)


def specs(tree, **options):
    return jax.tree.map(lambda place: place.spec, placement(**options).shardings(tree))


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_fsdp_divides_the_largest_axis_that_divides():
    assert specs({"kernel": shape(3, 32, 64)}, fsdp=8) == {"kernel": PartitionSpec(None, None, "fsdp")}
    assert specs({"kernel": shape(64, 100)}, fsdp=8) == {"kernel": PartitionSpec("fsdp", None)}
    assert specs({"kernel": shape(63, 101)}, fsdp=8) == {"kernel": PartitionSpec(None, None)}


def test_small_leaves_are_in_every_device():
    assert specs({"scale": shape(SMALLEST - 8)}, fsdp=8) == {"scale": PartitionSpec(None)}
    assert specs({"scale": shape(SMALLEST)}, fsdp=8) == {"scale": PartitionSpec("fsdp")}


def test_data_divides_no_parameter():
    assert specs({"kernel": shape(512, 512)}, data=8) == {"kernel": PartitionSpec(None, None)}


def test_tensor_divides_the_outputs_of_the_first_layers_and_the_inputs_of_the_last():
    block = {
        "self_attn": {name: {"kernel": shape(64, 64), "bias": shape(64)} for name in ("q_proj", "out_proj")},
        "mlp": {name: {"kernel": shape(64, 64)} for name in ("fc1", "fc2")},
        "layer_norm1": {"scale": shape(64)},
    }
    found = specs(block, tensor=2)
    assert found["self_attn"]["q_proj"] == {"kernel": PartitionSpec(None, "tensor"), "bias": PartitionSpec("tensor")}
    assert found["self_attn"]["out_proj"] == {"kernel": PartitionSpec("tensor", None), "bias": PartitionSpec(None)}
    assert found["mlp"]["fc1"]["kernel"] == PartitionSpec(None, "tensor")
    assert found["mlp"]["fc2"]["kernel"] == PartitionSpec("tensor", None)
    assert found["layer_norm1"]["scale"] == PartitionSpec(None)


def test_fsdp_takes_an_axis_that_tensor_leaves():
    assert specs({"fc1": {"kernel": shape(64, 256)}}, fsdp=2, tensor=2)["fc1"]["kernel"] == PartitionSpec(
        "fsdp", "tensor"
    )


def test_moments_are_divided_as_their_parameters():
    params = {"backbone": {"fc1": {"kernel": shape(64, 256)}}, "head": {"kernel": shape(256, 10)}}
    rules = [{"match": ".*", "learning_rate": 1e-3}]
    optimizer = build_optimizer(rules, params, total_steps=10)
    state = jax.eval_shape(optimizer.init, params)
    place = placement(fsdp=2, tensor=2)
    wanted = jax.tree.leaves(place.shardings(params))
    of_moments = [s for s in jax.tree.leaves(place.shardings(state)) if s.spec != PartitionSpec()]
    assert of_moments == [*wanted, *wanted]


def test_a_rule_comes_before_all_else_also_for_what_follows_the_parameter():
    rules = {".*/fc1/kernel": ["tensor", None]}
    params = {"backbone": {"fc1": {"kernel": shape(64, 64)}}}
    moments = jax.eval_shape(optax.trace(0.9).init, params)
    for tree in (params, {"params": params}, {"average": params}, moments):
        assert jax.tree.leaves(specs(tree, tensor=2, rules=rules)) == [PartitionSpec("tensor", None)]


PARAMS = {"backbone": {"kernel": shape(6, 64)}}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"backbone/bias": ["fsdp"]}, "'backbone/bias' takes no parameter; paths look like backbone/kernel"),
        ({"backbone/kernel": ["fsdp"]}, "has 1 axes, and backbone/kernel has 2"),
        ({"backbone/kernel": ["fsdp", None]}, "does not divide along fsdp among 4 devices"),
    ],
)
def test_a_rule_that_does_not_fit_is_an_error(rule, words):
    with pytest.raises(MeshError, match=words):
        placement(fsdp=4, rules=rule).check_rules(PARAMS)


def test_a_batch_that_does_not_divide_is_an_error_that_names_the_nearest():
    placement(data=4, fsdp=2, tensor=2).check_batch("batch_size", 32)
    with pytest.raises(MeshError, match=r"batch_size: 30 does not divide among 8 devices; choose 24 or 32"):
        placement(data=4, fsdp=2).check_batch("batch_size", 30)
    with pytest.raises(MeshError, match=r"24 does not divide among 8 devices in 2 parts .*; choose 16 or 32"):
        placement(data=8).check_batch("batch_size", 24, parts=2)
