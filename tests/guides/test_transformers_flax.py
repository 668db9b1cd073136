"""The walk with transformers 4.57's Flax classes; ``nox -s transformers_flax`` makes an environment."""

import re

import pytest
import transformers

pytestmark = pytest.mark.skipif(
    not transformers.__version__.startswith("4.5"), reason="needs transformers 4.57, which still has Flax classes"
)


def test_the_example_runs_as_it_says(run_example):
    out = run_example("transformers_flax.py")
    assert float(re.search(r"pooled features differ by ([-+.\de]+)", out)[1]) <= 2e-5
    assert float(re.search(r"test accuracy ([-+.\de]+)", out)[1]) > 0.95
    assert "frozen FlaxCLIPVisionTransformer" in out
