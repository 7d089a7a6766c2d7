"""Token files: bytes, a pair of another writer, and what is wrong with a damaged pair."""

import pathlib
import struct
import sys
import types

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.tokens import megatron_file
from mlperf_jax.input_pipelines.tokens.megatron_file import TokenFile, Writer

DATA = pathlib.Path(__file__).parent / "data"
BIN = "01000200030004000500"
IDX = (
    "4d4d49444944580000" "0100000000000000" "08" "0200000000000000" "0300000000000000"
    "03000000" "02000000" "0000000000000000" "0600000000000000"
    "0000000000000000" "0100000000000000" "0200000000000000"
)  # fmt: skip


@pytest.fixture
def prefix(tmp_path) -> str:
    return write(tmp_path / "tokens", [[1, 2, 3], [4, 5]])


def write(prefix, documents, dtype=np.uint16) -> str:
    with Writer(prefix, dtype) as writer:
        for document in documents:
            writer.add(document)
    return str(prefix)


def documents_of(file: TokenFile) -> list[list[int]]:
    cuts = np.cumsum(file.lengths)[:-1]
    return [part.tolist() for part in np.split(file.read([0], [file.tokens]), cuts)]


def patch(path: str, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def cut(path: str, size: int) -> None:
    content = pathlib.Path(path).read_bytes()
    pathlib.Path(path).write_bytes(content[:size])


def test_the_check_vector(prefix):
    assert pathlib.Path(f"{prefix}.bin").read_bytes().hex() == BIN
    assert pathlib.Path(f"{prefix}.idx").read_bytes().hex() == IDX


def test_a_pair_of_an_independent_writer():
    file = TokenFile(DATA / "megatron", 65_500)
    documents = [[1, 2, 3], [4, 5], [65_499], [7] * 11, [0, 9, 0]]
    assert documents_of(file) == documents
    assert file.tokens == 20 and file.lengths.tolist() == [3, 2, 1, 11, 3]
    assert file.dtype == np.uint16


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint16])
def test_round_trip(tmp_path, dtype):
    documents = [[1, 2, 3], [127], list(range(50))]
    file = TokenFile(write(tmp_path / "a", documents, dtype))
    assert file.dtype == dtype
    assert documents_of(file) == documents
    assert file.read([0, 4], [2, 3]).tolist() == [1, 2, 0, 1, 2]


def test_empty_documents_get_no_entry(tmp_path):
    file = TokenFile(write(tmp_path / "a", [[], [1], [], [2, 3], []]))
    assert file.lengths.tolist() == [1, 2]


def test_pairs_are_joined(tmp_path):
    first, second = (write(tmp_path / name, [[n, n], [n]]) for name, n in (("a", 1), ("b", 2)))
    with Writer(tmp_path / "c", np.uint16) as writer:
        writer.append(TokenFile(first))
        writer.append(TokenFile(second))
    whole = write(tmp_path / "d", [[1, 1], [1], [2, 2], [2]])
    for end in (".bin", ".idx"):
        assert (tmp_path / f"c{end}").read_bytes() == pathlib.Path(whole + end).read_bytes()


def test_a_build_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match=r"document 1 has token ids .* cannot hold"):
        write(tmp_path / "a", [[1], [70_000]])
    assert not list(tmp_path.iterdir())


def test_the_element_type_follows_the_vocabulary():
    assert megatron_file.dtype_for(65_499) == np.uint16
    assert megatron_file.dtype_for(65_500) == np.int32


def test_check_reads_tokens(prefix):
    TokenFile(prefix, 6).check()
    with pytest.raises(UserError, match="outside the vocabulary of 5"):
        TokenFile(prefix, 5).check()


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "data", "words"),
    [
        (0, b"MMIDIDY", r"begins \(byte 0\)"),
        (9, struct.pack("<Q", 2), r"version \(byte 9\) is 2"),
        (17, b"\x07", r"dtype code \(byte 17\) is 7"),
        (17, b"\x63", r"dtype code \(byte 17\) is 99"),
        (18, struct.pack("<Q", 3), "82 bytes, its header .* asks for 94"),
        (74, struct.pack("<q", 1), r"document index \(byte 58\) runs from 0 to 1"),
        (34 + 4, struct.pack("<i", 9), "does not match .*, which describes 24"),
    ],
)
def test_a_damaged_index(prefix, at, data, words):
    patch(f"{prefix}.idx", at, data)
    with pytest.raises(UserError, match=words) as error:
        TokenFile(prefix)
    assert f"{prefix}.idx" in str(error.value)


@pytest.mark.parametrize("size", [0, 5, 20, 81])
def test_a_truncated_index(prefix, size):
    cut(f"{prefix}.idx", size)
    with pytest.raises(UserError, match="not a usable Megatron index"):
        TokenFile(prefix)


