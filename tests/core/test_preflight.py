"""All that is refused before the clock starts, each with its sentence, and nothing written."""

import dataclasses
from types import SimpleNamespace

import jax
import optax
import pytest
import toys

from mlperf_jax.core import preflight
from mlperf_jax.core.fields import Count
from mlperf_jax.errors import UserError


def plan(benchmark, output, **more):
    return preflight.preflight(benchmark, toys.options(output, **more), "data")


@pytest.mark.parametrize(
    ("fields", "options", "sentence"),
    [
        ({"batch_size": 36}, {}, r"batch size 36 is not divided by the mesh data=8.*8 ways"),
        (
            {"gradient_accumulation_steps": 8},
            {},
            "micro-batch of 4 is not divided by the mesh data=8",
        ),
        ({"eval_batch_size": 50}, {"mesh": "data=4"}, "evaluation batch size 50 is not divided"),
        ({}, {"mesh": "data=9"}, "needs 9 devices and this machine has 8"),
        ({}, {"max_samples": 31}, "max_samples 31 is less than one batch of 32"),
        ({"dtype": "float64"}, {}, "float64 needs JAX_ENABLE_X64=1"),
        ({"size": "tiny"}, {"division": "closed"}, "tiny run is open division by its nature"),
        ({}, {"division": None, "optimizer": "sgd:1"}, "say --division open"),
        ({}, {"division": "closed"}, "train_samples is 256; the closed division"),
        ({}, {"optimizer": "sdg:1"}, "no optimizer 'sdg': did you mean 'sgd'"),
        ({}, {"optimizer": 3}, "optimizer 3 has no init and update"),
        ({}, {"optimizer": lambda: None}, "failed when given the ParamTree"),
    ],
)
def test_refused(fields, options, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        plan(toys.Toy(**fields), tmp_path / "output", **options)
    assert not (tmp_path / "output").exists(), "nothing is touched"


def test_another_number_of_samples_is_refused(tmp_path):
    class Other(toys.Toy):
        def counts(self, data_dir):
            return {"train": 1437, "validation": 50}

    with pytest.raises(UserError, match=r"data\) hold 1,437 train samples and resnet expects 256"):
        plan(Other(), tmp_path)

    class Half(toys.Toy):
        def counts(self, data_dir):
            return {"train": 256}

    with pytest.raises(UserError, match="data holds no validation samples"):
        plan(Half(), tmp_path)


def test_more_classes_in_the_data_than_the_model_has_are_refused(tmp_path):
    class Animals(toys.InMemory):
        def class_names(self, folder):
            return ("cat", "dog", "owl")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Named(toys.Toy):
        classes: Count = 3

        def data(self):
            return Animals(self)

    assert plan(Named(classes=4), tmp_path / "output").benchmark.classes == 4
    with pytest.raises(UserError, match="classes is 2 and data holds samples of 3 classes"):
        plan(Named(classes=2), tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_data_that_the_recipe_has_no_room_for_are_refused(tmp_path):
    class Boxes(toys.InMemory):
        def maxima(self, folder):
            return self.toy.most

    class Boxed(toys.Toy):
        most = {"boxes": 9}  # noqa: RUF012

        def capacities(self):
            return {"boxes": 8}

        def data(self):
            return Boxes(self)

    with pytest.raises(
        UserError, match=r"sample with 9 boxes and resnet has places for 8.*least 9"
    ):
        plan(Boxed(), tmp_path / "output")
    Boxed.most = {}
    with pytest.raises(UserError, match="data does not say how many boxes a sample has"):
        plan(Boxed(), tmp_path / "output")
    assert not (tmp_path / "output").exists()
    Boxed.most = {"boxes": 8, "vertices": 10**6}
    assert plan(Boxed(), tmp_path).division == "open"


def test_a_model_that_makes_its_data_needs_no_training_split(tmp_path):
    class Playing(toys.SelfMade):
        def counts(self, data_dir):
            return {"validation": 50}

    assert plan(Playing(), tmp_path).division == "open"
    with pytest.raises(UserError, match="games of a part 44 is not divided by the mesh data=8"):
        plan(Playing(games=44), tmp_path)


def test_a_disk_without_room_is_refused(tmp_path, monkeypatch):
    full = preflight.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: full)
    with pytest.raises(UserError, match=r"0\.0 MB free, and 3 checkpoints take"):
        plan(toys.Toy(), tmp_path / "a" / "b")


def test_a_copy_of_the_evaluation_weights_needs_room_too(tmp_path, monkeypatch):
    size = 4 * toys.prepared(toys.Layered()).parameters
    room = preflight.shutil.disk_usage(tmp_path)._replace(free=int(3 * 2.5 * size))
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: room)
    plan(toys.Layered(), tmp_path, optimizer=optax.sgd(0.1, 0.9))  # as large a state
    with pytest.raises(UserError, match="3 checkpoints take"):
        plan(toys.Layered(), tmp_path, optimizer=optax.contrib.schedule_free_sgd(0.1))


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file may not be written"):
        plan(toys.Toy(), tmp_path / "file" / "run")


def test_dtype_auto_is_decided_and_noted(tmp_path, monkeypatch):
    assert plan(toys.Toy(), tmp_path).benchmark.dtype == "float32"
    pretended = [SimpleNamespace(platform="tpu")]
    monkeypatch.setattr(preflight.meshes, "available", lambda: pretended)
    assert preflight.resolve_dtype(toys.Toy()).dtype == "bfloat16"
    assert preflight.resolve_dtype(toys.Toy(dtype="float32")).dtype == "float32"


def test_the_plan_allocates_nothing(tmp_path):
    before = len(jax.live_arrays())
    planned = plan(toys.Toy(), tmp_path)
    assert len(jax.live_arrays()) == before
    assert planned.assembly.tree.count() == sum(
        leaf.size for leaf in jax.tree.leaves(planned.assembly.abstract["params"])
    )


def test_a_replaced_optimizer_is_told_that_it_begins_anew(tmp_path):
    (note,) = plan(toys.Started(), tmp_path, optimizer="sgd:1").notes
    assert (
        "own optimizer after 7 updates: the one that replaces it begins anew, at update 0" in note
    )
    assert not plan(toys.Started(), tmp_path).notes
