"""Folders of safetensors: what cannot be read is named when it is opened."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlperf_jax.errors import UserError
from mlperf_jax.models import huggingface


@pytest.fixture
def folder(tmp_path):
    save_file({"a": np.arange(4.0)}, tmp_path / "model.safetensors")
    return tmp_path


def test_what_is_there_is_read(folder):
    np.testing.assert_array_equal(huggingface.open_folder(folder)["a"][:], np.arange(4.0))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_numbers_of_eight_bits_are_refused(tmp_path, dtype):
    header = json.dumps({"a": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(4)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=f"holds a as {dtype}, .* give the weights in bfloat16"):
        huggingface.open_folder(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"weight_map": [1]}',
        b"\xff",
        b'{"weight_map": {"a": 1}}',
        b"[" * 99_999,
        b'{"weight_map": {"a": "../x"}}',
    ],
    ids=len,
)
def test_an_index_that_is_none_is_refused(folder, content):
    (folder / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(UserError, match="index"):
        huggingface.open_folder(folder)


def test_shards_that_are_missing_are_named(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "gone.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"lacks 1 of 2 shards: gone.safetensors"):
        huggingface.open_folder(folder)


@pytest.mark.parametrize("content", [b"", b"x" * 100, struct.pack("<Q", 1 << 60) + b"{}"], ids=len)
def test_a_damaged_file_is_named(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        huggingface.open_folder(folder)
