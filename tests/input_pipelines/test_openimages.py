"""Open Images: preparation from a COCO-format export, its bad inputs, and the examples read back."""

import io
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from photographs import photograph

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building, images, records, writing
from mlperf_jax.input_pipelines.openimages import (
    OpenImages,
    builder as openimages_builder,
    coco_labels,
    data_set as openimages,
    files,
    tiny,
)

LABELS = "labels/openimages-mlperf.json"
COUNTS = {"train": 5, "validation": 3}
SIZES = dict(max_boxes=6, classes=3)


@pytest.fixture
def export(tmp_path) -> pathlib.Path:
    """A small export of our own scenes."""
    folder = tmp_path / "export"
    tiny.export(str(folder), COUNTS)
    return folder


def read(size=32, **fields):
    return OpenImages(size, **{**SIZES, **fields})


def labels_of(export, split="train"):
    return json.loads((export / split / LABELS).read_text())


def relabel(export, labels, split="train"):
    (export / split / LABELS).write_text(json.dumps(labels))


def prepared(export, name=files.NAME):
    """Prepares an export beside itself and returns the data folder."""
    data = export.parent / "data"
    openimages_builder.write(f"{data}/{name}/{files.VERSION}", str(export), 3)
    return str(data)


def scenes(data, split="train"):
    source = files.open_split(data, split)
    return [source[i] for i in range(len(source))]


# -- the prepared folder ---------------------------------------------------------------------------


def test_images_and_boxes_are_kept_as_exported(export):
    labels = labels_of(export)
    labels["annotations"] += [
        # group, outside, degenerate, and on another image than the one before it
        dict(id=901, image_id=0, category_id=2, bbox=[-4, -4, 500, 500], iscrowd=1),
        dict(id=902, image_id=3, category_id=1, bbox=[10.5, 4, 0, 7], iscrowd=0),
    ]
    labels["images"].reverse()
    relabel(export, labels)
    data = prepared(export)
    assert read().counts(data) == COUNTS
    both = scenes(data) + scenes(data, "validation")
    assert read().maxima(data) == {"boxes": max(len(scene.label) for scene in both)}
    for scene in scenes(data):
        row = next(i for i in labels["images"] if i["id"] == scene.image_id)
        file = export / "train" / "data" / row["file_name"]
        assert bytes(scene.image) == file.read_bytes()
        mine = [a for a in labels["annotations"] if a["image_id"] == scene.image_id]
        assert scene.label.tolist() == [a["category_id"] for a in mine]
        assert scene.crowd.tolist() == [a["iscrowd"] for a in mine]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in mine)]
        np.testing.assert_allclose(scene.boxes, corners)
    facts = files.noted(files.locate(data))["splits"]["train"]
    assert (facts["crowd"], facts["outside"], facts["empty"]) == (1, 1, 1)
    assert facts["boxes"] == len(labels["annotations"])


def test_the_folder_opens_in_tensorflow_datasets(export):
    import tensorflow_datasets as tfds

    folder = files.locate(prepared(export)).folder
    builder = tfds.builder_from_directory(folder)
    assert builder.info.splits["train"].num_examples == 5
    assert str(builder.info.full_name) == "openimages_mlperf/1.0.0"
    assert os.listdir(pathlib.Path(folder).parent) == ["1.0.0"]


def test_an_image_without_a_box_is_kept(export):
    labels = labels_of(export)
    gone = labels["images"][2]["id"]
    labels["annotations"] = [a for a in labels["annotations"] if a["image_id"] != gone]
    relabel(export, labels)
    data = prepared(export)
    assert files.noted(files.locate(data))["splits"]["train"]["without"] == 1
    empty = next(s for s in scenes(data) if s.image_id == gone)
    assert len(empty.label) == 0
    train = read().train(data)
    example = train.transforms[0].random_map(empty, np.random.default_rng(0))
    assert (example["label"] == openimages.PADDING).all()


