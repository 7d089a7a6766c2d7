"""Tars read where they lie, beside Python's tarfile and webdataset's own; the index of a shard; damaged ones."""

import io
import itertools
import pathlib
import tarfile

import numpy as np
import pytest
from laion_toys import FORM, captions_of, members, moments, npy, write_tar

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.laion import files, tars
from scripts import make_laion_reference as reference

NAMES = (
    "plain.txt",
    "./folder/dotted.name.npy",
    "long/" * 30 + "name.txt",
    "x" * 200 + ".npy",
    "déjà vu/東京.txt",
    "empty.txt",
)


def read(path):
    with tars.Tar(str(path)) as tar:
        return {m.name: tar.read(m.at, m.size) for m in tar.members()}


def names_of(path):
    """As tarfile has them."""
    with tarfile.open(path) as tar:
        return tar.getnames()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mtime", [0, 1_700_000_000.25])
def test_members_are_tarfile_s(tmp_path, form, mtime):
    names = [n for n in NAMES if form != tarfile.USTAR_FORMAT or len(n) < 200]
    rng = np.random.default_rng(0)
    held = [(name, rng.bytes(size)) for name, size in zip(names, (3, 512, 513, 9000, 1, 0))]
    write_tar(tmp_path / "a.tar", held, form, mtime)
    assert list(read(tmp_path / "a.tar").items()) == held
    with tarfile.open(tmp_path / "a.tar") as tar:
        places = [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
    with tars.Tar(str(tmp_path / "a.tar")) as tar:
        assert [tuple(member) for member in tar.members()] == places


def test_folders_and_links_are_passed_over(tmp_path):
    """The organisers packed a whole folder, whose own entry has no name."""
    (tmp_path / "set").mkdir()
    for name, data in members(captions_of(0, 2)):
        (tmp_path / "set" / name).write_bytes(data)
    (tmp_path / "set" / "link.txt").symlink_to("000000.txt")
    (tmp_path / "set" / "hard.txt").hardlink_to(tmp_path / "set" / "000000.txt")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "set", arcname="")
    with tarfile.open(tmp_path / "a.tar") as tar:
        kept = {m.name: m.offset_data for m in tar.getmembers() if m.isreg()}
    assert len(kept) == 4
    with tars.Tar(str(tmp_path / "a.tar")) as tar:
        assert {m.name: m.at for m in tar.members()} == kept


def test_sizes_beyond_octal_digits_and_a_pax_header_for_all(tmp_path):
    member = tarfile.TarInfo("a.txt")
    member.size = 5
    block = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = b"\x80" + (5).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    common = tarfile.TarInfo.create_pax_global_header({"comment": "for all"})
    (tmp_path / "a.tar").write_bytes(common + block + b"hello".ljust(512, b"\0") + bytes(1024))
    assert read(tmp_path / "a.tar") == {"a.txt": b"hello"}
    assert names_of(tmp_path / "a.tar") == ["a.txt"]


def test_a_tar_of_webdataset():
    held = read(reference.TAR)
    assert len(held) == 3 * len(reference.CAPTIONS)
    with tars.Tar(str(reference.TAR)) as tar:
        found = tars.samples(tar, ("npy", "txt"))
        assert list(found) == list(reference.CAPTIONS)
        for key, caption in reference.CAPTIONS.items():
            assert sorted(found[key]) == ["npy", "txt"]
            text = found[key]["txt"]
            assert tar.read(text.at, text.size).decode() == caption
            assert held[f"{key}.npy"] == npy(reference.moments(key))


def test_keys_are_webdataset_s(tmp_path):
    held = ["./a/1.npy", "a/1.seg.npy", "a.b/2.TXT", "noending", ".hidden", "a/.npy", "1.txt"]
    write_tar(tmp_path / "a.tar", [(name, b"") for name in held])
    with tars.Tar(str(tmp_path / "a.tar")) as tar:
        found = tars.samples(tar, ("npy", "txt", "seg.npy"))
    assert {key: list(sample) for key, sample in found.items()} == {
        "a/1": ["npy", "seg.npy"],
        "a/": ["npy"],
        "a.b/2": ["txt"],
        "1": ["txt"],
    }


