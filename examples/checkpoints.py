# %% [markdown]
# # Checkpoints: save, list, restore, continue, keep the best
#
# First in a training loop of your own, then as every run does it. Both write with Orbax: a step is on disk whole or not
# at all, frozen weights are not written, and a state restores on any device.
#
#     python examples/checkpoints.py                 # writes to checkpoints/example
#     python examples/checkpoints.py FOLDER

# %%
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import finetune

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "checkpoints/example")
shutil.rmtree(folder / "loop", ignore_errors=True)

# %% [markdown]
# ## Something to train
#
# A frozen tiny-clip with a head, 40 steps on scikit-learn's digits; each batch is a function of its step.

# %%
backbone = finetune.load_backbone("builtin:tiny-clip")
classifier, variables = finetune.build_classifier(backbone, num_classes=10)
spec = backbone.image_spec
rules = [{"match": "head", "learning_rate": 1e-3}, {"match": ".*", "frozen": True}]
stage = finetune.TrainStage(steps=40, batch_size=64, partitions=rules)
digits = load_digits()
pixels = np.stack([spec.to_uint8(Image.fromarray((d * 15.9).astype(np.uint8)).convert("RGB")) for d in digits.images])
test = slice(1000, None)
predict = jax.jit(lambda v, x: classifier.apply(v, spec.normalize(x)).argmax(-1))


def batch_at(step):
    chosen = np.random.default_rng(step).choice(1000, 64, replace=False)
    return {"image": pixels[chosen], "label": digits.target[chosen].astype(np.int32)}


def accuracy(variables):
    return float((predict(variables, pixels[test]) == digits.target[test]).mean())


def prepare():
    return finetune.StageTrainer(stage, classifier, variables, spec, finetune.StageLength(40), seed=0)


# %% [markdown]
# ## Save
#
# Every ten steps, what a step needs to go on from there: the trainable parameters, and the optimizer's state, step and
# random key with them. `score` is what the best is chosen by.


# %%
def train(trainer, state, checkpoints, until):
    while int(state.step) < until:
        state, _ = trainer.step(state, trainer.frozen, batch_at(int(state.step)))
        if (step := int(state.step)) % 10 == 0:
            now = trainer.variables(state)
            changed = {"params": {"head": now["params"]["head"]}}
            score = accuracy(now)
            checkpoints.save(step, changed, trainer.resumable(state), {"accuracy": score}, score)
    return state


trainer = prepare()
with finetune.RunCheckpoints(folder / "loop") as checkpoints:
    train(trainer, trainer.init_state(), checkpoints, until=30)
    checkpoints.wait()  # saving goes on in the background where the device has memory of its own

# %% [markdown]
# ## List, and keep the best
#
# The newest step is kept, and the best.

# %%
with finetune.RunCheckpoints(folder / "loop", read_only=True) as checkpoints:
    saved = {step: checkpoints.progress(step)["accuracy"] for step in checkpoints.steps()}
    best = max(saved, key=saved.__getitem__)
    print(f"saved steps and their accuracies: {saved}; best: {best}")
    restored = finetune.merge(variables, checkpoints.variables(best))
assert accuracy(restored) == saved[best]

# %% [markdown]
# ## Restore, and continue
#
# A new process would do just this. The last ten steps from disk are bit for bit those of a training that was never
# interrupted.

# %%
with finetune.RunCheckpoints(folder / "loop") as checkpoints:
    newest = checkpoints.steps()[-1]
    variables_then = finetune.merge(variables, checkpoints.variables(newest))
    resumed = finetune.StageTrainer(stage, classifier, variables_then, spec, finetune.StageLength(40), seed=0)
    fresh = resumed.init_state()
    state = resumed.resume(fresh, checkpoints.state(newest, resumed.resumable(fresh)))
    state = train(resumed, state, checkpoints, until=40)

straight = prepare()
unbroken = straight.init_state()
for step in range(40):
    unbroken, _ = straight.step(unbroken, straight.frozen, batch_at(step))
same = jax.tree.map(lambda a, b: bool((a == b).all()), state.params, unbroken.params)
print(f"continued from step {newest} to {int(state.step)}; equal to an unbroken training: {all(jax.tree.leaves(same))}")
assert all(jax.tree.leaves(same))

# %% [markdown]
# ## The same by recipe
#
# A run saves after every epoch and when it is told to stop (Ctrl-C, SIGTERM); `resume=True` (`--resume`) goes on from
# the newest state, and does nothing where the run is finished. `restore` takes the best model, the last state, or any
# step that is there; the folder `model/` is all that a server needs.

# %%
overrides = ["~stages.0", "stages.0.epochs=4", "data.validation=0.2", "~data.shots_per_class"]
recipe = finetune.load_recipe("quickstart", overrides)
result = finetune.run(recipe, output=folder / "run", resume=(folder / "run").exists(), quiet=True)
with finetune.RunCheckpoints(folder / "run" / "state", read_only=True) as checkpoints:
    print(f"states of the run: {checkpoints.steps()}")
for step in ("best", "last"):
    predictor = finetune.restore(folder / "run", step=step)
    print(f"{step}: {np.mean(predictor.predict_proba(list(pixels[test])).argmax(1) == digits.target[test]):.4f}")
shutil.copytree(folder / "run" / "model", folder / "served", dirs_exist_ok=True)
print(finetune.restore(folder / "served").predict([pixels[0]])[0].label)