def test_a_killed_build_goes_on_where_it_stopped(export, monkeypatch):
    monkeypatch.setattr(openimages_builder, "PER_SHARD", 2)
    written, write = [], openimages_builder._write_shard

    def killed(split, shard, path):
        if len(written) == 2:
            (path.parent / f"incomplete.{path.name}").write_bytes(b"half")
            raise KeyboardInterrupt
        write(split, shard, path)
        written.append(path.name)

    monkeypatch.setattr(openimages_builder, "_write_shard", killed)
    monkeypatch.setattr(building.os, "cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        prepared(export)
    data = export.parent / "data"
    assert records.prepared(f"{data}/{files.NAME}/{files.VERSION}") is None
    later = []
    monkeypatch.setattr(
        openimages_builder, "_write_shard", lambda *job: (write(*job), later.append(job[2].name))
    )
    prepared(export)
    assert len(written) == 2
    assert len(later) == 3  # of three and two shards
    assert not set(written) & set(later)
    assert [len(scenes(data, split)) for split in COUNTS] == [5, 3]
    ids = sorted(scene.image_id for scene in scenes(data))
    assert ids == [0, 1, 2, 3, 4]


def test_a_build_begun_from_other_labels_starts_over(export, monkeypatch):
    work = export.parent / "data" / files.NAME / f"incomplete.{files.VERSION}"
    work.mkdir(parents=True)
    (work / building.SETTINGS).write_text('{"labels": "of something else"}')
    name = f"{files.NAME}-train.array_record-00000-of-00001"
    (work / name).write_bytes(b"old")
    assert len(scenes(prepared(export))) == 5


def test_build_is_done_once(export):
    data = prepared(export)
    info = pathlib.Path(files.locate(data).folder, "dataset_info.json")
    stamp = info.stat().st_mtime_ns
    shutil.rmtree(export)
    read().build(data)
    assert info.stat().st_mtime_ns == stamp


# -- bad input -------------------------------------------------------------------------------------


def duplicate(labels, kind, field):
    labels[kind][1][field] = labels[kind][0][field]


def set_first(labels, kind, **fields):
    labels[kind][0] |= fields


BAD = {
    "ids from 1": (
        lambda x: [c.update(id=c["id"] + 1) for c in x["categories"]],
        r"category ids run from 1 to 3; expected 0 to 2.*export with 0.15.1",
    ),
    "too few categories": (lambda x: x["categories"].pop(), r"2 categories .*expected 3"),
    "image id twice": (lambda x: duplicate(x, "images", "id"), r"the image id 0 comes twice"),
    "file twice": (lambda x: duplicate(x, "images", "file_name"), r"file name .* comes twice"),
    "annotation id twice": (
        lambda x: duplicate(x, "annotations", "id"),
        r"the annotation id 1 comes twice \(1 such\)",
    ),
    "category": (lambda x: set_first(x, "annotations", category_id=3), r"category 3; .*0\.\.2"),
    "image": (lambda x: set_first(x, "annotations", image_id=77), r"annotation 1 lies on image 77"),
    "box": (lambda x: set_first(x, "annotations", bbox=[1, 2, 3]), r"annotation 1 .*four finite"),
    "nan": (lambda x: set_first(x, "annotations", bbox=[1, 2, 3, float("nan")]), r"four finite"),
    "no image": (lambda x: x.update(images=[]), "lists no images"),
    "no box": (lambda x: x.update(annotations=[]), "holds no annotations"),
    "outside": (lambda x: set_first(x, "images", file_name="../a.jpg"), "names without folders"),
    "absent": (lambda x: set_first(x, "images", file_name="no.jpg"), r"lacks 1 of the 5 .*no.jpg"),
    "size": (lambda x: set_first(x, "images", width=9), r"scene_0000.jpg is .*labels are for 9 x"),
    "text id": (lambda x: set_first(x, "images", id="0"), r"has the id '0'; expected int"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_labels_are_refused(export, what):
    spoil, message = BAD[what]
    labels = labels_of(export)
    spoil(labels)
    relabel(export, labels)
    with pytest.raises(UserError, match=message):
        prepared(export)
    assert records.prepared(f"{export.parent}/data/{files.NAME}/1.0.0") is None


def test_damaged_files_are_named(export):
    first = export / "train" / "data" / "scene_0000.jpg"
    whole = first.read_bytes()
    first.write_bytes(whole[:-40])
    with pytest.raises(UserError, match=r"scene_0000.jpg: truncated JPEG.*fetch it again"):
        prepared(export)
    first.write_bytes(whole)
    (export / "train" / LABELS).write_text('{"images": [{"id": 1, ')
    with pytest.raises(
        UserError, match=r"openimages-mlperf.json is no COCO-format JSON: the file ends"
    ):
        prepared(export)
    shutil.rmtree(export / "validation")
    tiny.export(str(export.parent / "again"), {"train": 2})
    shutil.copytree(export.parent / "again" / "train", export / "train", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"validation/labels/openimages-mlperf.json is missing"):
        prepared(export)


def test_missing_data_says_how_to_get_it(tmp_path):
    for call in (read().train, read().validation, read().counts, read().maxima):
        with pytest.raises(UserError, match=r"FiftyOne 0.15.1.*data build retinanet --data-dir"):
            call(tmp_path)
    with pytest.raises(UserError, match=r"no Open Images in .*352 GB"):
        read().build(tmp_path)
    with pytest.raises(UserError, match=r"openimages_mlperf_tiny/1.0.0.*--tiny"):
        read(tiny=True).counts(tmp_path)


def test_too_many_boxes_are_never_cut(export):
    labels = labels_of(export)
    extra = [
        dict(id=900 + i, image_id=1, category_id=0, bbox=[1, 1, 9, 9], iscrowd=0) for i in range(6)
    ]
    relabel(export, labels | {"annotations": labels["annotations"] + extra})
    data = prepared(export)
    assert read().maxima(data)["boxes"] > 6
    with pytest.raises(UserError, match=r"record \d+: image 1 has \d boxes and max_boxes is 6"):
        read().train(data).batched(5)[0]
    with pytest.raises(UserError, match=r"box of class \d; classes are 0\.\.0"):
        read(max_boxes=20, classes=1).train(data).batched(5)[0]


def test_check_reports(export):
    data = prepared(export)
    report = read().check(data)
    assert any("train has 5 images, openimages_mlperf has 1,170,301" in line for line in report)
    assert "train: decoded 2 images, 0 with problems" in report


# -- examples --------------------------------------------------------------------------------------


def scene_of(pixels, boxes, label):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    out = io.BytesIO()
    from PIL import Image

    Image.fromarray(pixels).save(out, "PNG")
    crowd = np.zeros(len(label), np.uint8)
    return files.Scene(out.getvalue(), 7, boxes, np.array(label, np.int32), crowd)


class Draws:
    """A generator whose only draw is known: below 0.5 mirrors."""

    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value


@pytest.mark.parametrize("mirror", [False, True])
def test_training_clips_mirrors_and_drops_empty_boxes(mirror):
    pixels = photograph(np.random.default_rng(0), 40, 60)
    given = [[10, 5, 30, 35], [-8, 30, 20, 50], [5, 5, 5, 9], [70, 1, 90, 9]]
    form = openimages.EvalScene(24, **SIZES)
    scene = scene_of(pixels, given, [0, 1, 2, 0])
    example = openimages.TrainScene(form).random_map(scene, Draws(0.4 if mirror else 0.6))
    wanted = [[10, 5, 30, 35], [0, 30, 20, 40]]
    if mirror:
        wanted = [[30, 5, 50, 35], [40, 30, 60, 40]]
    np.testing.assert_array_equal(example["boxes"][:2], wanted)
    np.testing.assert_array_equal(example["label"], [0, 1, -1, -1, -1, -1])
    np.testing.assert_array_equal(example["size"], [40, 60])
    plain = form.map(scene)
    np.testing.assert_array_equal(plain["boxes"][:4], given)
    image = plain["image"][:, ::-1] if mirror else plain["image"]
    np.testing.assert_allclose(example["image"], image, atol=1e-4)
    unflipped = openimages.TrainScene(form, flip=False).random_map(scene, Draws(0.0))
    np.testing.assert_array_equal(unflipped["boxes"][0], given[0])


@pytest.mark.parametrize(
    "box", [[1, 2, np.nan, 9], [1, 2, 9, np.inf], [9, 2, 1, 9], [1, 2, 121, 9], [1, -41, 2, 9]]
)
def test_a_box_that_nobody_can_have_drawn_is_refused(box):
    pixels = photograph(np.random.default_rng(0), 40, 60)
    form = openimages.EvalScene(24, **SIZES)
    scene = scene_of(pixels, [[1, 2, 3, 4], box], [0, 1])
    for example in (form.map, lambda s: openimages.TrainScene(form).random_map(s, Draws(0.6))):
        with pytest.raises(UserError, match=r"image 7 of 60 x 40 pixels has box 1 from .*none can"):
            example(scene)


def rewritten(export, **changes):
    """The folder of an export whose one record of validation has other features."""
    data = prepared(export)
    folder = pathlib.Path(data, files.NAME, files.VERSION)
    path = next(folder.glob("*-validation.array_record-*"))
    first = records.Records([records.Shard(str(path), path.stat().st_size, 3)])[0]
    example = records.parse_example(first)
    message = {k: v if isinstance(v, int) else bytes(v) for k, v in example.items()} | changes
    path.unlink()
    writing.write_shard(path, [writing.message(message)] * 3)
    return data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crowd": b"\7", "label": bytes(4), "boxes": bytes(16)}, "crowd flag 7; it is 0 or 1"),
        ({"image_id": -1}, "an image has the id -1"),
        ({"boxes": 3}, "the record's 'boxes' is not bytes"),
        ({"boxes": bytes(15)}, "buffer size must be a multiple"),
        ({"label": bytes(400)}, "boxes, 100 labels"),
    ],
)
def test_a_damaged_record_is_named(export, changes, message):
    data = rewritten(export, **changes)
    with pytest.raises(UserError, match=rf"-validation\S+, record 0: .*{message}"):
        read().validation(data).batched(3)[0]


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"splits": {"train": []}, "categories": []}', '{"splits": 3', "null"]
)
def test_damaged_notes_are_one_sentence(export, text):
    data = prepared(export)
    pathlib.Path(data, files.NAME, files.VERSION, "metadata.json").write_text(text)
    for call in (read().maxima, read().class_names, read().check):
        with pytest.raises(UserError, match=r"metadata.json.*build it again"):
            call(data)


