"""Reading prepared cases: the official split, the index, and what is wrong with a folder."""

import json
import re

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building
from mlperf_jax.input_pipelines.kits19 import Kits19, files, patches

SHAPE = (8, 9, 10)


@pytest.fixture
def folder(tmp_path):
    """Cases 0 to 7 as the reference's preparation leaves them: pairs of .npy, no index."""
    path = tmp_path / "prepared"
    path.mkdir()
    for number in range(8):
        draw = np.random.RandomState(number)
        image = draw.standard_normal((1, *SHAPE)).astype(np.float32)
        label = draw.randint(0, 3, (1, *SHAPE)).astype(np.uint8)
        np.save(path / f"case_{number:05d}_x.npy", image)
        np.save(path / f"case_{number:05d}_y.npy", label)
    return path


def write_index(folder, names, **changes):
    for name in names:
        sums = {f"{name}_{p}.npy": building.md5(folder / f"{name}_{p}.npy") for p in "xy"}
        label = np.load(folder / f"{name}_y.npy")[0]
        given = {"shape": SHAPE, "boxes": patches.largest_boxes(label), "md5": sums} | changes
        with open(files.index_path(str(folder)), "a") as file:
            file.write(files.Entry(name, **given).to_json() + "\n")


def test_the_validation_cases_are_the_official_ones():
    assert len(files.VALIDATION) == 42
    official = """00000 00003 00005 00006 00012 00024 00034 00041 00044 00049 00052 00056 00061 00065 00066
    00070 00076 00078 00080 00084 00086 00087 00092 00111 00112 00125 00128 00138 00157 00160 00161 00162
    00169 00171 00176 00185 00187 00189 00198 00203 00206 00207"""
    assert {int(case) for case in official.split()} == files.VALIDATION
    assert files.LABELLED - 42 == 168
    assert sum(case < files.TINY_CASES for case in files.VALIDATION) == 8


def test_the_official_sums_are_of_420_files():
    sums = files.official_md5()
    wanted = {f"case_{i:05d}_{part}.npy" for i in range(210) for part in "xy"}
    assert set(sums) == wanted
    assert all(re.fullmatch("[0-9a-f]{32}", s) for s in sums.values())
    assert len(set(sums.values())) == 420


def test_a_folder_of_the_reference_is_read_as_it_is(folder):
    train, held_out = (files.open_split(folder, s) for s in ("train", "validation"))
    assert [n[5:] for n in held_out.names] == ["00000", "00003", "00005", "00006"]
    assert [n[5:] for n in train.names] == ["00001", "00002", "00004", "00007"]
    assert Kits19().counts(folder) == {"train": 4, "validation": 4}
    case = train[1]
    np.testing.assert_array_equal(case.image, np.load(folder / "case_00002_x.npy")[0])
    assert isinstance(case.image, np.memmap)
    assert case.boxes == patches.largest_boxes(case.label)
    assert train[1] is case  # boxes are found once


def test_boxes_come_from_the_index(folder):
    boxes = {1: (patches.Box((0, 0, 0), (1, 2, 3)),)}
    write_index(folder, ["case_00002"], boxes=boxes)
    assert files.open_split(folder, "train")[1].boxes == boxes


def test_an_index_line_cut_short_counts_as_not_written(folder):
    write_index(folder, ["case_00001", "case_00002"])
    path = files.index_path(str(folder))
    path.write_text(path.read_text()[:-30])
    assert list(files.read_index(str(folder))) == ["case_00001"]


@pytest.mark.parametrize(
    "box", [[[0, 0, 0], [99, 2, 2]], [[-1, 0, 0], [2, 2, 2]], [[2, 2, 2], [2, 3, 3]]]
)
def test_a_box_outside_of_its_volume_counts_as_not_written(folder, box):
    write_index(folder, ["case_00001"], boxes={"1": [box]})
    assert not files.read_index(str(folder))


def test_cases_without_labels_and_other_files_are_left_alone(folder):
    for name in ("case_00210_x.npy", "notes.txt", "incomplete.case_00009_x.npy"):
        (folder / name).write_bytes(b"")
    assert Kits19().counts(folder) == {"train": 4, "validation": 4}


def test_training_examples(folder):
    data = Kits19(4).train(folder)
    assert data.last_batch == "mix"
    batch = data.batched(3)[0]
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        "image": ((3, 4, 4, 4, 1), np.float32),
        "label": ((3, 4, 4, 4), np.uint8),
    }


def test_validation_begins_with_the_most_windows(folder):
    for number, depth in ((3, 16), (6, 24)):
        np.save(folder / f"case_{number:05d}_x.npy", np.zeros((1, depth, 8, 8), np.float32))
        np.save(folder / f"case_{number:05d}_y.npy", np.zeros((1, depth, 8, 8), np.uint8))
    data = Kits19(8, (24, 12, 12)).validation(folder)
    assert [n[5:] for n in data.source.names] == ["00006", "00003", "00000", "00005"]
    batches = list(data.batched(3).stream(threads=1))
    assert [b["windows"].prod(1).tolist() for b in batches] == [[5, 3, 2], [2, 0, 0]]
    assert [b["mask"].tolist() for b in batches] == [[True] * 3, [True, False, False]]


