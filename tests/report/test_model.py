import numpy as np

from finetune.report.model import find_values


def test_values_are_found_by_path_with_or_without_the_collection(tiny_clip):
    bias = np.asarray(tiny_clip.variables["params"]["post_layernorm"]["bias"])
    for path in ("params/post_layernorm/bias", "post_layernorm/bias", "/post_layernorm/bias/"):
        (leaf,) = find_values(tiny_clip.variables, path)
        np.testing.assert_array_equal(np.float32(leaf["values"]), bias)
        assert (leaf["shape"], leaf["min"], leaf["max"]) == ([192], float(bias.min()), float(bias.max()))
    assert len(find_values(tiny_clip.variables, "encoder/layers/3")) == 16
