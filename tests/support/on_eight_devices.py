"""Trains, saves and restores on meshes of eight simulated devices; prints what came of it as JSON.

A program of its own, as the number of devices is fixed when JAX starts. The argument is a folder to write to.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import numpy as np

import finetune
from finetune.checkpoint import RunCheckpoints
from finetune.distributed.mesh import make_mesh
from finetune.distributed.sharding import Placement
from finetune.models.build import attach_head, open_backbone
from finetune.optim.schedules import StageLength
from finetune.recipe import TrainStage
from finetune.training.heads.linear_probe import fit_linear_probe
from finetune.training.stage_trainer import StageTrainer
from finetune.trees import flatten, hash_tree

STEPS, BATCH = 20, 32
MESHES = {
    "data 8": {},
    "fsdp 8": {"data": 1, "fsdp": 8},
    "data 4 x tensor 2": {"tensor": 2},
}


def one_device():
    return make_mesh(devices=jax.devices()[:1])


def transformer():
    """With dropout, stochastic depth, accumulation and mixup."""
    backbone = finetune.load_backbone("builtin:tiny-clip")
    config = replace(backbone.module.config, dropout=0.1, drop_path_rate=0.1, num_hidden_layers=2)
    params = {**backbone.variables["params"], "encoder": {"layers": {}}}
    params["encoder"]["layers"] = {i: backbone.variables["params"]["encoder"]["layers"][i] for i in "01"}
    backbone = replace(backbone, module=backbone.module.clone(config=config), variables={"params": params})
    classifier, variables = finetune.build_classifier(backbone, 10)
    rule = {"match": ".*", "learning_rate": 1e-3}
    options = {"grad_accum_steps": 2, "mixup": 0.2, "clip_grad_norm": 1.0, "ema_decay": 0.9}
    return classifier, variables, backbone.image_spec, stage([rule], **options)


def frozen_transformer():
    """The last block trains, with adapters in the others, from bfloat16 weights that are frozen."""
    classifier, variables, spec, _ = transformer()
    rules = [
        {"match": "head", "learning_rate": 1e-3},
        {"match": "blocks[-1]", "learning_rate": 1e-3},
        {"match": "backbone/.*/(q|v)_proj/kernel", "learning_rate": 1e-3, "lora": {"rank": 4}},
        {"match": ".*", "frozen": True},
    ]
    return classifier, variables, spec, stage(rules, frozen_dtype="bfloat16")


def batch_norm():
    recipe = finetune.load_recipe("lenet_batchnorm")
    backbone = open_backbone(recipe.backbone, seed=0)
    classifier, variables = attach_head(backbone, recipe.head, 10, seed=0)
    rule = {"match": ".*", "optimizer": "sgd", "learning_rate": 0.1}
    return classifier, variables, backbone.image_spec, stage([rule])


def stage(rules, **options):
    return TrainStage.model_validate({"steps": STEPS, "batch_size": BATCH, "partitions": rules, **options})


def batches(spec):
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        images = rng.integers(0, 256, (BATCH, *spec.shape), dtype=np.uint8)
        yield {"image": images, "label": rng.integers(0, 10, BATCH).astype(np.int32)}


def trainer_of(case, mesh):
    classifier, variables, spec, stage = case
    return StageTrainer(stage, classifier, variables, spec, StageLength(STEPS), placement=Placement(mesh))


def train(case, mesh):
    trainer = trainer_of(case, mesh)
    state, losses = trainer.init_state(), []
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    for batch in batches(case[2]):
        state, metrics = trainer.step(state, trainer.frozen, trainer.placement.put_batch(batch))
        losses.append(float(metrics["loss"]) / float(metrics["count"]))
    after = jax.tree.map(lambda leaf, place: leaf.sharding.is_equivalent_to(place, leaf.ndim), state, places)
    share = share_of_a_device((state.params, state.opt_state), mesh)
    frozen = share_of_a_device(trainer.frozen, mesh)
    return {"losses": losses, "share": share, "frozen_share": frozen, "stays": all(jax.tree.leaves(after))}


def share_of_a_device(tree, mesh):
    """The largest part of the bytes that one device has."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    total = sum(leaf.nbytes for leaf in leaves)
    on = dict.fromkeys(mesh.devices.flat, 0)
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            on[shard.device] += shard.data.nbytes
    return max(on.values()) / total if total else 0.0


