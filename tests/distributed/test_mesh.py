import jax
import pytest
from pydantic import ValidationError

from finetune.distributed import mesh as meshes
from finetune.distributed.mesh import make_mesh, mesh_for
from finetune.errors import MeshError
from finetune.recipe.mesh import MeshConfig

EIGHT = [object()] * 8


def test_by_default_all_devices_are_along_data():
    assert dict(make_mesh().shape) == {"data": jax.device_count(), "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "filled"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 2}, (4, 2, 1)),
        ({"data": 1, "fsdp": -1}, (1, 8, 1)),
        ({"data": 2, "tensor": 4}, (2, 1, 4)),
    ],
)
def test_minus_one_takes_what_the_others_leave(sizes, filled):
    assert meshes._fill(MeshConfig(**sizes), 8) == filled


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"fsdp": 3}, "mesh: fsdp 3 x tensor 1 does not divide 8, and there are 8 devices"),
        ({"data": 4}, "mesh: data 4 x fsdp 1 x tensor 1 is 4, and there are 8 devices"),
        ({"data": 16}, "is 16, and there are 8 devices"),
        ({"data": 0}, "mesh: .*a number of devices, or -1"),
        ({"fsdp": -1}, "cannot both take what is left"),
        ({"model": 2}, "mesh: "),
    ],
)
def test_a_mesh_that_does_not_take_all_devices_is_an_error(sizes, words):
    with pytest.raises(MeshError, match=words):
        make_mesh(sizes, EIGHT)


def test_a_rule_along_an_axis_of_one_device_has_no_effect():
    with pytest.raises(ValidationError, match="has no effect along tensor, which has one device"):
        MeshConfig(fsdp=2, rules={".*": ["tensor"]})


def test_devices_are_left_out_where_a_batch_does_not_divide(monkeypatch):
    made = []
    monkeypatch.setattr(meshes, "make_mesh", lambda config=None, devices=None: made.append(devices))
    monkeypatch.setattr(jax, "devices", lambda: EIGHT)
    assert mesh_for({"stages.0.batch_size": 32})[1] is None
    _, line = mesh_for({"stages.0.batch_size": 32, "stages.1.batch_size": 50})
    assert line.startswith("2 of 8 devices are used: stages.1.batch_size: 50 does not divide among 8 devices")
    assert len(made[1]) == 2
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(MeshError, match="stages.1.batch_size: 50 does not divide among 8 devices of 2 processes"):
        mesh_for({"stages.1.batch_size": 50})
