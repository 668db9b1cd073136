import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paths import GOLDENS

from finetune.optim.optimizer import build_optimizer
from finetune.optim.optimizers import build_core
from finetune.recipe import Partition

GOLDEN = np.load(GOLDENS / "optimizers" / "expected.npz")
OURS = {
    "adam": {"optimizer": "adam", "learning_rate": 0.02},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.02},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.05},
    "nesterov": {"optimizer": {"name": "sgd", "nesterov": True}, "learning_rate": 0.05},
}


def network(params, x):
    hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
    return hidden @ params["second"]["kernel"] + params["second"]["bias"]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("name", OURS)
def test_twenty_steps_give_pytorchs_parameters(name, schedule):
    start = [jnp.asarray(GOLDEN[f"start_{i}"].T) for i in range(4)]  # PyTorch's kernels are [out, in]
    params = {"first": {"kernel": start[0], "bias": start[1]}, "second": {"kernel": start[2], "bias": start[3]}}
    rule = {"match": ".*", "weight_decay": 0.05, "weight_decay_on": "all", "schedule": schedule, **OURS[name]}
    optimizer = build_optimizer([rule], params, total_steps=20)

    @jax.jit
    def step(params, state, x, y):
        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(network(params, x), y).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for number in range(20):
        params, state = step(params, state, GOLDEN["images"][number], GOLDEN["labels"][number])
        leaves = [params[layer][leaf] for layer in ("first", "second") for leaf in ("kernel", "bias")]
        for i, leaf in enumerate(leaves):
            np.testing.assert_allclose(leaf, GOLDEN[f"{name}_{schedule}_{i}"][number].T, atol=1e-5)


RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((6, 4)).astype(np.float32)
GRADIENTS = [RNG.standard_normal((6, 4)).astype(np.float32) for _ in range(5)]


def directions(optimizer, decay=0.0, kernel=KERNEL, gradients=GRADIENTS, name="kernel"):
    """What is multiplied by minus the learning rate, step by step, with the parameters held still."""
    core = build_core(parsed(optimizer), decay, lambda tree: jax.tree.map(lambda _: True, tree))
    params, found = {name: jnp.asarray(kernel)}, []
    state = core.init(params)
    for gradient in gradients:
        updates, state = core.update({name: jnp.asarray(gradient)}, state, params)
        found.append(np.asarray(updates[name]))
    return found, state


def parsed(optimizer):
    return Partition.model_validate({"match": ".*", "learning_rate": 1.0, "optimizer": optimizer}).optimizer


def test_lion_takes_the_sign_of_an_interpolated_momentum():
    m = np.zeros_like(KERNEL, dtype=np.float64)
    for found, g in zip(directions("lion", decay=0.1)[0], GRADIENTS, strict=True):
        np.testing.assert_allclose(found, np.sign(0.9 * m + 0.1 * g) + 0.1 * KERNEL, atol=1e-6)
        m = 0.99 * m + 0.01 * g


def test_lamb_is_adam_with_decay_as_long_as_the_parameters():
    m = v = np.zeros_like(KERNEL, dtype=np.float64)
    for number, (found, g) in enumerate(zip(directions("lamb", decay=0.1)[0], GRADIENTS, strict=True), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        update = m / (1 - 0.9**number) / (np.sqrt(v / (1 - 0.999**number)) + 1e-6) + 0.1 * KERNEL
        np.testing.assert_allclose(found, update * np.linalg.norm(KERNEL) / np.linalg.norm(update), rtol=1e-4)


def test_lars_gives_each_gradient_with_its_decay_a_share_of_the_parameters_length():
    momentum = np.zeros_like(KERNEL, dtype=np.float64)
    for found, g in zip(directions("lars", decay=0.1)[0], GRADIENTS, strict=True):
        update = g + 0.1 * KERNEL
        momentum = 0.9 * momentum + 1e-3 * update * np.linalg.norm(KERNEL) / np.linalg.norm(update)
        np.testing.assert_allclose(found, momentum, rtol=1e-4, atol=1e-8)


def test_adafactor_holds_a_row_and_a_column_for_a_kernel_and_bounds_its_updates():
    kernel = RNG.standard_normal((256, 512)).astype(np.float32)
    gradients = [RNG.standard_normal(kernel.shape).astype(np.float32) * 10**i for i in range(3)]
    found, state = directions("adafactor", kernel=kernel, gradients=gradients)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 1000
    assert all(np.sqrt(np.mean(update**2)) < 1.0001 for update in found)
    assert np.mean(np.sign(found[0]) == np.sign(gradients[0])) == 1


def test_muon_orthogonalizes_kernels_to_adams_size_and_gives_other_leaves_adams_update():
    kernel = RNG.standard_normal((24, 16)).astype(np.float32)
    gradient = RNG.standard_normal((24, 16)).astype(np.float32) @ np.diag(np.logspace(0, 1, 16)).astype(np.float32)
    (update,), _ = directions("muon", kernel=kernel, gradients=[gradient])
    singular = np.linalg.svd(update / (0.2 * 24**0.5), compute_uv=False)
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    table = {"kernel": KERNEL, "gradients": GRADIENTS, "name": "embedding"}
    for ours, adam in zip(directions("muon", **table)[0], directions("adamw", **table)[0], strict=True):
        np.testing.assert_allclose(ours, adam, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lion", "adafactor", "lamb", "lars", "muon"])
def test_every_optimizer_reaches_the_minimum_of_a_bowl(name):
    target = {"fc": {"kernel": jnp.asarray(KERNEL), "bias": jnp.ones(4)}}
    params = jax.tree.map(lambda x: x + 0.5, target)
    rate = {"lars": 20.0, "sgd": 0.1, "lamb": 0.02, "muon": 0.1}.get(name, 0.05)
    rule = {"match": ".*", "optimizer": name, "learning_rate": rate, "schedule": "linear"}
    optimizer = build_optimizer([rule], params, total_steps=200)

    @jax.jit
    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.tree.map(lambda p, t: p - t, params, target), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=200)
    distance = optax.tree.norm(jax.tree.map(lambda p, t: p - t, params, target))
    assert distance < 0.1 * optax.tree.norm(jax.tree.map(lambda t: jnp.full_like(t, 0.5), target))
