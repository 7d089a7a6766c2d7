"""A run's weights loaded again: which ones, where to, and what is refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import optax
import pytest
import toys

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks import registry
from mlperf_jax.core import launch, trained
from mlperf_jax.core.benchmark import Start, Target
from mlperf_jax.core.checkpoints import checksums
from mlperf_jax.errors import UserError

LONG = dict(targets=(Target("accuracy", above=1.0),))


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """The class that `load` finds by the name in a run's configuration: `toy(toys.Beside)` changes it."""

    def use(cls):
        monkeypatch.setattr(registry, "benchmark_class", lambda name: cls)
        return cls

    use(toys.Toy)
    return use


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The set of a finished run of the toy with all seats of the state; not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    assert run(toys.Toy(), folder).samples == 960
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def run(benchmark, folder, **more):
    return toys.run(benchmark, folder, data_dir="data", **more)


def edit(folder, change):
    path = folder / "run_0" / "config.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def digest(view):
    return checksums.parameters_sha256({part: view[part] for part in ("params", "tables")})


# -- which weights, and what they give -----------------------------------------------------------------


def test_the_loaded_model_evaluates_as_the_run_did(folder):
    result = json.loads((folder / "run_0" / "result.json").read_text())
    for path in (folder, folder / "run_0", str(folder / "run_0") + "/"):
        found = benchmarks.load(path)
        assert (found.step, found.seed, found.quality) == (30, 1, result["quality"])
        assert found.benchmark == toys.Toy(dtype="float32")
    assert found.evaluate() == result["quality"]
    assert "after step 30, accuracy 0." in repr(found) and "(unverified)" in repr(found)


@pytest.mark.parametrize("mesh", ["data=1", "data=2,fsdp=2", "fsdp=8"])
def test_other_devices_than_the_runs_hold_the_same_weights(folder, mesh):
    here, there = benchmarks.load(folder, mesh=mesh), benchmarks.load(folder)
    assert here.assembly.mesh.devices.size < 8 or mesh == "fsdp=8"
    assert toys.distance(here.view, there.view) == 0
    if here.assembly.mesh.devices.size < 8:
        assert here.evaluate() == pytest.approx(there.quality)


def test_averaged_and_frozen_weights_are_those_of_the_run(folder):
    found = benchmarks.load(folder)
    state, _ = toys.stepped(toys.Toy(), "data=8", steps=30, seed=1)
    assert toys.distance(found.view["params"], state["ema"]) < 1e-6
    assert toys.distance(found.view["params"], state["params"]) > 1e-3
    assert toys.distance(found.view["frozen"], state["frozen"]) == 0
    kernel = found.model.head.kernel[...]
    np.testing.assert_array_equal(kernel, found.view["params"]["head"]["kernel"])


def test_the_model_behaves_as_in_evaluation(folder):
    """With the running statistics: a row's output does not depend on its company."""
    found = benchmarks.load(folder)
    rows = toys.problem(16, 5)
    looked_up = found.view["tables"]["items"]["rows"][rows["ids"]]
    together = found.model(rows["x"], looked_up)
    np.testing.assert_allclose(found.model(rows["x"][:1], looked_up[:1]), together[:1], rtol=1e-5)
    np.testing.assert_allclose(
        found.apply(lambda model, batch: model(batch["x"], batch["rows"]["items"]), rows),
        together,
        rtol=1e-5,
    )


def test_predictions_of_a_batch(folder):
    found = benchmarks.load(folder, mesh="data=1")
    rows = toys.problem(50, 2)  # the evaluation data
    hits = np.asarray(found.predict(rows))
    assert hits.shape == (50,) and hits.mean() == pytest.approx(found.quality["accuracy"])
    with pytest.raises(UserError, match="batch size 50 is not divided by the mesh data=8"):
        benchmarks.load(folder).predict(rows)


def test_an_evaluation_that_draws_draws_the_same_again(toy, tmp_path):
    class Drawing(toys.Plain):
        def predict(self, model, batch, key):
            return jax.random.uniform(key, batch["label"].shape)

    run(toy(Drawing)(), tmp_path, max_samples=32 * 20)
    found = benchmarks.load(tmp_path)
    assert found.evaluate() == found.quality


def test_weights_without_averages_have_the_digest_of_the_result(toy, tmp_path):
    result = run(toy(toys.Plain)(), tmp_path)
    assert digest(benchmarks.load(tmp_path).view) == result.parameters_sha256


def test_a_frozen_base_is_read_again_and_the_rest_is_not(toy, tmp_path):
    run(toy(toys.Started)(), tmp_path, max_samples=32 * 10)
    found = benchmarks.load(tmp_path, data_dir="data")
    np.testing.assert_array_equal(found.view["frozen"]["base"]["kernel"], 0.25)
    start = toys.Started().start("")
    assert np.abs(
        found.view["params"]["head"]["kernel"] - start.weights["params/head/kernel"]
    ).max()


