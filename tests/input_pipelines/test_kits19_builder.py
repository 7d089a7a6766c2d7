"""Preparation from NIfTI, against torch's resampling and the reference's steps, and bad scans."""

import gzip
import threading
import types
from fractions import Fraction

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building
from mlperf_jax.input_pipelines.kits19 import builder, files, tiny
from scripts import make_unet3d_reference as reference

nibabel = pytest.importorskip("nibabel")


# first axis down the body, second to the back, third to the left: "IPL", as KiTS19 lies
IPL = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]], float)


def write_case(folder, number=0, *, image=None, label=None, spacing=(3.0, 1.5, 1.5), affine=IPL):
    path = folder / f"case_{number:05d}"
    path.mkdir(parents=True)
    draw = np.random.RandomState(number)
    image = draw.randint(-200, 400, (5, 12, 11)).astype(np.int16) if image is None else image
    label = draw.randint(0, 3, image.shape).astype(np.uint8) if label is None else label
    scale = np.diag([*spacing, 1.0])
    for name, voxels in (("imaging", image), ("segmentation", label)):
        volume = nibabel.Nifti1Image(voxels, None if affine is None else affine @ scale)
        volume.header.set_zooms(spacing)
        nibabel.save(volume, path / f"{name}.nii.gz")
    return path


def prepare(path, side=8):
    target = path.parent.parent / "prepared"
    target.mkdir(exist_ok=True)
    return builder.prepare_case(path, target, side), target


# -- resampling --------------------------------------------------------------------------------------


