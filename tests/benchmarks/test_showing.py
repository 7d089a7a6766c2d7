"""`show`: which samples are drawn, with which names, and what is refused before any work is done."""

import dataclasses
import sys

import numpy as np
import optax
import pytest

from mlperf_jax import benchmarks, cli, pictures
from mlperf_jax.benchmarks import showing
from mlperf_jax.cli import show
from mlperf_jax.core import mesh as meshes, state as states, trained
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import images
from mlperf_jax.input_pipelines.imagenet import ImageNet

Image = pytest.importorskip("PIL.Image")

PICTURED = ("resnet", "unet3d", "retinanet", "stable_diffusion")


@pytest.fixture
def batch_of(tiny_data):
    """(name, what `showing.Wanted` takes) -> the benchmark and the batch that `show` draws."""

    def get(name, **wanted):
        benchmark = benchmarks.get(name, tiny=True)
        return benchmark, showing.chosen(benchmark, tiny_data(name), showing.Wanted(**wanted))

    return get


@pytest.fixture(scope="module")
def run_of_one_step(tiny_data, tmp_path_factory):
    """The folder of a run of a small resnet."""
    folder = tmp_path_factory.mktemp("resnet")
    where = dict(data_dir=tiny_data("resnet"), output=str(folder), mesh="data=1", seed=1)
    small = dict(width=2, batch_size=16, bn_span=16)
    benchmarks.run("resnet", tiny=True, max_samples=16, show="none", **small, **where)
    return folder


def untrained(name, **fields):
    """Fresh weights in the place of trained ones."""
    benchmark = benchmarks.get(name, tiny=True, dtype="float32", **fields)
    assembly = states.assemble(benchmark, meshes.make_mesh("data=1"), optax.identity())
    view = assembly.eval_view(assembly.create(1))
    return trained.Trained(
        benchmark=benchmark,
        model=assembly.eval_model(view),
        step=0,
        quality=None,
        seed=1,
        assembly=assembly,
        view=view,
        find_data=str,
    )


def test_who_has_pictures():
    classes = {name: benchmarks.benchmark_class(name) for name in benchmarks.names()}
    assert {n for n, cls in classes.items() if "pictures" not in cls.absent} == set(PICTURED)
    for name, cls in classes.items():
        assert (name in PICTURED) == (cls.picture is not Benchmark.picture)
        assert (name in PICTURED) == (cls.find is not Benchmark.find)
    with pytest.raises(UserError, match="gpt3 has no pictures"):
        benchmarks.get("gpt3").picture({})


@pytest.mark.parametrize("name", PICTURED)
def test_no_field_is_named_like_an_option_of_show(name):
    fields = {field.name for field in dataclasses.fields(benchmarks.benchmark_class(name))}
    assert not fields & {option.name for option in show.SHOW_OPTIONS}


# -- which samples -----------------------------------------------------------------------------------


def test_evaluation_samples_are_of_the_whole_split(batch_of, tiny_data):
    _, batch = batch_of("resnet", samples=6, seed=3)
    every = ImageNet(32, tiny=True).validation(tiny_data("resnet"))
    whole = every.batched(len(every))[0]
    at = [int(np.flatnonzero((whole["image"] == one).all((1, 2, 3)))[0]) for one in batch["image"]]
    assert at == sorted(at) and len(set(at)) == 6 and at[-1] > len(every) // 2
    np.testing.assert_array_equal(batch["label"], whole["label"][at])
    assert set(batch) == {"image", "label"}, "no mask"
    np.testing.assert_array_equal(batch_of("resnet", samples=6, seed=3)[1]["image"], batch["image"])
    assert (batch_of("resnet", samples=6)[1]["image"] != batch["image"]).any()


def test_training_samples_are_those_of_the_first_batch(batch_of, tiny_data):
    """Augmented: the same record looks otherwise with another seed."""
    benchmark, batch = batch_of("resnet", samples=5, split="train", seed=7)
    first = benchmark.data().train(tiny_data("resnet")).batched(5, seed=7)[0]
    np.testing.assert_array_equal(batch["image"], first["image"])


def test_no_more_samples_than_there_are(batch_of):
    _, batch = batch_of("unet3d", samples=100)
    assert len(batch["image"]) == 8
    _, batch = batch_of("unet3d")
    assert len(batch["image"]) == 3


