"""ImageNet as prepared records and as class folders, the builder, and the tiny twin."""

import concurrent.futures
import io
import os
import pathlib
import shutil
import tarfile

import numpy as np
import pytest
from photographs import photograph

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import images, records, writing
from mlperf_jax.input_pipelines.imagenet import ImageNet, files

TINY = ImageNet(32, 0.6, False, classes=10, tiny=True)


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture(scope="module")
def prepared_dir(class_folders, tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("prepared"))
    ImageNet().build(folder, class_folders)
    return folder


def by_image(source):
    return {bytes(source[i].image): i for i in range(len(source))}


def test_tiny_set_trains_and_evaluates(tiny_dir):
    assert TINY.counts(tiny_dir) == {"train": 1437, "validation": 360}
    train = TINY.train(tiny_dir)
    assert len(train) == 1437
    assert train.steps_per_epoch(64) == 22
    batch = next(train.batched(64).stream(threads=2))
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "image": ((64, 32, 32, 3), "float32"),
        "label": ((64,), "int32"),
    }
    assert set(batch["label"]) == set(range(10))
    assert 50 < batch["image"].std() < 130
    validation = TINY.validation(tiny_dir)
    masks = np.concatenate([b["mask"] for b in validation.batched(100).stream(threads=2)])
    assert masks.sum() == 360
    assert len(masks) == 400


def test_tiny_splits_are_disjoint_digits(tiny_dir):
    names = {}
    for split in ("train", "validation"):
        shards = records.prepared(files.locate(tiny_dir, tiny=True)).shards(split)
        raw = records.Records(shards)
        examples = [records.parse_example(raw[i]) for i in range(len(raw))]
        names[split] = {bytes(e["file_name"]).decode() for e in examples}
        assert np.bincount([e["label"] for e in examples]).min() > len(raw) / 20
    assert len(names["train"]) == 1437
    assert len(names["train"] | names["validation"]) == 1797


def test_batches_of_images_do_not_depend_on_threads_or_rows(tiny_dir):
    train = ImageNet(32, tiny=True).train(tiny_dir)
    whole = train.batched(20, seed=1)[71]  # runs across an epoch
    parts = [
        next(train.batched(20, seed=1, share=lambda rows, r=r: r).stream(71, threads=t))
        for t, r in ((1, (0, 7)), (3, (7, 20)))
    ]
    for name, value in whole.items():
        np.testing.assert_array_equal(value, np.concatenate([p[name] for p in parts]))


def test_class_folders_and_records_hold_the_same_examples(class_folders, prepared_dir):
    data = ImageNet(48)
    for split, make in (("train", data.train), ("validation", data.validation)):
        folder, prepared = make(class_folders), make(prepared_dir)
        assert len(folder) == len(prepared) == {"train": 7, "validation": 5}[split]
        at = by_image(prepared.source)
        # Class folders label by their own alphabet, prepared ones by all 1,000 classes of ImageNet.
        for i in range(len(folder)):
            record = folder.source[i]
            twin = prepared.source[at[record.image]]
            assert record.label == twin.label
            given = ((folder.transforms[0], record), (prepared.transforms[0], twin))
            if split == "train":
                left, right = (t.random_map(r, np.random.default_rng(5)) for t, r in given)
            else:
                left, right = (t.map(r) for t, r in given)
            np.testing.assert_array_equal(left["image"], right["image"])


def test_the_folder_is_the_stock_one(prepared_dir, tmp_path):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as stock

    theirs = stock.Builder(data_dir=tmp_path, file_format="array_record")
    theirs.info.features.save_config(tmp_path)
    folder = pathlib.Path(files.locate(prepared_dir))
    for name in ("features.json", "label.labels.txt"):
        assert (folder / name).read_text() == (tmp_path / name).read_text()
    assert str(theirs.info.full_name) == "/".join(folder.parts[-2:]) == "imagenet2012/5.1.0"
    builder = tfds.builder_from_directory(folder)
    example = builder.as_data_source("train")[0]
    assert example["image"].dtype == np.uint8
    assert builder.info.features["label"].int2str(int(example["label"])).startswith("n0144")


