"""Pretrains tiny-clip from nothing on pictures that draw.py makes, and writes this folder's weights.

    python checkpoints/tiny-clip/pretrain.py            # about an hour on 2 CPU cores

The objective is CLIP's, with one change: a caption counts as a match for every picture of the batch that it describes,
not only for its own ("the digit seven" is true of every seven). Encoder kernels learn by Muon, the rest by AdamW.
scikit-learn's handwritten digits are looked at for the log only; nothing is chosen or trained by them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from draw import SIZE, draw_many
from flax.traverse_util import flatten_dict, path_aware_map
from PIL import Image
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPConfig

from finetune.models.families.clip import CLIPModule, from_transformers

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
LENGTH = 24
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--pictures", type=int, default=300_000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()

    images, captions, shows, says = draw_set(args.pictures, args.seed)
    tokenizer = train_tokenizer(captions)
    input_ids = np.array([e.ids for e in tokenizer.encode_batch(captions)], np.int32)
    input_ids = input_ids[:, : int((input_ids != tokenizer.token_to_id(EOS)).sum(1).max()) + 1]
    config = configuration(tokenizer)
    module = CLIPModule(from_transformers(config))
    params = module.init(jax.random.key(args.seed), input_ids[:1], np.zeros((1, SIZE, SIZE, 3), np.float32))["params"]
    print(f"{sum(p.size for p in jax.tree.leaves(params)):,} parameters, {len(set(captions)):,} captions", flush=True)
    optimizer = build_optimizer(args.learning_rate, args.steps)
    opt_state = optimizer.init(params)
    train_step = make_train_step(module, optimizer)
    zero_shot = make_zero_shot(module, tokenizer)

    rng, order, start = np.random.default_rng(args.seed), np.empty(0, int), time.time()
    for step in range(args.steps):
        if len(order) < args.batch_size:
            order = rng.permutation(len(images))
        batch, order = np.split(order, [args.batch_size])
        params, opt_state, loss = train_step(
            params, opt_state, images[batch], input_ids[batch], shows[batch], says[batch]
        )
        if step % 100 == 99:
            rate = (step + 1) * args.batch_size / (time.time() - start)
            print(f"step {step + 1} loss {loss:.3f} zero-shot {zero_shot(params):.4f} {rate:.0f} images/s", flush=True)
    save(args.output, config, params, tokenizer)


def draw_set(count: int, seed: int, chunk: int = 5_000) -> tuple[np.ndarray, list[str], np.ndarray, np.ndarray]:
    """``count`` pictures, drawn by one process a core."""
    jobs = [(seed * 1_000_000 + i, min(chunk, count - i * chunk)) for i in range(-(-count // chunk))]
    with multiprocessing.get_context("spawn").Pool() as pool:
        pictures = [picture for part in pool.starmap(draw_many, jobs) for picture in part]
    return (
        np.stack([p.image for p in pictures]),
        [p.caption for p in pictures],
        np.array([p.shows for p in pictures], np.int32),
        np.array([p.says for p in pictures], np.int32),
    )


def train_tokenizer(captions: list[str]) -> Tokenizer:
    """A byte-pair tokenizer in CLIP's manner: lower case, word ends marked, framed and padded by special tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token=EOS, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    alphabet = [chr(c) for c in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=[BOS, EOS], initial_alphabet=alphabet, end_of_word_suffix="</w>"
    )
    tokenizer.train_from_iterator(sorted(set(captions)), trainer)
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, bos), (EOS, eos)]
    )
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(pad_id=eos, pad_token=EOS, length=LENGTH)
    return tokenizer


def configuration(tokenizer: Tokenizer) -> CLIPConfig:
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    return CLIPConfig(
        projection_dim=64,
        vision_config={
            "image_size": SIZE,
            "patch_size": 8,
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "projection_dim": 64,
        },
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": LENGTH,
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "projection_dim": 64,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": eos,
        },
    )


def build_optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Muon (Jordan 2024; scaled as in arXiv:2502.16982) on the encoders' kernels, AdamW on all other parameters."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, 200, steps)
    muon = optax.contrib.muon(schedule, weight_decay=0.05, consistent_rms=0.2)
    adamw = optax.adamw(
        schedule, b2=0.98, weight_decay=0.05, mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)
    )

    def label(path: tuple[str, ...], leaf: jax.Array) -> str:
        return "muon" if leaf.ndim == 2 and "layers" in path else "adamw"

    partitions = optax.multi_transform({"muon": muon, "adamw": adamw}, lambda tree: path_aware_map(label, tree))
    return optax.chain(optax.clip_by_global_norm(1.0), partitions)


def normalize(images: jax.Array) -> jax.Array:
    return (images.astype(jnp.float32) / 255.0 - jnp.array(MEAN)) / jnp.array(STD)


def make_train_step(module: CLIPModule, optimizer: optax.GradientTransformation):
    def loss_fn(params, images, input_ids, shows, says):
        logits = module.apply({"params": params}, input_ids, normalize(images)).logits_per_image
        match = ((says == -1) | (says == shows[:, None])).all(-1)  # [image, caption]

        def cross_entropy(logits, match):
            target = match / match.sum(-1, keepdims=True)
            return optax.softmax_cross_entropy(logits, target).mean()

        return 0.5 * (cross_entropy(logits, match) + cross_entropy(logits.T, match.T))

    def step(params, opt_state, *batch):
        loss, gradients = jax.value_and_grad(loss_fn)(params, *batch)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        params["logit_scale"] = jnp.clip(params["logit_scale"], 0.0, jnp.log(100.0))
        return params, opt_state, loss

    return jax.jit(step, donate_argnums=(0, 1))


def make_zero_shot(module: CLIPModule, tokenizer: Tokenizer):
    """Accuracy on all of scikit-learn's digits with one template, for the log."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    resized = [Image.fromarray(g).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC) for g in grey]
    images = np.stack([np.asarray(image) for image in resized])
    prompts = np.array([e.ids for e in tokenizer.encode_batch([f"a photo of the digit {d}" for d in range(10)])])

    @jax.jit
    def predict(params):
        return module.apply({"params": params}, prompts, normalize(images)).logits_per_image.argmax(-1)

    return lambda params: float((np.asarray(predict(params)) == digits.target).mean())


def save(folder: Path, config: CLIPConfig, params: dict, tokenizer: Tokenizer) -> None:
    """Writes the folder in transformers' layout, weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path, leaf in flatten_dict(params, sep=".").items():
        array = np.asarray(leaf)
        if path.endswith(".kernel"):
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        name = re.sub(r"\.(kernel|scale|embedding)$", ".weight", path)
        tensors[name] = array.astype(np.float16, order="C")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures, config.dtype = ["CLIPModel"], "float16"
    (folder / "config.json").write_text(config.to_json_string())
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "unk_token": EOS,
        "model_max_length": LENGTH,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": SIZE},
        "do_center_crop": True,
        "crop_size": {"height": SIZE, "width": SIZE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


if __name__ == "__main__":
    main()
