"""Shards, prompts and a tokenizer that the tests of LAION's data make."""

import io
import pathlib
import tarfile

import numpy as np

from mlperf_jax.input_pipelines.laion import Laion, files

FORM = files.Form(8, 4)
LENGTH = 10
HEADER = "image_id\tid\tcaption"


class Letters:
    """A token a letter, between 1 and 2."""

    def __init__(self, length=LENGTH, extra=0):
        self.length, self.extra = length, extra

    def encode(self, text):
        return [ord(letter) + self.extra for letter in text]

    def __call__(self, text):
        ids = [1, *self.encode(text)[: self.length - 2], 2]
        return np.array(ids + [0] * (self.length - len(ids)), np.int32)


def moments(key: str) -> np.ndarray:
    """The array of a sample."""
    draw = np.random.RandomState(int(key))
    return draw.standard_normal((1, *FORM.shape)).astype(np.float32)


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    """The bytes of a `.npy` file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), allow_pickle=pickled)
    return file.getvalue()


def members(captions: dict[str, str]) -> list[tuple[str, bytes]]:
    """What a shard holds, by name."""
    pairs = (
        ((f"{k}.npy", npy(moments(k))), (f"{k}.txt", text.encode())) for k, text in captions.items()
    )
    return [member for pair in pairs for member in pair]


def write_tar(path, held: list[tuple[str, bytes]], form=tarfile.PAX_FORMAT, mtime=0.0):
    """Writes a tar as Python's tarfile does; a time with a fraction takes a pax header."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in held:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), mtime
            tar.addfile(member, io.BytesIO(data))


def captions_of(shard: int, count: int = 5) -> dict[str, str]:
    return {f"{shard}{i:05d}": f"{'abcdefghijk'[: 2 * i]} {shard}" for i in range(count)}


def write_set(folder, shards=3, count=5, prompts=7) -> pathlib.Path:
    """Shards of some samples, the i-th one of which has a caption of about 2 i letters, and prompts."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        held = members(captions_of(shard, count))
        write_tar(folder / files.shard_name(shard), held, mtime=0.25 * shard)
    lines = [f"{100 + i}\t{900 - i}\tprompt {i}" for i in range(prompts)]
    (folder / "val2014_30k.tsv").write_text("\n".join([HEADER, *lines, ""]))
    return folder


def small(**changed) -> Laion:
    """The data set of `write_set`."""
    sizes = {"length": LENGTH, "side": FORM.side, "channels": FORM.channels // 2, "shards": 3}
    return Laion(changed.pop("tokenizer", Letters()), **(sizes | changed))


def all_rows(split, rows, batches):
    """The first batches of so many rows as one."""
    found = [split.batched(rows, seed=3)[number] for number in range(batches)]
    return {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