# -- damaged ones ----------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path) -> pathlib.Path:
    write_tar(tmp_path / "00000.tar", members(captions_of(0, 3)), mtime=0.5)
    return tmp_path / "00000.tar"


def test_a_tar_cut_anywhere_is_refused(whole):
    """Tarfile takes one that was cut behind a member for a whole one."""
    data = whole.read_bytes()
    with tars.Tar(str(whole)) as tar:
        last = [*tar.members()][-1]
    end = -(-(last.at + last.size) // 512) * 512
    for cut in (1, 511, 512, 1024, 2048, 2700, last.at, end - 512, end, end + 100):
        whole.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"00000\.tar is damaged or cut short \(byte [\d,]+\)"):
            files.write_index(f"{whole}.idx", str(whole), FORM)
    assert not [path for path in whole.parent.iterdir() if path != whole]
    whole.write_bytes(data[:end])
    assert len(names_of(whole)) == 6
    whole.write_bytes(data[: end + 512])
    assert files.write_index(f"{whole}.idx", str(whole), FORM) == 3


def put(at, data):
    return lambda tar: tar[:at] + data + tar[at + len(data) :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(0, b"?"), r"byte 0\), the sum of a header's bytes does not match"),
        (put(124, b"9"), r"byte 0\), b'9\d+.*' is no number of a tar's header"),
        (put(512, b"99"), r"byte 512\), a pax header has no whole records"),
        (put(512, b"xx"), r"byte 512\), a pax header has no whole records"),
        (put(512, b"1 "), r"byte 512\), a pax header has no whole records"),
        (lambda data: data[:2000], r"ends within 000000.npy, at 2,000 of [\d,]+ bytes"),
        (lambda data: data[:520], r"byte 0\), it ends within .*PaxHeader.*, at 520 of"),
        (lambda data: data[:1100], r"byte 1,024\), it ends within a header"),
        (lambda data: data[:1024], r"byte 1,024\), it ends without the zeros that end a tar"),
        (lambda data: b"", r"byte 0\), it ends without the zeros"),
    ],
)
def test_damaged_tars(whole, change, message):
    whole.write_bytes(change(whole.read_bytes()))
    with pytest.raises(UserError, match=message):
        read(whole)


def test_members_with_holes_are_refused(tmp_path):
    block = bytearray(tarfile.TarInfo("a.npy").tobuf(tarfile.GNU_FORMAT))
    block[156:157], block[148:156] = b"S", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "a.tar").write_bytes(bytes(block) + bytes(1024))
    with pytest.raises(UserError, match=r"a\.npy is stored with holes, which is not read"):
        read(tmp_path / "a.tar")


# -- an index --------------------------------------------------------------------------------------


def objects():
    return npy(np.array([{"a": 1}], object), pickled=True)


