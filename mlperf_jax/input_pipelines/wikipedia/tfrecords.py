"""The organisers' TFRecords of examples, read without TensorFlow.

A record is its length (u64) and that number's checksum, its bytes and theirs; each holds a `tf.Example` of seven
features, padded with zeros. `read` gives the examples as they are without padding, so that nothing is lost.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import records
from mlperf_jax.input_pipelines.wikipedia.instances import Example, masked

_FRAME = struct.Struct("<QI")
_LONGEST = 1 << 14  # bytes of a record; those of 512 tokens have some 2,600
_INPUTS = ("input_ids", "input_mask", "segment_ids")
_MASKED = ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights")
_NEXT = "next_sentence_labels"


def read(path: str, longest: int, most: int, vocabulary: int) -> Iterator[Example]:
    """Yields the examples of a file in order.

    Args:
        path: of the file.
        longest: L, the length that tokens are padded to.
        most: the length that masked tokens are padded to.
        vocabulary: ids lie below it.

    Raises:
        UserError: the file is missing, damaged or cut short, or an example is not of these sizes; names the record.
    """
    for number, message in enumerate(frames(path)):
        try:
            yield _example(records.parse_numbers(message), longest, most, vocabulary)
        except ValueError as error:
            raise UserError(
                f"{path}, record {number}: {error}: fetch it again, or build from the text"
            ) from error


# -- records -------------------------------------------------------------------------------------


def frames(path: str) -> Iterator[memoryview]:
    """Yields the records of a TFRecord file, whose checksums hold; raises as `read`."""
    try:
        data: Any = np.memmap(path, np.uint8, "r").view(np.ndarray)  # whose slices are quicker
    except FileNotFoundError:
        raise UserError(f"{path} is missing: fetch it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds no records ({error}): fetch it again") from error
    at, number, view = 0, 0, memoryview(data)
    while at < len(data):
        head = view[at : at + _FRAME.size]
        if len(head) < _FRAME.size:
            _damaged(path, number, at, "the file ends within it")
        length, checksum = _FRAME.unpack(head)
        if checksum != _masked_crc(data[at : at + 8]):
            _damaged(path, number, at, "the checksum of its length does not match")
        if not 4 <= length <= _LONGEST:
            _damaged(path, number, at, f"it has {length:,} bytes, no example has")
        begin, end = at + _FRAME.size, at + _FRAME.size + length
        if end + 4 > len(data):
            _damaged(path, number, at, "the file ends within it")
        if int.from_bytes(view[end : end + 4], "little") != _masked_crc(data[begin:end]):
            _damaged(path, number, at, "its checksum does not match")
        yield view[begin:end]
        at, number = end + 4, number + 1


def _damaged(path: str, number: int, at: int, what: str) -> NoReturn:
    raise UserError(f"{path}, record {number} (byte {at}) is damaged, {what}: fetch it again")


def _masked_crc(data: np.ndarray) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: np.ndarray) -> int:
    """The Castagnoli checksum of 4 to 16,384 bytes.

    It is linear: what a byte adds depends on its value and on its distance to the end alone. So all are looked up at
    once, and no loop of Python runs over bytes.

    >>> hex(crc32c(np.frombuffer(b"123456789", np.uint8)))
    '0xe3069283'
    """
    table, last = _contributions()
    places = last[-len(data) :] + data
    places[:4] ^= 0xFF  # the register begins with ones, which are as good as ones in the data
    return int(np.bitwise_xor.reduce(table[places])) ^ 0xFFFFFFFF


@functools.cache
def _contributions() -> tuple[np.ndarray, np.ndarray]:
    """By distance to the end and byte, uint32 [16384 * 256], and where the rows of a run of bytes begin."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1)
    rows = np.empty((_LONGEST, 256), np.uint32)
    rows[0] = table
    for distance in range(1, _LONGEST):
        before = rows[distance - 1]
        rows[distance] = before >> 8 ^ table[before & 0xFF]
    return rows.ravel(), np.arange(_LONGEST - 1, -1, -1, dtype=np.int32) * 256


# -- examples ------------------------------------------------------------------------------------


def _example(features: dict[str, np.ndarray], longest: int, most: int, vocabulary: int) -> Example:
    """The example of a record's features; a ValueError says what is wrong with them."""
    sizes = dict.fromkeys(_INPUTS, longest) | dict.fromkeys(_MASKED, most) | {_NEXT: 1}
    for name in sorted(features.keys() | sizes.keys()):
        if name not in sizes:
            raise ValueError(f"it has an unknown feature {name!r}")
        if name not in features:
            raise ValueError(f"it has no feature {name!r}")
        if len(features[name]) != sizes[name]:
            raise ValueError(f"{name} has {len(features[name])} values, not {sizes[name]}")
    tokens, mask, segments = (features[name] for name in _INPUTS)
    positions, ids, weights = (features[name] for name in _MASKED)
    (random,) = features[_NEXT].tolist()
    length, count = _run_of_ones("input_mask", mask), _run_of_ones("masked_lm_weights", weights)
    split = length - int(np.count_nonzero(segments))
    for name, found, kept in (
        ("input_ids", tokens, length),
        ("masked_lm_ids", ids, count),
        ("masked_lm_positions", positions, count),
    ):
        if found[kept:].any():
            raise ValueError(f"{name} has values behind its {kept}, where it is padded")
    for name, found in (("input_ids", tokens), ("masked_lm_ids", ids)):
        if found.min() < 0 or found.max() >= vocabulary:
            wrong = found[(found < 0) | (found >= vocabulary)][0]
            raise ValueError(f"{name} has {wrong}, which is outside the vocabulary of {vocabulary}")
    if not 0 < split < length or (segments[split:length] != 1).any():
        raise ValueError("segment_ids is not a run of 0 and a run of 1")
    rising = (positions[1:count] > positions[: count - 1]).all()
    if not rising or positions[0] < 0 or positions[count - 1] >= length:
        raise ValueError(
            f"masked_lm_positions is not ascending below the example's {length} tokens"
        )
    if count > masked(length, most):
        raise ValueError(
            f"{count} of {length} tokens are masked, more than 15 in a hundred ({masked(length, most)})"
        )
    if random not in (0, 1):
        raise ValueError(f"{_NEXT} is {random}, not 0 or 1")
    kept = (tokens[:length], positions[:count], ids[:count])
    tokens_, positions_, ids_ = (values.astype(np.uint16) for values in kept)
    return Example(tokens_, split, positions_, ids_, random)


def _run_of_ones(name: str, values: np.ndarray) -> int:
    """How many ones stand in front of zeros."""
    count = int(np.count_nonzero(values))
    if not count or (values[:count] != 1).any():
        raise ValueError(f"{name} is not a run of 1 and then 0")
    return count
