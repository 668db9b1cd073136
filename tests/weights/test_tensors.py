import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune.errors import ModelError
from finetune.weights import tensors
from finetune.weights.tensors import LazyArray, TensorFolder, require_finite

VALUES = np.array([[0.0, 1.5, -2.25], [3.0, 1e-3, 65280.0]], np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16, np.int64])
def test_every_dtype_comes_back_as_it_was_saved(tmp_path, dtype):
    saved = VALUES.astype(dtype)
    save_file({"a": saved}, tmp_path / "model.safetensors")
    read = np.asarray(TensorFolder(tmp_path)["a"])
    assert read.dtype == saved.dtype
    np.testing.assert_array_equal(read, saved)


def test_bfloat16_is_read_before_anything_else_taught_numpy_its_name(tmp_path):
    save_file({"a": VALUES.astype(ml_dtypes.bfloat16)}, tmp_path / "model.safetensors")
    code = "import sys, pathlib; from finetune.weights.tensors import TensorFolder as T; "
    code += "a = T(pathlib.Path(sys.argv[1]))['a'].read(); print(a.astype('float32').tolist(), 'jax' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True).stdout
    assert answer.strip() == f"{VALUES.astype(ml_dtypes.bfloat16).astype(np.float32).tolist()} False"


def test_a_dtype_that_numpy_lacks_is_named(tmp_path):
    save_file({"a": VALUES.astype(ml_dtypes.float8_e5m2)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"model.safetensors: tensor 'a' is stored as F8_E5M2, which is quantized"):
        np.asarray(TensorFolder(tmp_path)["a"])


def test_shards_read_as_one_mapping(tmp_path):
    saved = {f"t{i}": np.full((2, i + 1), i, np.float32) for i in range(5)}
    home = {name: f"model-0000{1 + int(name[1]) // 3}-of-00002.safetensors" for name in saved}
    for file in set(home.values()):
        save_file({name: saved[name] for name in saved if home[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": home}))
    folder = TensorFolder(tmp_path)
    assert len(folder) == 5
    assert set(folder) == set(saved)
    for name, tensor in saved.items():
        np.testing.assert_array_equal(folder[name], tensor)


@pytest.mark.parametrize(
    "text", ["[1", "[1]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}']
)
def test_a_broken_index_is_named(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"index.json: not a safetensors index, which has a 'weight_map'"):
        TensorFolder(tmp_path)


def test_an_index_that_names_no_files_is_refused(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(ModelError, match="index.json: not a safetensors index"):
        TensorFolder(tmp_path)


def test_a_folder_without_weights_says_what_is_expected(tmp_path):
    with pytest.raises(ModelError, match=rf"{tmp_path.name}: no weights; expected model.safetensors"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "flax_model.msgpack", "model.ckpt"])
def test_formats_that_can_hold_code_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(ModelError, match=rf"has {name} but no safetensors; pickled weights can run code"):
        TensorFolder(tmp_path)


def test_shapes_are_known_before_a_tensor_is_read_and_each_use_reads_it_anew():
    reads = []
    lazy = LazyArray((2, 3), lambda: (reads.append(1), VALUES)[1])
    assert lazy.shape == (2, 3)
    assert reads == []
    np.testing.assert_array_equal(np.asarray(lazy), VALUES)
    assert np.asarray(lazy, np.float16).dtype == np.float16
    assert len(reads) == 2


def test_reading_names_and_shapes_reads_no_tensor(tmp_path, monkeypatch):
    save_file({"a": VALUES, "b": VALUES.T.copy()}, tmp_path / "model.safetensors")
    monkeypatch.setattr(tensors._File, "read", lambda file, name: pytest.fail(f"{name} was read"))
    assert {name: lazy.shape for name, lazy in TensorFolder(tmp_path).items()} == {"a": (2, 3), "b": (3, 2)}


def test_a_file_is_opened_anew_after_so_many_bytes_and_the_values_stay_right(tmp_path, monkeypatch):
    saved = {f"t{i}": np.full(100, i, np.float32) for i in range(6)}  # 400 bytes each
    save_file(saved, tmp_path / "model.safetensors")
    opened, open_file = [], tensors._open
    monkeypatch.setattr(tensors, "_open", lambda path: (opened.append(path), open_file(path))[1])
    monkeypatch.setattr(tensors, "_REOPEN_AFTER", 700)
    folder = TensorFolder(tmp_path)
    assert len(opened) == 1
    early = np.asarray(folder["t5"])
    for name, array in saved.items():
        np.testing.assert_array_equal(folder[name], array)
    assert len(opened) == 4  # seven reads, two to a handle
    np.testing.assert_array_equal(early, saved["t5"])  # what was read outlives the handle it came from


def test_a_file_that_vanished_before_it_is_opened_anew_is_named(tmp_path, monkeypatch):
    save_file({"a": VALUES}, tmp_path / "model.safetensors")
    monkeypatch.setattr(tensors, "_REOPEN_AFTER", 0)
    folder = TensorFolder(tmp_path)
    np.testing.assert_array_equal(folder["a"], VALUES)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        np.asarray(folder["a"])


def header_of(file, header, length=None, data=b"\0" * 24):
    content = json.dumps(header).encode() if isinstance(header, dict) else header
    file.write_bytes((len(content) if length is None else length).to_bytes(8, "little") + content + data)


ONE = '"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'


@pytest.mark.parametrize(
    ("header", "length", "message"),
    [
        (b"{}", 2**63, "its header claims 9,223,372,036,854,775,808 bytes"),
        (b"", 0, "its header claims 0 bytes"),
        (b"[" * 100, None, "not a complete safetensors file"),
        (f"{{{ONE}, {ONE}}}".encode(), None, "the key 'a' stands twice"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}}, None, "not a complete safetensors file"),
        ({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 24]}}, None, "not a complete safetensors file"),
        ({"a": {"dtype": "Q7", "shape": [6], "data_offsets": [0, 24]}}, None, "not a complete safetensors file"),
        ({f"{i}": 0 for i in range(20_001)}, None, "no model has more than 20,000 tensors"),
        ({"x" * 301: {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}, None, "more than 300 characters"),
    ],
)
def test_a_header_that_lies_is_named(tmp_path, header, length, message):
    header_of(tmp_path / "model.safetensors", header, length)
    with pytest.raises(ModelError, match=message):
        TensorFolder(tmp_path)


@pytest.mark.parametrize("shard", ["../model-1.safetensors", "/etc/passwd", "a/b.safetensors", "", "model.bin"])
def test_an_index_names_files_of_its_own_folder(tmp_path, shard):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ModelError, match="not a safetensors index"):
        TensorFolder(tmp_path)


def test_only_values_that_are_not_finite_are_refused():
    large = np.full(10, 3e38, np.float32)
    assert require_finite(large, "a") is large  # though their sum is not
    require_finite(np.array([], np.float16), "a")
    require_finite(np.array([2**62]), "a")
    for dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16):
        with pytest.raises(ModelError, match=r"tensor 'a\\x1b': 2 of its 3 values are not finite"):
            require_finite(np.array([1, np.inf, np.nan], dtype), "a\x1b")
