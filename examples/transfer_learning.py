# %% [markdown]
# # Transfer learning, step by step
#
# The walk of Flax's guide on transfer learning: load a pretrained CLIP, take its vision model out with bind and unbind,
# put a head on it, carry the weights over, freeze all but the head, train. Every step is one public function; a recipe
# does the same from a file (`finetune run quickstart`).
#
#     python examples/transfer_learning.py                                   # tiny-clip, which comes along
#     python examples/transfer_learning.py openai/clip-vit-base-patch32      # any CLIP, from a folder or the hub
#
# Run it as it is, or cell by cell in an editor that knows `# %%`.

# %%
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
from sklearn.datasets import load_digits

import finetune

# %% [markdown]
# ## A pretrained model
#
# `clip.module` is a Linen module of two towers, `clip.variables` its weights. The report says where each tensor of the
# checkpoint went.

# %%
source = sys.argv[1] if len(sys.argv) > 1 else "builtin:tiny-clip"
clip = finetune.load_clip(source)
print(f"{source}: {clip.report.transferred[0][0]} and {len(clip.report.transferred) - 1} more tensors")

# %% [markdown]
# ## Its vision model
#
# `extract_submodule` is `module.bind(variables)`, the attribute, and `.unbind()`: a module and its own variables. It
# computes what it computed inside.

# %%
vision, vision_variables = finetune.extract_submodule(clip.module, clip.variables, "vision_model")
spec = clip.image_spec
images = jax.random.normal(jax.random.key(0), (2, *spec.shape))
inside = clip.module.apply(clip.variables, images, method=lambda model, x: model.vision_model(x).pooler_output)
alone = vision.apply(vision_variables, images).pooler_output
assert np.allclose(inside, alone, atol=1e-6)

# %% [markdown]
# ## A classifier
#
# `backbone` is the vision model, `head` a linear layer of zeros, so that training starts from no opinion. The
# pretrained variables, `params` and any `batch_stats`, are carried over; a leaf that is missing, left over or of
# another shape would be an error.

# %%
classifier, variables = finetune.build_classifier((vision, vision_variables), num_classes=10, image_size=spec.height)
assert set(variables["params"]) == {"backbone", "head"}
assert not np.any(classifier.apply(variables, images))
print(jax.tree.map(jnp.shape, variables["params"]["head"]))

# %% [markdown]
# ## Who learns
#
# Rules over parameter paths; the first that matches decides. `label_params` shows what they do, `build_optimizer` makes
# `optax.multi_transform` of them: Adam for `trainable`, `set_to_zero` for `frozen`.

# %%
rules = [
    {"match": "head", "name": "trainable", "optimizer": "adam", "learning_rate": 5e-3},
    {"match": "backbone", "frozen": True},
]
labels = finetune.label_params(variables["params"], [("head/.*", "trainable"), ("backbone/.*", "frozen")])
assert set(jax.tree.leaves(labels["head"])) == {"trainable"}
assert set(jax.tree.leaves(labels["backbone"])) == {"frozen"}
optimizer = finetune.build_optimizer(rules, variables["params"], total_steps=100)

# %% [markdown]
# ## The guide's step
#
# With that optimizer any step of your own works, over the whole tree.

# %%
state = finetune.TrainState.create(variables["params"], {}, optimizer, jax.random.key(0))


@jax.jit
def guides_step(state, pixels, labels):
    def loss_fn(params):
        logits = classifier.apply({"params": params}, pixels, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), loss


# %% [markdown]
# ## The toolkit's step
#
# The same rules as a stage. Frozen weights are an argument beside the state: no gradients, no optimizer state and no
# copies of them. Images cross to the device as uint8.

# %%
stage = finetune.TrainStage(steps=100, batch_size=64, partitions=rules)
trainer = finetune.StageTrainer(stage, classifier, variables, spec, finetune.StageLength(100), seed=0)
lean = trainer.init_state()
print(
    f"{sum(leaf.size for leaf in jax.tree.leaves(lean.params)):,} of "
    f"{sum(leaf.size for leaf in jax.tree.leaves(variables['params'])):,} values are in its state"
)

# %% [markdown]
# ## StageTrainer, both ways

# %%
digits = load_digits()
pixels = np.stack([spec.to_uint8(Image.fromarray((d * 15.9).astype(np.uint8)).convert("RGB")) for d in digits.images])
train, test = np.arange(1000), np.arange(1000, len(pixels))
order = np.random.default_rng(0)
for step in range(100):
    chosen = order.choice(train, 64, replace=False)
    batch = {"image": pixels[chosen], "label": digits.target[chosen].astype(np.int32)}
    lean, metrics = trainer.step(lean, trainer.frozen, batch)
    if step < 5:
        state, loss = guides_step(state, spec.normalize(batch["image"]), batch["label"])
        assert np.isclose(loss, metrics["loss"] / metrics["count"], rtol=1e-5)
    if step == 4:
        difference = max(
            float(jnp.abs(a - b).max())
            for a, b in zip(*(jax.tree.leaves(s.params["head"]) for s in (state, lean)), strict=True)
        )
        print(f"after 5 steps the two heads differ by {difference:.1e}")

# %% [markdown]
# ## What came of it

# %%
trained = trainer.variables(lean)
backbone_pairs = zip(*(jax.tree.leaves(v["params"]["backbone"]) for v in (variables, trained)), strict=True)
assert all(np.array_equal(a, b) for a, b in backbone_pairs)
predict = jax.jit(lambda v, x: classifier.apply(v, spec.normalize(x)).argmax(-1))
accuracy = float((predict(trained, pixels[test]) == digits.target[test]).mean())
print(f"test accuracy {accuracy:.4f} on {len(test)} digits, with a frozen backbone")