@pytest.mark.parametrize("size", [0, 9])
def test_a_truncated_bin(prefix, size):
    cut(f"{prefix}.bin", size)
    with pytest.raises(UserError, match=f"bin has {size} bytes and does not match .* describes 10"):
        TokenFile(prefix)


def test_an_index_of_another_file(prefix, tmp_path):
    other = write(tmp_path / "other", [[1] * 9])
    pathlib.Path(f"{other}.idx").rename(f"{prefix}.idx")
    with pytest.raises(UserError, match="does not match"):
        TokenFile(prefix)


def test_lengths_that_do_not_add_up(prefix):
    patch(f"{prefix}.idx", 34, struct.pack("<i", 4))
    with pytest.raises(
        UserError, match=r"document 1 has 2 tokens and starts \(byte 50\) at 6, .* end at 8"
    ):
        TokenFile(prefix)


def test_a_document_that_starts_elsewhere(tmp_path):
    prefix = write(tmp_path / "a", [[1], [2, 3], [4]])
    patch(f"{prefix}.idx", 34 + 12 + 8, struct.pack("<q", 4))
    with pytest.raises(UserError, match=r"document 1 has 2 tokens and starts \(byte 54\) at 4"):
        TokenFile(prefix)


def test_any_flipped_byte_of_an_index_is_refused(tmp_path):
    prefix = write(tmp_path / "a", [[1] * n for n in (3, 1, 4, 1, 5)])
    path = pathlib.Path(f"{prefix}.idx")
    whole = path.read_bytes()
    for at in range(len(whole)):
        for flip in (0x01, 0x80):
            path.write_bytes(bytes([*whole[:at], whole[at] ^ flip, *whole[at + 1 :]]))
            with pytest.raises(UserError, match=r"a\.idx"):
                TokenFile(prefix)
    path.write_bytes(whole)
    assert TokenFile(prefix).documents == 5


def test_numbers_are_checked_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("mlperf_jax.input_pipelines.tokens.megatron_file._AT_ONCE", 2)
    prefix = write(tmp_path / "a", [[1] * n for n in (3, 1, 4, 1, 5)])
    assert TokenFile(prefix).tokens == 14
    patch(f"{prefix}.idx", 34 + 20 + 8 * 3, struct.pack("<q", 18))
    with pytest.raises(UserError, match="document 3 has 1 tokens"):
        TokenFile(prefix)
    path = pathlib.Path(f"{prefix}.idx")
    patch(path, 34 + 20 + 8 * 3, struct.pack("<q", 16))
    patch(path, 34 + 60 + 8 * 3, struct.pack("<q", 4))
    with pytest.raises(UserError, match=r"document index goes from 2 .* to 4"):
        TokenFile(prefix)


@pytest.mark.parametrize("end", [".bin", ".idx"])
def test_a_missing_file(prefix, end):
    pathlib.Path(prefix + end).unlink()
    with pytest.raises(UserError, match=rf"{end} is missing"):
        TokenFile(prefix)


def test_no_documents(tmp_path):
    with pytest.raises(UserError, match="lists no documents"):
        TokenFile(write(tmp_path / "a", []))


@pytest.mark.parametrize("token", [100, -1])
def test_a_token_beyond_the_vocabulary(tmp_path, token):
    prefix = write(tmp_path / "a", [[1, 2, 3], [4, token, 5]], np.int32)
    file = TokenFile(prefix, 100)
    assert file.read([0], [4]).tolist() == [1, 2, 3, 4]
    words = rf"a\.bin: token id {token} at byte 16 \(token 4\) is outside the vocabulary of 100"
    with pytest.raises(UserError, match=words):
        file.read([5, 3], [1, 3])


def test_a_bucket_is_read_by_ranges(prefix, monkeypatch):
    class Bucket:
        def exists(self, path):
            return path.startswith("gs://data/a.")

        def size(self, path):
            return len(self.cat_file(path))

        def cat_file(self, path, start=None, end=None):
            return pathlib.Path(path.replace("gs://data/a", prefix)).read_bytes()[start:end]

        def cat_ranges(self, paths, starts, ends, on_error):
            return [self.cat_file(*each) for each in zip(paths, starts, ends)]

    monkeypatch.setattr(megatron_file.records, "local", str)
    fake = types.SimpleNamespace(GCSFileSystem=Bucket)
    monkeypatch.setitem(sys.modules, "gcsfs", fake)
    file = TokenFile("gs://data/a", 6)
    assert file.read([3, 0], [2, 1]).tolist() == [4, 5, 1]
    assert file.lengths.tolist() == [3, 2]
    with pytest.raises(UserError, match=r"gs://data/b\.bin is missing"):
        TokenFile("gs://data/b")


def test_s3_is_refused():
    with pytest.raises(UserError, match="mount"):
        TokenFile("s3://bucket/tokens")
