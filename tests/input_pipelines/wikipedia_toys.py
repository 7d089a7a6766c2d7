"""Examples and TFRecords that tests of Wikipedia's data make."""

import pathlib
import random
import struct

import numpy as np

from mlperf_jax.input_pipelines.wikipedia.instances import Example

DATA = pathlib.Path(__file__).parent / "data"


def random_example(rng: np.random.Generator, longest: int, most: int, vocabulary: int) -> Example:
    length = int(rng.integers(5, longest + 1))
    count = min(most, max(1, round(0.15 * length)))
    positions = np.sort(rng.permutation(length)[:count])
    arrays = rng.integers(0, vocabulary, length), positions, rng.integers(0, vocabulary, count)
    tokens, positions, ids = (array.astype(np.uint16) for array in arrays)
    return Example(tokens, int(rng.integers(2, length)), positions, ids, int(rng.integers(2)))


def assert_same(left: Example, right: Example) -> None:
    assert (left.split, left.random) == (right.split, right.random)
    for a, b in zip(
        (left.tokens, left.positions, left.ids), (right.tokens, right.positions, right.ids)
    ):
        np.testing.assert_array_equal(a, b)


# -- TFRecords -------------------------------------------------------------------------------------


def slow_crc32c(data: bytes) -> int:
    """Bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def frame(message: bytes) -> bytes:
    """A record as TFRecord files hold it."""

    def checksum(data):
        crc = slow_crc32c(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    size = struct.pack("<Q", len(message))
    return size + checksum(size) + message + checksum(message)


def serialised(features: dict[str, list]) -> bytes:
    """A `tf.Example`, by protobuf."""
    from tensorflow_datasets.proto import tf_example_generated_pb2 as examples

    example = examples.Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        kind = feature.float_list if isinstance(values[0], float) else feature.int64_list
        kind.value.extend(values)
    return example.SerializeToString()


def padded(example: Example, longest: int, most: int) -> dict[str, list]:
    """The organisers' features of an example."""
    length, count = len(example.tokens), len(example.ids)
    behind, unused = [0] * (longest - length), [0] * (most - count)
    return {
        "input_ids": example.tokens.tolist() + behind,
        "input_mask": [1] * length + behind,
        "segment_ids": [0] * example.split + [1] * (length - example.split) + behind,
        "masked_lm_positions": example.positions.tolist() + unused,
        "masked_lm_ids": example.ids.tolist() + unused,
        "masked_lm_weights": [1.0] * count + [0.0] * len(unused),
        "next_sentence_labels": [example.random],
    }


# -- text ------------------------------------------------------------------------------------------


def write_source(folder: pathlib.Path, parts: int = 3) -> None:
    """The organisers' text of so many parts, all of the stored words, with its vocabulary."""
    text = (DATA / "bert.txt").read_text(encoding="utf-8")
    articles = text.strip().split("\n\n")
    draw = random.Random(3)
    names = [f"part-{number:05d}-of-{parts:05d}" for number in range(parts)]
    for name in (*names, "eval.txt"):
        draw.shuffle(articles)
        (folder / name).write_text("\n\n".join(articles[:3]) + "\n", encoding="utf-8")
    (folder / "vocab.txt").write_bytes((DATA / "bert_vocabulary.txt").read_bytes())