FIRST = "000000"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held[:1] + held[2:], f"holds {FIRST}.npy and no {FIRST}.txt: fetch"),
        (lambda held: held[1:], f"holds {FIRST}.txt and no {FIRST}.npy: fetch"),
        (lambda held: [*held, held[0]], f"holds {FIRST}.npy twice"),
        (lambda held: [*held, held[1]], f"holds {FIRST}.txt twice"),
        (lambda held: [(f"{FIRST}.jpg", b""), *held[1:]], rf"holds images \({FIRST}.jpg\), not their moments"),
        (lambda held: [("notes.md", b"")], r"00000\.tar holds no samples"),
        (lambda held: [(held[0][0], objects()), *held[1:]], r"\.npy holds object\[1\], moments are float32\[1, 8"),
        (lambda held: [(held[0][0], b"\x93NUMPY"), *held[1:]], rf"{FIRST}\.npy is no array \(no header"),
        (lambda held: [(held[0][0], held[0][1][:-4]), *held[1:]], r"\.npy has 636 bytes and its header asks for 640"),
        (lambda held: [(held[0][0], held[0][1] + b"\0"), *held[1:]], r"\.npy has 641 bytes and its header asks for"),
        (lambda held: [held[0], (held[1][0], b"\xff"), *held[2:]], rf"{FIRST}\.txt is no text \(.*utf-8"),
    ],
)  # fmt: skip
def test_shards_that_are_not_whole(tmp_path, change, message):
    write_tar(tmp_path / "00000.tar", change(members(captions_of(0, 2))))
    with pytest.raises(UserError, match=message):
        files.write_index(str(tmp_path / "00000.idx"), str(tmp_path / "00000.tar"), FORM)
    assert not (tmp_path / "00000.idx").exists()


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (moments("1").astype(np.float16), r"float16\[1, 8, 4, 4\]"),
        (moments("1").astype(">f4"), r">f4\[1, 8, 4, 4\]"),
        (moments("1")[0], r"float32\[8, 4, 4\]"),
        (moments("1")[:, :, :2], r"float32\[1, 8, 2, 4\]"),
        (moments("1")[:, :4], r"float32\[1, 4, 4, 4\]"),
        (np.asfortranarray(moments("1")), r"float32\[1, 8, 4, 4\] in Fortran order"),
    ],
)
def test_arrays_that_are_no_moments(tmp_path, array, said):
    held = [("1.npy", npy(array)), ("1.txt", b"")]
    write_tar(tmp_path / "00000.tar", held)
    with pytest.raises(UserError, match=rf"00000\.tar, 1\.npy holds {said}, moments are"):
        files.write_index(str(tmp_path / "00000.idx"), str(tmp_path / "00000.tar"), FORM)


def test_headers_of_other_lengths_are_read(tmp_path):
    """NumPy before 1.14 aligned them to 16 bytes."""
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 8, 4, 4), }"
    for number, aligned in enumerate((16, 64, 192)):
        padding = -(len(text) + 11) % aligned
        head = text + b" " * padding + b"\n"
        raw = b"\x93NUMPY\x01\0" + len(head).to_bytes(2, "little") + head
        data = raw + moments("3").tobytes()
        np.testing.assert_array_equal(np.load(io.BytesIO(data)), moments("3"))
        write_tar(tmp_path / f"{number:05d}.tar", [("3.npy", data), ("3.txt", b"")])
        name = str(tmp_path / f"{number:05d}")
        (tmp_path / "index").mkdir(exist_ok=True)
        files.write_index(f"{tmp_path}/index/{number:05d}.idx", f"{name}.tar", FORM)
    place = files.Place(str(tmp_path), str(tmp_path))
    for shard in files.Samples(place, 3, FORM).shards:
        (raw,) = shard.files.read([shard.array(0)])
        np.testing.assert_array_equal(shard.moments(0, raw), moments("3")[0])


def test_a_missing_tar(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*00000\.tar \(No such file"):
        files.write_index(str(tmp_path / "0.idx"), str(tmp_path / "00000.tar"), FORM)


def test_an_index_says_what_tarfile_says(tmp_path):
    """Of shards in three forms of tar, and of one in which a sample's members lie apart."""
    (tmp_path / "index").mkdir()
    forms = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.PAX_FORMAT)
    for number, form in enumerate(forms):
        held = members(captions_of(number, 4))
        if number == 3:
            held = held[::2] + held[1::2][::-1]
        write_tar(tmp_path / files.shard_name(number), held, form)
        index = f"{tmp_path}/index/{number:05d}.idx"
        files.write_index(index, str(tmp_path / files.shard_name(number)), FORM)
    place = files.Place(str(tmp_path), str(tmp_path))
    samples = files.Samples(place, 4, FORM)
    assert len(samples) == 16
    for number, shard in enumerate(samples.shards):
        captions = captions_of(number, 4)
        assert [key.decode() for key in shard.keys] == list(captions)
        assert list(shard.captions()) == list(captions.values())
        with tarfile.open(shard.path) as tar:
            for index, key in enumerate(captions):
                assert shard.array(index)[1] == tar.getmember(f"{key}.npy").offset_data
                (raw,) = shard.files.read([shard.array(index)])
                np.testing.assert_array_equal(shard.moments(index, raw), moments(key)[0])
    pairs = itertools.product(range(4), range(4))
    found = samples.at(np.arange(16))
    assert [(int(shard.name), index) for shard, index in found] == list(pairs)