def test_half_of_the_images_are_mirrored(export):
    train = read(8).train(prepared(export))
    scene = train.source[0]
    (augment,) = train.transforms
    plain = augment.form.map(scene)["boxes"][0, 0]
    given = [augment.random_map(scene, np.random.default_rng(i)) for i in range(200)]
    moved = [example["boxes"][0, 0] for example in given]
    assert 70 < sum(x != plain for x in moved) < 130


def resize_slowly(pixels, size):
    """Bilinear, half-pixel centres, no antialiasing: torch's interpolate."""

    def neighbours(length):
        at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, None)
        low = np.floor(at).astype(int).clip(max=length - 1)
        return low, np.minimum(low + 1, length - 1), at - low

    (top, bottom, down), (left, right, along) = map(neighbours, pixels.shape[:2])
    x = pixels.astype(np.float64)
    columns = x[:, left] + (x[:, right] - x[:, left]) * along[:, None]
    return columns[top] + (columns[bottom] - columns[top]) * down[:, None, None]


@pytest.mark.parametrize("shape", [(40, 60), (13, 90), (9, 7)])
def test_images_are_stretched_as_torch_does_and_normalised(shape):
    pixels = photograph(np.random.default_rng(1), *shape)
    wanted = resize_slowly(pixels, 24)
    np.testing.assert_allclose(openimages.stretch(pixels, 24), wanted, atol=2e-3)
    example = openimages.EvalScene(24, **SIZES).map(scene_of(pixels, [], []))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    np.testing.assert_allclose(example["image"], (wanted / 255 - mean) / std, atol=1e-4)