# -- what can be wrong -------------------------------------------------------------------------------


def test_an_empty_place_says_how_to_get_the_data(tmp_path):
    with pytest.raises(
        UserError, match=r"no prepared KiTS19 .* data fetch unet3d says how.* data build unet3d"
    ):
        Kits19().counts(tmp_path)
    with pytest.raises(UserError, match=r"data build unet3d --tiny"):
        Kits19(tiny=True).counts(tmp_path)


def test_a_bucket_is_refused_with_the_reason():
    with pytest.raises(UserError, match="memory-mapped"):
        files.locate("gs://bucket/data")


def test_half_a_pair_is_refused(folder):
    (folder / "case_00002_y.npy").unlink()
    with pytest.raises(UserError, match=r"case_00002_x.npy has no case_00002_y.npy"):
        Kits19().counts(folder)


def test_a_size_that_the_index_does_not_say_is_refused_before_the_run(folder):
    write_index(folder, ["case_00002"])
    path = folder / "case_00002_x.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"case_00002_x.npy has 3,000 bytes, its index says 3,008"):
        Kits19().counts(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda good: good[:-8], r"case_00002_x.npy is damaged or cut short"),
        (lambda good: b"nonsense", r"case_00002_x.npy is no .npy file"),
        (lambda good: b"", r"case_00002_x.npy is no .npy file"),
        (lambda good: good.replace(b"<f4", b"<i4"), r"holds <i4\[1, 8, 9, 10\], expected <f4"),
        (lambda good: good.replace(b"(1, 8,", b"(2, 4,"), r"holds <f4\[2, 4, 9, 10\]"),
        (lambda good: good.replace(b"9, 10)", b"10, 9)"), r"\(8, 10, 9\) voxels and its _y.npy"),
    ],
)
def test_a_damaged_file_is_named(folder, content, said):
    path = folder / "case_00002_x.npy"
    path.write_bytes(content(path.read_bytes()))
    data = Kits19(4).train(folder)
    with pytest.raises(UserError, match=said):
        data.source[1]


def test_fortran_order_is_read(folder):
    image = np.asfortranarray(np.random.RandomState(0).standard_normal((1, *SHAPE)), np.float32)
    np.save(folder / "case_00002_x.npy", np.asfortranarray(image))
    found = files.open_volume(folder / "case_00002_x.npy", np.float32)
    np.testing.assert_array_equal(found, image[0])


def test_check_names_every_problem(folder):
    write_index(folder, ["case_00001", "case_00007"])
    with open(folder / "case_00001_x.npy", "r+b") as file:
        file.seek(-2, 2)
        file.write(b"\x00\x00")
    for case, label in (("case_00002", np.zeros), ("case_00003", lambda s, d: np.full(s, 3, d))):
        np.save(folder / f"{case}_y.npy", label((1, *SHAPE), np.uint8))
    np.save(folder / "case_00004_x.npy", np.full((1, *SHAPE), np.nan, np.float32))
    report = Kits19().check(folder)
    problems = "\n".join(line for line in report if line.startswith("problem:"))
    for said in (
        "train has 4 cases, KiTS19 has 168",
        "validation has 4 cases, KiTS19 has 42",
        "case_00001_x.npy has changed since it was built",
        "case_00002_y.npy is empty",
        "case_00003_y.npy holds the label 3",
        "case_00004_x.npy holds values that are not finite",
    ):
        assert said in problems
    assert "case_00007" not in problems
    assert "note: case_00007_x.npy differs from the organisers' MD5 sum" in report
    assert report[-1] == "0 of 420 files have the organisers' MD5 sum"


def test_index_lines_are_plain_json(folder):
    write_index(folder, ["case_00001"], notes=("empty",))
    (line,) = files.index_path(str(folder)).read_text().splitlines()
    assert set(json.loads(line)) == {"case", "shape", "boxes", "md5", "notes"}
    assert files.Entry.from_json(line).notes == ("empty",)


@pytest.mark.parametrize(
    ("which", "value", "said"),
    [
        ("x", np.nan, "not finite"),
        ("x", np.inf, "not finite"),
        ("y", 255, "label 255"),
        ("y", 3, "label 3"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_spoilt_voxel_ends_the_run_that_reads_it(folder, which, value, said, split):
    data = Kits19(side=8, shape=(24, 24, 24))
    cases = files.open_split(str(folder), split, tiny=False)
    path = folder / f"{cases.names[0]}_{which}.npy"
    voxels = np.load(path)
    voxels[...] = value
    np.save(path, voxels)
    batches = getattr(data, split)(str(folder)).batched(len(cases))
    with pytest.raises(UserError, match=rf"{path.name} holds .*{said}"):
        batches[0]
