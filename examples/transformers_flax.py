# %% [markdown]
# # The same walk with transformers' FlaxCLIPModel
#
# transformers 4.57 is the last line with Flax classes; `nox -s transformers_flax` makes an environment with it and runs
# this file. Its modules are Linen modules like any other: `extract_submodule` takes the vision model out,
# `build_classifier` puts a head on it, and the toolkit trains it. Beside it stands the toolkit's own CLIP with the same
# weights.
#
#     python examples/transformers_flax.py                                   # tiny-clip, which comes along
#     python examples/transformers_flax.py openai/clip-vit-base-patch32      # a folder, or a hub id

# %%
import sys

import jax
import numpy as np
import transformers
from PIL import Image
from sklearn.datasets import load_digits

import finetune

if not hasattr(transformers, "FlaxCLIPModel"):
    sys.exit(f"transformers {transformers.__version__} has no Flax classes; install transformers 4.57")

# %% [markdown]
# ## A pretrained model, by transformers and by the toolkit
#
# The two parameter trees have the same paths, so that either's weights drop into the other's module. transformers
# leaves half-precision files in half precision; they are widened here.

# %%
ours = finetune.load_clip(sys.argv[1] if len(sys.argv) > 1 else "builtin:tiny-clip")
theirs = transformers.FlaxCLIPModel.from_pretrained(str(ours.folder))
params = theirs.to_fp32(theirs.params)
assert jax.tree.structure(params) == jax.tree.structure(ours.variables["params"])

# %% [markdown]
# ## Its vision model, and a classifier of it

# %%
vision, variables = finetune.extract_submodule(theirs.module, {"params": params}, "vision_model")
spec = ours.image_spec
classifier, variables = finetune.build_classifier((vision, variables), num_classes=10, image_size=spec.height)
images = jax.random.normal(jax.random.key(0), (4, *spec.shape))
own_vision, own_variables = finetune.extract_submodule(ours.module, ours.variables, "vision_model")
features = classifier.apply(variables, images, method="features")
own_features = own_vision.apply(own_variables, images).pooler_output
print(
    f"pooled features differ by {float(np.abs(features - own_features).max()):.1e} from those of the toolkit's module"
)
assert np.allclose(features, own_features, atol=2e-5)

# %% [markdown]
# ## Training its head
#
# Adam at 5e-3 for `trainable`, `set_to_zero` for `frozen`.

# %%
rules = [
    {"match": "head", "name": "trainable", "optimizer": "adam", "learning_rate": 5e-3},
    {"match": "backbone", "frozen": True},
]
stage = finetune.TrainStage(steps=100, batch_size=64, partitions=rules)
trainer = finetune.StageTrainer(stage, classifier, variables, spec, finetune.StageLength(100), seed=0)
state = trainer.init_state()

digits = load_digits()
pixels = np.stack([spec.to_uint8(Image.fromarray((d * 15.9).astype(np.uint8)).convert("RGB")) for d in digits.images])
train, test = np.arange(1000), np.arange(1000, len(pixels))
order = np.random.default_rng(0)
for _ in range(100):
    chosen = order.choice(train, 64, replace=False)
    batch = {"image": pixels[chosen], "label": digits.target[chosen].astype(np.int32)}
    state, metrics = trainer.step(state, trainer.frozen, batch)

# %% [markdown]
# ## What came of it

# %%
trained = trainer.variables(state)
predict = jax.jit(lambda v, x: classifier.apply(v, spec.normalize(x)).argmax(-1))
accuracy = float((predict(trained, pixels[test]) == digits.target[test]).mean())
print(f"test accuracy {accuracy:.4f} on {len(test)} digits, with a frozen {type(vision).__name__}")