def compare(case, chosen):
    result = {"one": train(case, one_device())}
    return result | {name: train(case, make_mesh(MESHES[name])) for name in chosen}


def restore_everywhere(folder):
    """What each mesh saves, restored on every mesh: whether all is equal, and in the places of the mesh."""
    case, equal = transformer(), {}
    all_meshes = {"one": one_device(), "2 x 4": make_mesh({"fsdp": 4}), "fsdp 8": make_mesh(MESHES["fsdp 8"])}
    for name in all_meshes:
        trainer = trainer_of(case, all_meshes[name])
        state = trainer.init_state()
        with RunCheckpoints(folder / name, placement=trainer.placement) as checkpoints:
            checkpoints.save(1, trainer.variables(state), trainer.resumable(state), {})
        for other, mesh in all_meshes.items():
            placement = Placement(mesh)
            fresh = trainer_of(case, mesh)
            like = fresh.resumable(fresh.init_state())
            with RunCheckpoints(folder / name, read_only=True, placement=placement) as checkpoints:
                variables, restored = checkpoints.variables(1), checkpoints.state(1, like)
            same = hash_tree(variables) == hash_tree(trainer.variables(state))
            pairs = zip(jax.tree.leaves(restored), jax.tree.leaves(trainer.resumable(state)), strict=True)
            same &= all(np.array_equal(a, b) for a, b in pairs)
            wanted = placement.shardings(restored)
            placed = jax.tree.map(
                lambda leaf, place: leaf.sharding.is_equivalent_to(place, leaf.ndim), restored, wanted
            )
            equal[f"{name} -> {other}"] = bool(same), mesh.size == 1 or all(jax.tree.leaves(placed))
    return equal


def probe():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, 203)
    features = rng.normal(size=(203, 16)).astype(np.float32) + np.eye(5, 16, dtype=np.float32)[labels]
    fits = [fit_linear_probe(features, labels, 5, placement=Placement(mesh)) for mesh in (one_device(), make_mesh())]
    return {"l2": [fit.l2 for fit in fits], "largest": float(np.abs(fits[0].kernel - fits[1].kernel).max())}


def predictor(folder):
    """A run on all devices, and its model on one, on all, and in parts."""
    from finetune.export.bundle import load_bundle
    from finetune.inference.predictor import Predictor

    recipe = finetune.load_recipe(folder / "recipe.yaml")
    run = finetune.run(recipe, output=folder / "run", quiet=True)
    images = np.random.default_rng(2).integers(0, 256, (11, 8, 8, 3), dtype=np.uint8)
    bundle = load_bundle(folder / "run" / "model")
    one = Predictor(bundle, Placement(one_device())).predict_proba(images)
    parts = finetune.restore(folder / "run", mesh=make_mesh({"data": 2, "fsdp": 4}))
    kernel = flatten(parts.variables["params"])["backbone/encoder/layers/0/mlp/fc1/kernel"]
    return {
        "devices": len(run.predictor().variables["params"]["head"]["bias"].sharding.device_set),
        "largest": [float(np.abs(other.predict_proba(images) - one).max()) for other in (run.predictor(), parts)],
        "shard": list(kernel.addressable_shards[0].data.shape),
        "results": run.summary["results"],
        "frozen_unchanged": run.summary["frozen_unchanged"],
    }


if __name__ == "__main__":
    home = Path(sys.argv[1])
    print(
        json.dumps(
            {
                "transformer": compare(transformer(), MESHES),
                "frozen": compare(frozen_transformer(), {"fsdp 8"}),
                "batch_norm": compare(batch_norm(), {"data 8"}),
                "restored": restore_everywhere(home / "states"),
                "probe": probe(),
                "predictor": predictor(home),
            }
        )
    )