def test_a_damaged_record_is_named(tiny_data, monkeypatch):
    benchmark = benchmarks.get("resnet", tiny=True)

    def broken(data):
        raise images.ImageError("no image")

    monkeypatch.setattr(images, "decode", broken)
    with pytest.raises(UserError, match=r"validation.*record \d+.*no image"):
        showing.chosen(benchmark, tiny_data("resnet"), showing.Wanted(samples=2))


# -- names and colours -------------------------------------------------------------------------------


def test_class_names_are_those_of_the_data(tiny_data, tmp_path):
    for name, wanted in (
        ("resnet", tuple("0123456789")),
        ("unet3d", ("kidney", "tumour")),
        ("retinanet", ("disc", "square", "triangle")),
    ):
        assert benchmarks.get(name, tiny=True).data().class_names(tiny_data(name)) == wanted
    for split in ("train", "val"):
        for kind in ("n02", "n01"):
            folder = tmp_path / split / kind
            folder.mkdir(parents=True)
            (folder / "a.JPEG").write_bytes(images.encode_jpeg(np.zeros((8, 8, 3), np.uint8), 90))
    assert benchmarks.get("resnet").data().class_names(str(tmp_path)) == ("n01", "n02")


@pytest.mark.parametrize("how", ["reference", "imagenet_std"])
def test_pixels_are_what_they_were_before_they_were_normalised(how):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    normalised = images.normalise(pixels.astype(np.float32), how)
    np.testing.assert_array_equal(images.denormalise(normalised[None], how)[0], pixels)


def test_colours_are_those_of_the_images(batch_of):
    colour = (200, 100, 50)
    for name, how in (("resnet", "reference"), ("retinanet", "imagenet_std")):
        benchmark, batch = batch_of(name, samples=1)
        plain = np.full(batch["image"].shape[1:], colour, np.float32)
        batch["image"] = images.normalise(plain, how)[None]
        if name == "retinanet":
            batch["label"] = np.full_like(batch["label"], -1)
        assert benchmark.picture(batch).getpixel((40, 40)) == colour


def test_labels_are_drawn_under_their_names(batch_of, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "labelled", lambda images, words, **_: drawn.append(words))
    benchmark, batch = batch_of("resnet", samples=3)
    benchmark.picture(batch, [f"digit {k}" for k in range(10)])
    assert drawn == [[f"digit {k}" for k in batch["label"]]]


# -- pictures of data and of runs ----------------------------------------------------------------------