def test_resampling_equals_torchs():
    """Trilinear with aligned corners and legacy nearest; the organisers' torch 1.7 and the one that made
    this file add in another order, hence a tolerance of a few last bits."""
    shape, wanted = reference.RESAMPLED
    stored = np.load(reference.OUTPUT)
    image, label = reference.scan(shape)
    found = np.stack(list(builder.trilinear_planes(image, wanted)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, stored["resampled/image"], rtol=1e-5, atol=1e-4)
    planes = list(builder.nearest_planes(label, wanted))
    np.testing.assert_array_equal(planes, stored["resampled/label"])


@pytest.mark.parametrize("wanted", [(40, 3, 4), (1, 4, 4), (20, 3, 4)])
def test_many_planes_are_read_once_and_in_order(wanted):
    """More planes than are read at a time; more, one, and as many of them wanted."""
    volume = np.random.RandomState(0).standard_normal((20, 3, 4)).astype(np.float32)
    found = np.stack(list(builder.trilinear_planes(volume, wanted)))
    place = np.linspace(0, 19, wanted[0]) if wanted[0] > 1 else np.zeros(1)
    low = np.minimum(place.astype(int), 18)
    part = (place - low)[:, None, None]
    slow = volume[low] * (1 - part) + volume[low + 1] * part
    if wanted[1:] == (3, 4):
        np.testing.assert_allclose(found, slow, rtol=1e-5, atol=1e-5)
    if wanted == volume.shape:
        np.testing.assert_array_equal(found, volume)
    assert found.shape == wanted


def test_fused_multiply_add_rounds_once():
    draw = np.random.RandomState(0)
    a, b, c = draw.standard_normal((3, 300)).astype(np.float32)
    # products halfway between two float32, and addends that decide, too small for float64 to keep
    a[:2] = b[:2] = 1 + 2**-12
    c[:2] = 2.0**-60, -(2.0**-60)
    found = builder.fused_multiply_add(a, b, c)
    for ours, *given in zip(found, a, b, c, strict=True):
        x, y, z = (Fraction(float(value)) for value in given)
        error = abs(Fraction(float(ours)) - (x * y + z))
        for near in (np.nextafter(ours, np.float32(s)) for s in (-np.inf, np.inf)):
            assert error <= abs(Fraction(float(near)) - (x * y + z))
    assert found[0] > found[1]


@pytest.mark.parametrize(
    ("shape", "spacing", "wanted"),
    [
        ((100, 512, 512), (3.0, 0.8, 0.8), (187, 341, 341)),
        ((64, 512, 512), (5.0, 0.78125, 0.78125), (200, 333, 333)),
        # a float32 header's 1.6 is a little more than 1.6, so nothing is lost to rounding down
        ((50, 60, 70), [float(np.float32(s)) for s in (1.6, 1.2, 1.2)], (50, 60, 70)),
    ],
)
def test_resampled_shape(shape, spacing, wanted):
    assert builder.resampled_shape(shape, spacing) == wanted


# -- one case ----------------------------------------------------------------------------------------


def test_a_case_goes_through_all_the_steps(tmp_path):
    path = write_case(tmp_path / "raw")
    entry, target = prepare(path)
    raw = np.asarray(nibabel.load(path / "imaging.nii.gz").dataobj).astype(np.float32)
    shape = (int(3 / 1.6 * 5), int(1.5 / 1.2 * 12), int(1.5 / 1.2 * 11))
    image = np.stack(list(builder.trilinear_planes(raw, shape)))
    image = (np.clip(image, -79, 304) - 101) / 76.9
    short = [max(16 - n, 0) for n in shape]
    pads = [(n // 2, n - n // 2) for n in short]
    wide = builder.prepare_case(path, _folder(tmp_path / "wide"), 16)
    found = np.load(tmp_path / "wide/case_00000_x.npy")
    np.testing.assert_allclose(found[0], np.pad(image, pads, mode="edge"), rtol=1e-6, atol=1e-6)
    assert found.dtype == np.float32
    np.save(tmp_path / "same.npy", found)  # the organisers' sums include NumPy's header
    assert wide.md5["case_00000_x.npy"] == building.md5(tmp_path / "same.npy")
    assert found.min() == pytest.approx((-79 - 101) / 76.9)
    label = np.load(tmp_path / "wide/case_00000_y.npy")
    assert (label.dtype, label.shape) == (np.uint8, found.shape)
    assert wide.shape == found.shape[1:] == (16, 16, 16)
    assert entry.shape == (9, 15, 13)  # 8 is enough: nothing is added
    assert entry.md5["case_00000_x.npy"] == building.md5(target / "case_00000_x.npy")
    assert builder.normalise(np.float32([-2000, 101, 2000])).tolist() == pytest.approx(
        [-180 / 76.9, 0, 203 / 76.9]
    )


def _folder(path):
    path.mkdir()
    return path


def test_scaled_and_float_voxels_mean_the_same(tmp_path):
    image = np.random.RandomState(0).randint(-200, 400, (5, 12, 11)).astype(np.int16)
    plain = write_case(tmp_path / "raw", 0, image=image)
    wide = write_case(tmp_path / "raw", 1, image=image.astype(np.float64), label=None)
    scaled = write_case(tmp_path / "raw", 2, image=image)
    volume = nibabel.Nifti1Image(image * 2.0 - 100, IPL @ np.diag([3.0, 1.5, 1.5, 1]))
    volume.set_data_dtype(np.int16)
    nibabel.save(volume, scaled / "imaging.nii.gz")
    for path in (plain, wide, scaled):
        _, target = prepare(path)
    x = [np.load(target / f"case_{i:05d}_x.npy") for i in range(3)]
    np.testing.assert_array_equal(x[0], x[1])
    assert x[2].std() > 1.1 * x[0].std()


def test_an_empty_segmentation_is_noted_and_kept(tmp_path):
    entry, _ = prepare(write_case(tmp_path / "raw", label=np.zeros((5, 12, 11), np.uint8)))
    assert entry.boxes == {}
    assert "empty" in entry.notes[0]


# -- bad scans ---------------------------------------------------------------------------------------

RAS = np.diag([1.0, 1, 1, 1])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"label": np.zeros((5, 12, 10), np.uint8)}, r"\(5, 12, 11\) and segmentation.nii.gz"),
        (
            {"label": np.full((5, 12, 11), 3, np.uint8)},
            "segmentation.nii.gz holds labels from 3 to 3",
        ),
        ({"label": np.full((5, 12, 11), -1, np.int16)}, "labels from -1"),
        ({"affine": RAS}, r"imaging.nii.gz is oriented RAS; .* \(IPL\)"),
        ({"image": np.zeros((5, 12, 11, 2), np.int16)}, "expected the same three axes"),
        ({"spacing": (0.01, 1.5, 1.5)}, "less than one after resampling"),
    ],
)
def test_a_scan_that_does_not_fit_is_named(tmp_path, given, said):
    if "image" in given:
        given["spacing"] = (3.0, 1.5, 1.5)
        path = write_case(tmp_path / "raw")
        volume = nibabel.Nifti1Image(given["image"], IPL)
        nibabel.save(volume, path / "imaging.nii.gz")
    else:
        path = write_case(tmp_path / "raw", **given)
    with pytest.raises(UserError, match=said):
        prepare(path)


def test_a_spacing_that_is_no_spacing_is_named(tmp_path):
    path = write_case(tmp_path / "raw")
    volume = nibabel.load(path / "imaging.nii.gz")
    data = np.asarray(volume.dataobj)
    header = volume.header.copy()
    header["pixdim"][1] = np.nan
    raw = header.binaryblock + b"\0\0\0\0" + data.tobytes(order="F")
    (path / "imaging.nii.gz").write_bytes(gzip.compress(raw))
    with pytest.raises(UserError, match=r"imaging.nii.gz.* spacing of \[nan"):
        builder._build(_folder(tmp_path / "out"), [path], 8, say=print)


