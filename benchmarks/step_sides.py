"""The two programs that ``benchmarks.step`` times; each answers ``what count`` lines on standard input with JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.side import serve, versions

NUM_CLASSES = 100
LEARNING_RATE = 1e-3


def batch(size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, 224, 224, 3), dtype=np.uint8)
    return {"image": images, "label": rng.integers(0, NUM_CLASSES, size).astype(np.int32)}


MODELS: dict[str, dict[str, Any]] = {  # CLIP's
    "vit_b32": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 32},
    "vit_l14": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14},
}


class Ours:
    """The project's own classifier, partitions and steps."""

    def __init__(self, size: int, model: str = "vit_b32", dtype: str = "float32") -> None:
        from finetune.evaluation.steps import make_eval_step
        from finetune.images.spec import ImageSpec
        from finetune.models.classifier import build_classifier
        from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig

        config = ViTConfig(
            **MODELS[model],
            intermediate_size=4 * MODELS[model]["hidden_size"],
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
            image_size=224,
            patch_bias=False,
            pre_norm=True,
            norm_after_pool=True,
        )
        module = VisionTransformer(config)
        variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        self.spec = ImageSpec(224, 224, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.classifier, self.variables = build_classifier((module, variables), NUM_CLASSES, image_size=224)
        self.host_batch, self.dtype = batch(size), dtype
        self.batch = jax.device_put(self.host_batch)
        self.padded = {**self.batch, "weight": jnp.ones(size)}
        self.eval_step = make_eval_step(self.classifier, self.spec)
        self.steps: dict[str, Any] = {}

    def _step(self, what: str) -> Any:
        from finetune.optim.schedules import StageLength
        from finetune.recipe import TrainStage
        from finetune.training.stage_trainer import StageTrainer

        adam = {"optimizer": "adam", "learning_rate": LEARNING_RATE}
        rest = {"frozen": True} if what == "frozen" else adam
        stage = TrainStage.model_validate(
            {
                "steps": 1000,
                "compute_dtype": self.dtype,
                "partitions": [{"match": "head", **adam}, {"match": "backbone", **rest}],
            }
        )
        self.trainer = StageTrainer(stage, self.classifier, self.variables, self.spec, StageLength(stage.steps or 0))
        return self.trainer.step, self.trainer.init_state(), self.trainer.frozen

    def train(self, count: int, batches: Any = None) -> None:
        """The full step in the trainer's own loop: batches from the host, metrics, logs and the progress bar."""
        from finetune.optim.schedules import StageLength
        from finetune.run.progress import Progress
        from finetune.training.loop import Finished, Logged, fit

        step, state, frozen = self.steps.get("full") or self._step("full")
        total = int(state.step) + count
        self.trainer.length = StageLength(total)
        with Progress(quiet=False) as progress:
            progress.stage("trainer", total, int(state.step))
            for event in fit(self.trainer, state, batches or Batches(self.host_batch), log_every=max(1, count // 2)):
                match event:
                    case Logged():
                        progress.advance(event.step, event.loss, event.accuracy, LEARNING_RATE)
                    case Finished():
                        state = event.state
        jax.block_until_ready(state)
        self.steps = {"full": (step, state, frozen)}

    def run(self, what: str, count: int) -> None:
        if what == "trainer":
            return self.train(count)
        if what == "forward":
            outputs = [self.eval_step(self.variables, self.padded) for _ in range(count)]
            jax.block_until_ready(outputs)
            return None
        if what not in self.steps:
            self.steps = {what: self._step(what)}
        step, state, frozen = self.steps[what]
        for _ in range(count):
            state, _ = step(state, frozen, self.batch)
        jax.block_until_ready(state)
        self.steps[what] = step, state, frozen
        return None

    def peak(self) -> dict[str, Any]:
        """FLOPs of the full step, and the device's peak in its dtype."""
        from finetune.report.devices import peak_of
        from finetune.training.flops import count_flops

        device = jax.local_devices()[0]
        step, state, frozen = self.steps.get("full") or self._step("full")
        traced = step.trace(state, frozen, self.batch)
        lowered = traced.lower()
        peak = peak_of(device.device_kind, device.platform, self.dtype)
        flops = count_flops(traced, lowered, lowered.compile())
        return {"flops": flops, "peak": peak.flops, "device": device.device_kind, "source": peak.source}

    def flops(self) -> dict[str, float]:
        step, state, frozen = self._step("frozen")
        return {
            "forward": _flops(self.eval_step, self.variables, self.padded),
            "frozen": _flops(step, state, frozen, self.batch),
        }


class Batches:
    """The same batch again and again, as a loader gives it."""

    def __init__(self, batch: dict[str, np.ndarray]) -> None:
        self._batch = batch

    def __next__(self) -> dict[str, np.ndarray]:
        return self._batch

    def get_state(self) -> dict[str, Any]:
        return {}


class Guide:
    """Flax's transfer-learning guide: FlaxCLIPModel's vision module, a Dense head, TrainState, multi_transform."""

    def __init__(self, size: int) -> None:
        import flax.linen as nn
        from transformers import CLIPConfig, FlaxCLIPModel

        clip = FlaxCLIPModel(CLIPConfig(), seed=0)
        module, variables = clip.module.bind({"params": clip.params}).vision_model.unbind()

        class Classifier(nn.Module):
            num_classes: int
            backbone: nn.Module

            @nn.compact
            def __call__(self, x: jax.Array) -> jax.Array:
                x = self.backbone(x).pooler_output
                return nn.Dense(self.num_classes, name="head", kernel_init=nn.zeros)(x)

        self.model = Classifier(num_classes=NUM_CLASSES, backbone=module)
        data = batch(size)
        self.batch = jax.device_put({"image": data["image"].astype(np.float32) / 255.0, "label": data["label"]})
        self.params = self.model.init(jax.random.key(0), self.batch["image"][:1])["params"]
        self.params["backbone"] = variables["params"]
        self.forward = jax.jit(lambda params, x: self.model.apply({"params": params}, x))
        self.steps: dict[str, Any] = {}

    def _step(self, what: str) -> Any:
        from flax import traverse_util
        from flax.training import train_state

        optimizers = {
            "trainable": optax.adam(LEARNING_RATE),
            "frozen": optax.set_to_zero() if what == "frozen" else optax.adam(LEARNING_RATE),
        }
        labels = traverse_util.path_aware_map(
            lambda path, v: "frozen" if "backbone" in path else "trainable", self.params
        )
        tx = optax.multi_transform(optimizers, labels)
        state = train_state.TrainState.create(apply_fn=self.model.apply, params=self.params, tx=tx)

        @jax.jit
        def train_step(state: Any, batch: Any) -> Any:
            def loss_fn(params: Any) -> Any:
                logits = state.apply_fn({"params": params}, batch["image"])
                return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

            loss, grads = jax.value_and_grad(loss_fn)(state.params)
            return state.apply_gradients(grads=grads), loss

        return train_step, state

    def run(self, what: str, count: int) -> None:
        if what == "forward":
            jax.block_until_ready([self.forward(self.params, self.batch["image"]) for _ in range(count)])
            return
        if what not in self.steps:
            self.steps = {what: self._step(what)}
        step, state = self.steps[what]
        for _ in range(count):
            state, _ = step(state, self.batch)
        jax.block_until_ready(state)
        self.steps[what] = step, state

    def flops(self) -> dict[str, float]:
        step, state = self._step("frozen")
        return {
            "forward": _flops(self.forward, self.params, self.batch["image"]),
            "frozen": _flops(step, state, self.batch),
        }


def _flops(function: Any, *arguments: Any) -> float:
    return float(function.lower(*arguments).compile().cost_analysis()["flops"])


def main() -> None:
    kind, size, *further = sys.argv[1:]
    kinds: dict[str, Callable[..., Ours | Guide]] = {"finetune": Ours, "guide": Guide}
    side = kinds[kind](int(size), *further)
    names = ("jax", "jaxlib", "flax", "optax", "transformers")
    facts = {"flops": side.flops, "versions": lambda: versions(*names)}
    serve(side.run, facts | ({"peak": side.peak} if isinstance(side, Ours) else {}))


if __name__ == "__main__":
    main()