def test_pictures_of_samples_and_of_a_run(tiny_data, run_of_one_step, tmp_path, capsys):
    run, settings = run_of_one_step, dict(samples=2, data_dir=tiny_data("resnet"))
    for split in ("eval", "train"):
        alone = benchmarks.show("resnet", tiny=True, split=split, **settings)
        both = benchmarks.show("resnet", run=run, split=split, **settings)
        assert both.size == (alone.width, alone.height + pictures._LINE)
        inner = [np.asarray(one)[-100:-40, 20:90] for one in (alone, both)]  # no frame, no word
        np.testing.assert_array_equal(*inner)
    argv = ["show", "resnet", "--run", run, "--samples", "2", "--output", tmp_path / "a.png"]
    capsys.readouterr()
    assert cli.main([str(word) for word in argv]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/a.png\n"
    kept = Image.open(tmp_path / "a.png")
    np.testing.assert_array_equal(kept, benchmarks.show("resnet", run=run, samples=2))


def test_the_classes_found_are_those_that_are_scored(run_of_one_step, tiny_data):
    model = benchmarks.load(run_of_one_step, mesh="data=1")
    batch = showing.chosen(model.benchmark, tiny_data("resnet"), showing.Wanted(samples=9))
    right = np.asarray(model.apply(model.benchmark.find, batch)) == batch["label"]
    np.testing.assert_array_equal(right, model.predict(batch))


def test_the_voxels_found_are_those_that_are_scored(tiny_data):
    model = untrained("unet3d", filters=(2, 2))
    batch = showing.chosen(model.benchmark, tiny_data("unet3d"), showing.Wanted(samples=2))
    found = np.asarray(model.apply(model.benchmark.find, batch))
    counts = np.asarray(model.predict(batch))  # [2, 3, 2]
    real = batch["label"] != pictures.IGNORED
    for kind in (1, 2):
        both = ((found == kind) & (batch["label"] == kind)).sum((1, 2, 3))
        np.testing.assert_array_equal(counts[:, 0, kind - 1], both)
        predicted = ((found == kind) & real).sum((1, 2, 3))
        np.testing.assert_array_equal(counts[:, 1, kind - 1], predicted)
    three, two = (model.benchmark.picture(batch, ("a", "b"), each) for each in (found, None))
    assert three.height > 1.3 * two.height


def test_a_training_patch_is_a_volume_of_one_window(tiny_data):
    model = untrained("unet3d", filters=(2, 2))
    wanted = showing.Wanted(samples=2, split="train")
    batch = showing.chosen(model.benchmark, tiny_data("unet3d"), wanted)
    found = model.apply(model.benchmark.find, batch)
    plain = model.apply(lambda unet, batch: unet(batch["image"]).argmax(-1), batch)
    np.testing.assert_array_equal(found, plain)


def test_boxes_found_are_those_that_are_scored(batch_of):
    """In pixels of the original image, drawn over it in its own shape and colours."""
    benchmark, batch = batch_of("retinanet", samples=2)
    rows = len(batch["label"][0])
    found = {
        "boxes": batch["boxes"],
        "scores": np.ones((2, rows)),
        "classes": np.where(batch["label"] >= 0, batch["label"], -1),
    }
    names = ("disc", "square", "triangle")
    picture = np.asarray(benchmark.picture(batch, names, found))
    truth = np.asarray(benchmark.picture(batch, names))
    height, width = batch["size"][0]
    scale = 300 / max(height, width)
    _, y0, x1, y1 = (int(v * scale) + pictures._GAP for v in batch["boxes"][0, 0])
    right = int(width * scale) + pictures._GAP  # to the picture beside it
    tint = pictures.COLOURS[batch["label"][0, 0]]
    middle = (y0 + y1) // 2
    for shift in (0, right):
        assert (np.abs(picture[middle, x1 - 3 + shift : x1 + 4 + shift] - tint) == 0).all(1).any()
    assert truth.shape[1] < picture.shape[1]


def test_the_file_has_a_name_of_its_own(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = [
        "show",
        "resnet",
        "--tiny",
        "--samples",
        "3",
        "--split",
        "train",
        "--min-crop-area",
        "0.2",
    ]
    assert cli.main([*argv, "--data-dir", tiny_data("resnet")]) == 0
    assert capsys.readouterr().out == "resnet-train.png\n"
    assert Image.open("resnet-train.png").size == (3 * 96 + 4 * 6, 96 + 18 + 2 * 6)


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("gpt3", {"tiny": True}, "no pictures of gpt3; there are of resnet, unet3d, retinanet"),
        ("resnt", {}, "did you mean 'resnet'"),
        ("resnet", {"samples": 0}, "samples must be a whole number, at least 1, or None"),
        ("resnet", {"seed": -1}, "seed must be a whole number, from 0"),
        ("resnet", {"split": "validation"}, "split must be train or eval"),
        ("resnet", {"output": "a.gif"}, "must end in .png"),
        ("resnet", {"output": "no/such/folder/a.png"}, "there is no folder"),
        ("resnet", {}, "resnet needs its data"),
        ("resnet", {"data_dir": "no/such/data"}, "no ImageNet in no/such/data"),
        ("unet3d", {"data_dir": "no/such/data"}, "no prepared KiTS19 in no/such/data"),
        ("retinanet", {"data_dir": "no/such/data"}, "no Open Images in no/such/data"),
        ("resnet", {"tiny": True, "step": 3}, "give the run too"),
        ("resnet", {"tiny": True, "wdith": 3}, "did you mean 'width'"),
        ("resnet", {"run": "no/such/run"}, "is not the folder of a run"),
        ("resnet", {"run": "a/run", "width": 3}, "own configuration: leave width out"),
    ],
)
def test_bad_input(name, settings, said):
    with pytest.raises(UserError, match=said):
        benchmarks.show(name, **settings)


def test_runs_that_do_not_fit(run_of_one_step, tmp_path):
    run = run_of_one_step
    with pytest.raises(UserError, match="is a run of resnet, not of unet3d"):
        benchmarks.show("unet3d", run=run)
    with pytest.raises(UserError, match="keeps no checkpoint of step 7, only of 1"):
        benchmarks.show("resnet", run=run, step=7)
    (tmp_path / "run_0").mkdir()
    (tmp_path / "run_0" / "config.json").write_bytes((run / "run_0" / "config.json").read_bytes())
    with pytest.raises(UserError, match="keeps no checkpoint"):
        benchmarks.show("resnet", run=tmp_path)


def test_without_pillow_nothing_is_begun(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UserError, match="a picture needs an extra"):
        benchmarks.show("resnet", data_dir="no/such/data")