def test_official_tars(tmp_path, class_folders):
    """Nested tars, labels from the stock list, PNG and CMYK files converted."""
    from PIL import Image

    image = photograph(np.random.default_rng(0), 60, 70)
    odd = io.BytesIO(), io.BytesIO()
    Image.fromarray(image).save(odd[0], "PNG")
    Image.fromarray(image).convert("CMYK").save(odd[1], "JPEG", quality=95)
    plain = images.encode_jpeg(image, 90)
    classes = {
        "n01440764.tar": tar_of({"n01440764_1.JPEG": plain, "n01440764_2.JPEG": odd[0].getvalue()}),
        "n15075141.tar": tar_of({"n15075141_3.JPEG": odd[1].getvalue()}),
    }
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_of(classes))
    with pytest.raises(UserError, match=r"ILSVRC2012_img_val.tar is missing"):
        ImageNet().build(tmp_path)
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in (3, 1, 2)]
    val = tar_of({name: images.encode_jpeg(image[i:], 90) for i, name in enumerate(names)})
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(val)
    ImageNet().build(tmp_path)
    assert ImageNet().counts(tmp_path) == {"train": 3, "validation": 3}
    source = ImageNet().train(tmp_path).source
    assert sorted(source[i].label for i in range(3)) == [0, 0, 999]
    for i in range(3):
        assert images.jpeg_header(source[i].image).components == 3
        decoded = images.decode(source[i].image).astype(int)
        assert abs(decoded - image).mean() < 8
    # The stock list begins n01751748, n09193705, n02105855: labels 65, 970, 230.
    source = ImageNet().validation(tmp_path).source
    labels = {images.jpeg_header(source[i].image).height: source[i].label for i in range(3)}
    assert labels == {60: 230, 59: 65, 58: 970}
    assert os.listdir(tmp_path / "imagenet2012") == ["5.1.0"]


def test_damaged_tar_and_image_stop_the_build(tmp_path, class_folders):
    plain = images.encode_jpeg(photograph(np.random.default_rng(0), 60, 70), 90)
    good = {"n01440764_1.JPEG": plain}
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(tar_of(good))
    train = tmp_path / "ILSVRC2012_img_train.tar"
    train.write_bytes(tar_of({"n01440764.tar": tar_of(good)})[:2000])
    with pytest.raises(UserError, match=r"img_train.tar.*fetch it again"):
        ImageNet().build(tmp_path)
    train.write_bytes(tar_of({"n01440764.tar": tar_of({"n01440764_1.JPEG": b"no image"})}))
    with pytest.raises(UserError, match=r"n01440764_1.JPEG: 8 bytes that are no JPEG"):
        ImageNet().build(tmp_path)
    assert files.find_prepared(str(tmp_path)) is None


def test_build_is_done_once_and_clears_what_a_killed_one_left(tmp_path, tiny_dir, class_folders):
    folder = pathlib.Path(files.locate(tiny_dir, tiny=True))
    stamp = (folder / "dataset_info.json").stat().st_mtime_ns
    TINY.build(tiny_dir)
    assert (folder / "dataset_info.json").stat().st_mtime_ns == stamp
    leftovers = {TINY: "incomplete.5.1.0", ImageNet(): "incomplete.ABC123_5.1.0"}
    for data, name in leftovers.items():
        kind = tmp_path / (files.TINY_NAME if data.tiny else files.NAME)
        (kind / name).mkdir(parents=True)
        (kind / name / "half.array_record").write_bytes(b"half")
        data.build(tmp_path, None if data.tiny else class_folders)
        assert [p.name for p in kind.iterdir()] == ["5.1.0"]
    ours, theirs = (
        records.Records(records.prepared(files.locate(d, tiny=True)).shards("train"))
        for d in (tmp_path, tiny_dir)
    )
    assert all(ours[i] == theirs[i] for i in range(0, 1437, 50))


def test_builds_at_the_same_time_do_not_disturb_each_other(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: TINY.build(tmp_path), range(2)))
    assert os.listdir(tmp_path / files.TINY_NAME) == ["5.1.0"]
    assert TINY.counts(tmp_path) == {"train": 1437, "validation": 360}


def test_check_reports(tiny_dir, class_folders, tmp_path):
    report = TINY.check(tiny_dir)
    assert not [line for line in report if line.startswith("problem")]
    assert any("1,437 images of 10 classes in 1 shards" in line for line in report)
    raw = tmp_path / "raw"
    shutil.copytree(class_folders, raw)
    bad = sorted((raw / "train" / "n01443537").iterdir())[0]
    bad.write_bytes(bad.read_bytes()[:-300])
    report = ImageNet().check(raw)
    assert any(line == "problem: train has 7 images, imagenet2012 has 1,281,167" for line in report)
    assert any(line.startswith(f"problem: {bad}: truncated JPEG") for line in report)