def test_untrained_tables_are_read_again_and_not_hashed(toy, tmp_path):
    result = run(toy(toys.Featured)(ema_decay=None), tmp_path)
    for mesh in ("data=8", "data=2,expert=2"):
        found = benchmarks.load(tmp_path, data_dir="data", mesh=mesh)
        features = found.view["tables"]["features"]["rows"]
        assert features.dtype == np.float16
        np.testing.assert_array_equal(features, toys.FEATURE_ROWS)
        assert found.evaluate() == found.quality
    assert digest(found.assembly.kept(found.view)) == result.parameters_sha256


def test_without_frozen_weights_no_data_are_asked_for(toy, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(benchmarks, "data_folder", lambda *_: asked.append(1) or "data")
    run(toy(toys.Plain)(), tmp_path / "plain")
    benchmarks.load(tmp_path / "plain")
    assert not asked
    run(toy(toys.Lora)(), tmp_path / "lora")
    benchmarks.load(tmp_path / "lora")
    assert asked


def test_where_the_base_has_gone_is_said(toy, tmp_path):
    class Moved(toys.Toy):
        def start(self, data_dir):
            if data_dir != "there":
                raise UserError(f"{data_dir}/base is missing")
            return Start({"frozen/base/kernel": np.ones((6, 16), np.float32)})

    launch.launch(toy(Moved)(), toys.options(tmp_path, max_samples=320), "there")
    with pytest.raises(UserError, match="away/base is missing"):
        benchmarks.load(tmp_path, data_dir="away")
    assert benchmarks.load(tmp_path, data_dir="there").step == 10


# -- which step ----------------------------------------------------------------------------------------


def test_any_step_that_is_kept(tmp_path):
    options = dict(max_samples=32 * 24, checkpoint_every=5, keep_checkpoints=10)
    run(toys.Toy(**LONG), tmp_path, **options)
    found = {step: benchmarks.load(tmp_path, step=step) for step in (5, 10, 15, 20, 24)}
    assert {step: one.step for step, one in found.items()} == {step: step for step in found}
    assert benchmarks.load(tmp_path).step == 24
    known = {step: one.quality for step, one in found.items()}
    assert known[5] is known[15] is known[24] is None, "these were not evaluated"
    for step in (10, 20):
        assert found[step].evaluate() == known[step]
    with pytest.raises(
        UserError, match=r"no checkpoint of step 7, only of 5, 10, 15, 20, 24: .*--keep-checkpoints"
    ):
        benchmarks.load(tmp_path, step=7)


def test_an_evaluation_beside_the_steps_counts_for_its_own(toy, tmp_path):
    result = run(toy(toys.BriefBeside)(), tmp_path)
    found = benchmarks.load(tmp_path)
    assert (found.step, found.quality) == (result.samples // 32, result.quality)
    assert found.evaluate() == result.quality


def test_of_a_run_scored_later_it_is_the_checkpoint_that_passed(toy, tmp_path):
    run(toy(toys.Offline)(), tmp_path, max_samples=32 * 40)
    before = benchmarks.load(tmp_path)
    assert (before.step, before.quality) == (40, None)
    result = benchmarks.evaluate(tmp_path)
    found = benchmarks.load(tmp_path)
    assert (found.step, found.quality) == (30, result.quality)
    assert benchmarks.load(tmp_path, step=20).quality is None


def test_an_unfinished_run_gives_its_newest_whole_checkpoint(copy, capsys):
    (copy / "run_0" / "result.json").unlink()
    assert benchmarks.load(copy).step == 30
    damage(copy, 30)
    assert benchmarks.load(copy).step == 20
    assert "step_00000030" in capsys.readouterr().err


def damage(folder, step):
    (found,) = (folder / "run_0" / "checkpoints").glob(f"step_*{step}")
    for path in found.rglob("*"):
        if path.is_file() and path.name != "meta.json" and path.stat().st_size > 200:
            content = bytearray(path.read_bytes())
            content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
            path.write_bytes(content)


# -- optimizers ----------------------------------------------------------------------------------------


def test_an_optimizer_object_is_not_needed(toy, tmp_path):
    result = run(toy(toys.Plain)(), tmp_path, optimizer=optax.adam(1e-2))
    assert digest(benchmarks.load(tmp_path).view) == result.parameters_sha256


@dataclasses.dataclass(frozen=True)
class Negative:
    """Evaluates the opposite of what it trains."""

    rate: float = 0.1

    def init(self, params):
        return optax.sgd(self.rate).init(params)

    def update(self, grads, state, params=None):
        return optax.sgd(self.rate).update(grads, state, params)

    def eval_params(self, state, params):
        return jax.tree.map(lambda leaf: -leaf, params)


@pytest.mark.parametrize("mode", [toys.Plain, toys.PlainBeside])
@pytest.mark.parametrize("tx", [Negative(), optax.contrib.schedule_free_sgd(2.0, b1=0.5)])
def test_nor_is_one_that_evaluates_other_weights_than_it_trains(toy, tmp_path, mode, tx):
    result = run(toy(mode)(), tmp_path, optimizer=tx, max_samples=32 * 10)
    found = benchmarks.load(tmp_path, mesh="data=2,fsdp=2")
    assert found.evaluate() == found.quality == result.quality
    assert digest(found.view) == result.parameters_sha256
    own = type("Own", (mode,), {"optimizer": lambda self, tree: tx})
    state, _ = toys.stepped(own(), "data=8", steps=10, seed=1)
    averaged = getattr(tx, "eval_params", optax.contrib.schedule_free_eval_params)
    assert toys.distance(found.view["params"], averaged(state["opt"], state["params"])) < 1e-6
    assert toys.distance(found.view["params"], state["params"]) > 1e-3


def test_of_a_run_scored_later_the_same_weights_are_told_of(toy, tmp_path):
    tx = optax.contrib.schedule_free_adamw(0.1)
    toy(toys.PlainOffline)
    run(toys.PlainOffline(targets=LONG["targets"]), tmp_path, optimizer=tx, max_samples=32 * 20)
    before = {step: benchmarks.load(tmp_path, step=step).evaluate() for step in (10, 20)}
    result = benchmarks.evaluate(tmp_path, optimizer=tx)
    found = benchmarks.load(tmp_path)
    assert found.quality == before[20] == result.quality
    assert digest(found.view) == result.parameters_sha256


# -- what is refused -----------------------------------------------------------------------------------


def test_what_is_no_run_is_refused(folder, tmp_path):
    for path in (
        tmp_path,
        tmp_path / "nothing",
        folder / "run_1",
        folder / "run_0" / "checkpoints",
    ):
        with pytest.raises(UserError, match="is not the folder of a run: give what"):
            benchmarks.load(path)
    with pytest.raises(UserError, match="s3:// is not supported"):
        benchmarks.load("s3://bucket/run_0")


def test_of_several_runs_one_must_be_named(tmp_path):
    run(toys.Toy(), tmp_path, runs=2, max_samples=320)
    with pytest.raises(UserError, match=r"holds 2 runs: give one of them, such as .*/run_0"):
        benchmarks.load(tmp_path)
    assert benchmarks.load(tmp_path / "run_1").seed != benchmarks.load(tmp_path / "run_0").seed


def test_a_run_without_checkpoints(copy):
    shutil.rmtree(copy / "run_0" / "checkpoints")
    with pytest.raises(UserError, match=r"keeps no checkpoint: .*--checkpoint-every N"):
        benchmarks.load(copy)


def test_a_damaged_checkpoint_is_not_used(copy):
    damage(copy, 30)
    with pytest.raises(UserError, match=r"checkpoint of step 30 in .* is damaged .*: use another"):
        benchmarks.load(copy)
    assert benchmarks.load(copy, step=20).step == 20


def test_a_configuration_that_was_edited(copy):
    edit(copy, lambda document: document["config"].update(span=4))
    with pytest.raises(UserError, match=r"config\.json was changed after the run began"):
        benchmarks.load(copy)


def test_checkpoints_of_another_configuration(copy, folder, tmp_path):
    run(toys.Toy(span=4), tmp_path / "other")
    target = copy / "run_0" / "checkpoints"
    shutil.rmtree(target)
    shutil.copytree(tmp_path / "other" / "run_0" / "checkpoints", target)
    with pytest.raises(UserError, match="these files are of different runs"):
        benchmarks.load(copy)


def test_a_run_of_another_version(toy, folder):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later(toys.Toy):
        warmup: int = 3

    toy(Later)
    with pytest.raises(UserError, match=r"another version of this library: it lacks warmup;"):
        benchmarks.load(folder)
    toy(toys.Offline)  # has the same fields
    config = {**toys.Toy().config(), "momentum": 0.9}
    with pytest.raises(UserError, match=r"another version .*: it has momentum; use the version"):
        benchmarks.from_config(config)


def test_more_devices_and_hosts_than_are_here_are_not_needed(copy):
    there = {"mesh": "data=64", "processes": 16, "coordinator": "host:1"}
    edit(copy, lambda document: document["options"].update(there))
    assert benchmarks.load(copy).assembly.mesh.devices.size == 8
    with pytest.raises(UserError, match="needs 64 devices"):
        benchmarks.load(copy, mesh="data=64")


def test_reading_leaves_a_run_as_it_was(copy):
    def files():
        return {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.is_file()}

    before = files()
    benchmarks.load(copy).evaluate()
    assert files() == before


def test_a_run_is_found_from_inside_its_folder(folder, monkeypatch):
    monkeypatch.chdir(folder / "run_0")
    assert trained.find(".").folder.path.resolve() == (folder / "run_0").resolve()
