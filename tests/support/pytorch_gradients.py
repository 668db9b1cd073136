"""Gradients of a backbone's parameters, beside those that PyTorch gave for a golden."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from finetune.models.backbone import load_backbone
from finetune.models.pretrained import find_reader
from finetune.weights.layout import open_checkpoint
from finetune.weights.names import apply_table


def gradient_errors(golden: Path) -> dict[str, float]:
    """Path of each parameter -> largest error of its gradient, relative to the gradient's largest magnitude.

    The gradients are those of the mean square of the pooled features, in evaluation mode. A golden has that ``loss``
    and, for each parameter, ``grad/<name>``, which becomes a leaf as its parameter does.
    """
    expected = np.load(golden / "expected.npz")
    backbone, checkpoint = load_backbone(golden), open_checkpoint(golden)
    _, reader = find_reader(checkpoint)
    rows = reader.read(checkpoint.config, checkpoint.tensors.keys()).names
    tensors = {key.removeprefix("grad/"): expected[key] for key in expected if key.startswith("grad/")}
    theirs = {"/".join(path[1:]): np.asarray(leaf) for path, leaf in apply_table(tensors, rows).leaves.items()}

    def loss_fn(params):
        pooled = backbone.module.apply({**backbone.variables, "params": params}, expected["pixel_values"]).pooler_output
        return jnp.square(pooled).mean()

    loss, gradients = jax.jit(jax.value_and_grad(loss_fn))(backbone.variables["params"])
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-5)
    ours = flatten_dict(gradients, sep="/")
    assert ours.keys() == theirs.keys()
    return {path: float(np.abs(ours[path] - theirs[path]).max() / np.abs(theirs[path]).max()) for path in ours}