def test_missing_data_says_how_to_get_it(tmp_path):
    data = ImageNet()
    for call in (
        data.train,
        data.validation,
        data.counts,
        data.class_names,
        data.check,
        data.build,
    ):
        with pytest.raises(
            UserError, match=r"image-net\.org.*mlperf-jax data build resnet --data-dir"
        ):
            call(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"imagenet2012_tiny/5.1.0.*--tiny"):
        TINY.counts(tmp_path)


def test_bad_class_folders(tmp_path, class_folders):
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"holds no images: expected .*train/<class>"):
        ImageNet().train(tmp_path)
    with pytest.raises(UserError, match="has no folder val or validation"):
        ImageNet().validation(tmp_path)
    shutil.copytree(f"{class_folders}/val", tmp_path / "validation")
    with pytest.raises(UserError, match="has the class 'n01440764'"):
        ImageNet().validation(tmp_path)


def test_bad_records_name_shard_and_record(class_folders, prepared_dir, tiny_dir, tmp_path):
    shutil.copytree(class_folders, tmp_path / "raw")
    bad = sorted((tmp_path / "raw" / "val" / "n01484850").iterdir())[0]
    bad.write_bytes(bad.read_bytes()[:900])
    with pytest.raises(UserError, match=rf"{bad.name}: truncated JPEG: 900 bytes"):
        list(ImageNet(32).validation(tmp_path / "raw").batched(4).stream(threads=2))
    message = (
        r"imagenet2012_tiny-train.array_record-00000-of-00001, record \d+: label \d is outside 0..3"
    )
    with pytest.raises(UserError, match=message):
        ImageNet(32, classes=4, tiny=True).train(tiny_dir).batched(64)[0]
    with pytest.raises(UserError, match="'mean'"):
        ImageNet(normalise="mean")


def test_locate_prefers_what_is_asked_for(tiny_dir, class_folders):
    assert files.locate(class_folders) == class_folders
    assert files.locate(f"{tiny_dir}/", tiny=True).startswith(tiny_dir)
    with pytest.raises(UserError, match=r"no ImageNet in"):
        files.locate(tiny_dir)


def hide(folder):
    shutil.copy(next((folder / "n01443537").iterdir()), folder / "n01443537" / "._x.JPEG")
    return r"n01443537/\._x.JPEG is a hidden file"


def add_class(folder):
    (folder / "lost+found").mkdir()
    return r"lost\+found holds no image, and as a class it would move the labels"


def empty(folder):
    (folder / "n01484850" / "a.JPEG").touch()
    return r"n01484850/a.JPEG is empty and no image"


def nest(folder):
    (folder / "n01484850" / "a.jpg").mkdir()
    return r"n01484850/a.jpg is a folder and no image"


@pytest.mark.parametrize("spoil", [hide, add_class, empty, nest])
def test_what_would_move_labels_or_count_as_an_image_is_named(tmp_path, class_folders, spoil):
    raw = tmp_path / "raw"
    shutil.copytree(class_folders, raw)
    message = spoil(raw / "train")
    data = ImageNet(32)
    for call in (data.train, data.counts, lambda folder: data.build(tmp_path / "made", folder)):
        with pytest.raises(UserError, match=message):
            call(raw)
    (named,) = [line for line in data.check(raw) if "take it away" in line]
    assert named.startswith("problem: ")
    assert not (tmp_path / "made" / files.NAME / "5.1.0").exists()


def test_a_label_that_is_no_number_names_its_record(tmp_path):
    TINY.build(tmp_path)
    folder = tmp_path / files.TINY_NAME / files.VERSION
    path = next(folder.glob("*-validation.array_record-*"))
    example = {"image": images.encode_jpeg(np.zeros((40, 40, 3), np.uint8), 90), "label": b"3"}
    path.unlink()
    writing.write_shard(path, [writing.message(example)] * 360)
    with pytest.raises(UserError, match=r"-validation.*, record \d+: the record's 'label' is not"):
        TINY.validation(tmp_path).batched(8)[0]
