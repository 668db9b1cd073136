"""Flax's guide on learning-rate schedules: warm-up, then half a cosine, counted in epochs."""

import json

import jax
import numpy as np
import optax
import pytest
from pydantic import TypeAdapter

import finetune
from finetune.optim.schedules import StageLength, build_schedule
from finetune.recipe import Schedule


def guides_function(base_learning_rate, warmup_epochs, num_epochs, steps_per_epoch):
    warmup_fn = optax.linear_schedule(
        init_value=0.0, end_value=base_learning_rate, transition_steps=warmup_epochs * steps_per_epoch
    )
    cosine_epochs = max(num_epochs - warmup_epochs, 1)
    cosine_fn = optax.cosine_decay_schedule(init_value=base_learning_rate, decay_steps=cosine_epochs * steps_per_epoch)
    return optax.join_schedules([warmup_fn, cosine_fn], boundaries=[warmup_epochs * steps_per_epoch])


@pytest.mark.parametrize(("warmup", "epochs", "steps"), [(2, 10, 37), (1, 3, 5), (5, 100, 4)])
def test_a_schedule_in_epochs_is_the_guides_function_at_every_step(warmup, epochs, steps):
    written = {"name": "cosine", "warmup": {"epochs": warmup}, "warmup_init_factor": 0.0}
    clock = StageLength(epochs * steps, steps_per_epoch=steps)
    ours = build_schedule(TypeAdapter(Schedule).validate_python(written), 0.1, clock)
    guide = guides_function(0.1, warmup, epochs, steps)
    every = np.arange(epochs * steps)
    np.testing.assert_allclose(jax.vmap(ours)(every), jax.vmap(guide)(every), rtol=1e-6, atol=1e-9)
    assert ours(0) == 0
    assert ours(warmup * steps) == np.float32(0.1)


def test_the_metrics_of_a_run_hold_the_guides_rates(tmp_path):
    source = tmp_path / "scheduled.yaml"
    source.write_text(
        """
        backbone: {source: "builtin:tiny-clip"}
        data: {source: digits, shots_per_class: 8, test: 0.1}
        stages:
          - epochs: 5
            batch_size: 16
            partitions:
              - match: head
                learning_rate: 0.01
                schedule: {name: cosine, warmup: {epochs: 2}, warmup_init_factor: 0.0}
              - {match: backbone, frozen: true}
        """,
        encoding="utf-8",
    )
    result = finetune.run(finetune.load_recipe(source), output=tmp_path / "run", quiet=True)
    lines = (result.directory / "metrics.jsonl").read_text().splitlines()
    logged = {
        record["step"]: record["learning_rate"]["head"]
        for record in map(json.loads, lines)
        if "learning_rate" in record
    }
    guide = guides_function(0.01, 2, 5, 5)
    assert sorted(logged) == [5, 10, 15, 20, 25]
    for step, rate in logged.items():  # a step is logged once it is taken: its rate is that of the one before
        np.testing.assert_allclose(rate, guide(step - 1), rtol=1e-5)  # compiled together, cosines round otherwise