def test_batches_do_not_depend_on_threads_or_rows(export):
    train = read(16).train(prepared(export))
    whole = train.batched(4, seed=1)[3]
    parts = [
        next(train.batched(4, seed=1, share=lambda rows, r=r: r).stream(3, threads=t))
        for t, r in ((1, (0, 3)), (2, (3, 4)))
    ]
    for name, value in whole.items():
        np.testing.assert_array_equal(value, np.concatenate([part[name] for part in parts]))
    assert (
        train.steps_per_epoch(4) == 1
    )  # the remainder is dropped, as on each of the reference's ranks


# -- scenes and JSON -------------------------------------------------------------------------------


def test_scenes_have_tight_boxes_inside_the_image():
    kinds = set()
    for seed in range(20):
        pixels, shapes = tiny.scene(np.random.default_rng(seed))
        assert 1 <= len(shapes) <= 3
        for kind, (x, y, w, h) in shapes:
            kinds.add(kind)
            assert 0 <= x < x + w <= pixels.shape[1]
            assert 0 <= y < y + h <= pixels.shape[0]
            inside = pixels[y : y + h, x : x + w].astype(int)
            drawn = (abs(inside - 128) > 80).all(-1)  # the noise stays nearer to grey
            assert drawn.any(0)[[0, -1]].all()
            assert drawn.any(1)[[0, -1]].all()
    assert kinds == {0, 1, 2}


@pytest.mark.parametrize("chunk", [1, 7, 64, 4096])
def test_json_is_read_element_by_element(chunk):
    whole = {
        "info": {"a": [1, 2]},
        "images": [{"id": i, "n": 'é"]},' * i} for i in range(5)],
        "empty": [],
        "numbers": [1, -2.5e3, 123456789],
        "last": None,
    }
    for indent in (None, 2):
        found: dict = {}
        for key, value in coco_labels.elements(
            io.StringIO(json.dumps(whole, indent=indent)), chunk
        ):
            found.setdefault(key, []).append(value)
        assert found["images"] == whole["images"]
        assert found["numbers"] == whole["numbers"]
        assert found["info"] == [whole["info"]]
        assert found["last"] == [None]
        assert "empty" not in found


@pytest.mark.parametrize("text", ["", "[1]", '{"a": [1, 2', '{"a" 1}', '{"a": [1 2]}', '{"a": x}'])
def test_what_is_not_json_is_refused(text):
    with pytest.raises(ValueError, match=r"expected|ends early|Expecting"):
        list(coco_labels.elements(io.StringIO(text), 4))


def test_images_that_are_no_jpeg_are_kept_as_they_are(export):
    from PIL import Image

    file = export / "train" / "data" / "scene_0001.jpg"
    pixels = images.decode(file.read_bytes())
    Image.fromarray(pixels).save(file, "PNG")
    scene = next(s for s in scenes(prepared(export)) if s.image_id == 1)
    np.testing.assert_array_equal(images.decode(scene.image), pixels)