def test_flips_and_unknown_orientations_are_taken(tmp_path):
    upside_down = IPL * np.array([1, 1, -1, 1])[:, None]
    prepare(write_case(tmp_path / "raw", 0, affine=upside_down))
    path = write_case(tmp_path / "raw", 1)
    for name in ("imaging", "segmentation"):
        volume = nibabel.load(path / f"{name}.nii.gz")
        data, header = np.asarray(volume.dataobj), volume.header
        header["sform_code"] = header["qform_code"] = 0
        nibabel.save(nibabel.Nifti1Image(data, None, header), path / f"{name}.nii.gz")
    prepare(path)


@pytest.mark.parametrize(
    "damage", [lambda good: good[:-200], lambda good: b"nonsense", lambda good: b""]
)
@pytest.mark.parametrize("file", ["imaging.nii.gz", "segmentation.nii.gz"])
def test_a_damaged_file_is_named(tmp_path, damage, file):
    path = write_case(tmp_path / "raw")
    good = (path / file).read_bytes()
    (path / file).write_bytes(damage(good))
    with pytest.raises(UserError, match=file):
        prepare(path)
    assert not list((tmp_path / "prepared").glob("case_00000_x.npy"))


def test_missing_cases_and_files_are_named_before_anything_is_done(tmp_path):
    with pytest.raises(UserError, match="no KiTS19 in"):
        builder.find_cases(str(tmp_path), 3)
    raw = tmp_path / "kits19/data"
    for number in (0, 2):
        write_case(raw, number)
    with pytest.raises(UserError, match=r"lacks 1 of the 3 labelled cases, case_00001"):
        builder.find_cases(str(tmp_path), 3)
    write_case(raw, 1)
    (raw / "case_00001/segmentation.nii.gz").unlink()
    with pytest.raises(UserError, match=r"case_00001 has no segmentation \(segmentation.nii.gz\)"):
        builder.find_cases(str(tmp_path), 3)


def test_a_disk_that_is_too_small_is_told_before(tmp_path, monkeypatch):
    write_case(tmp_path / "raw")
    usage = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(building.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"0.0 GB free and the build needs"):
        builder._build(tmp_path, [tmp_path / "raw/case_00000"], 8, say=print)


# -- the whole set -----------------------------------------------------------------------------------


def build(tmp_path, said=None):
    cases = builder.find_cases(str(tmp_path / "raw"), 3)
    target = tmp_path / "kits19"
    target.mkdir(exist_ok=True)
    builder._build(target, cases, 8, say=(said if said is not None else []).append)
    return target


def test_a_build_goes_on_where_it_was_stopped(tmp_path):
    for number in range(3):
        write_case(tmp_path / "raw", number)
    broken = tmp_path / "raw/case_00002/imaging.nii.gz"
    good = broken.read_bytes()
    broken.write_bytes(good[:-100])
    with pytest.raises(UserError, match="case_00002"):
        build(tmp_path)
    broken.write_bytes(good)
    target = tmp_path / "kits19"
    before = {p.name: p.stat().st_mtime_ns for p in target.glob("case_0000[01]_x.npy")}
    index = files.index_path(str(target))
    index.write_text(index.read_text() + '{"case": "case_000')  # a kill in the middle of a line
    said = []
    build(tmp_path, said)
    done = {p.name: p.stat().st_mtime_ns for p in target.glob("case_*_x.npy")}
    kept = {line for line in before if done[line] == before[line]}
    assert len(kept) == len(before) >= 1
    assert set(files.read_index(str(target))) == {"case_00000", "case_00001", "case_00002"}
    assert said[-1].startswith("case_0000") and "(3 of 3)" in said[-1]
    again = []
    build(tmp_path, again)
    assert again == []


def test_memory_bounds_what_runs_at_once():
    memory, running, most = builder._Memory(10), [], []
    lock = threading.Lock()

    def work(amount):
        with memory.taken(amount):
            with lock:
                running.append(amount)
                most.append(sum(running))
            for _ in range(1000):
                pass
            with lock:
                running.remove(amount)

    threads = [threading.Thread(target=work, args=(a,)) for a in (4, 4, 4, 4, 30, 4, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 30 in most  # more than there is may run, alone
    assert all(total <= 10 or total == 30 for total in most)


def test_the_tiny_set_is_of_the_same_kind(tmp_path):
    tiny.write(tmp_path / "nifti", 2)
    path = tmp_path / "nifti/case_00001"
    volume = nibabel.load(path / "imaging.nii.gz")
    assert nibabel.aff2axcodes(volume.affine) == ("I", "P", "L")
    assert volume.get_data_dtype() == np.int16
    entry, target = prepare(path, side=16)
    assert min(entry.shape) >= 16 and max(entry.shape) <= 32
    assert set(entry.boxes) == {1, 2}
    assert len(entry.boxes[1]) == 2  # two kidneys
    image = np.load(target / "case_00001_x.npy")
    assert image.min() == pytest.approx((-79 - 101) / 76.9)
    again = tiny.phantom(np.random.default_rng([2019, 1]))[0]
    np.testing.assert_array_equal(again, np.asarray(volume.dataobj))
