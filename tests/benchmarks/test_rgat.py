"""R-GAT: recipes, epochs, evaluations, log, loss, features and their order in time against rules and fact sheet."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rehearsal

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks.rgat import RGat
from mlperf_jax.core import launch, mesh as meshes, preflight, state as states
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.igbh import arrays, planted, rooms
from mlperf_jax.ops import words
from mlperf_jax.results import compliance, log as logs
from tests.benchmarks.language_models import first_steps, points

OFFICIAL = points("rgat", "5.1.0")
TRAIN, VALIDATION = 94_605_581, 788_379


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("data"))
    tiny().data().build(folder)
    return folder


def tiny(**changes) -> RGat:
    """Few small layers, in float32, without dropout unless it is asked for."""
    sizes = {"dtype": "float32", "dropout": 0.0, "head_width": 4}
    return RGat().tiny().replace(**(sizes | changes))


# -- recipes, epochs, log --------------------------------------------------------------------------


def test_recipes_are_those_of_the_official_file() -> None:
    recipes = RGat.recipes()
    assert len(recipes) == 5 and set(recipes) == set(OFFICIAL)
    for size, point in OFFICIAL.items():
        logged = preflight.full_log(recipes[size])
        given = dict(point.hyperparameters)
        given.pop("gradient_accumulation_steps", None)
        assert {key: logged[key] for key in given} == given, size
        assert (logged["train_samples"], logged["eval_samples"]) == (TRAIN, VALIDATION)
    assert RGat() == recipes[16_384]


def test_the_last_batch_of_an_epoch_is_short() -> None:
    for size, recipe in RGat.recipes().items():
        steps = -(-TRAIN // size)
        assert recipe.epoch_steps == steps
        assert recipe.samples(steps - 1) == (steps - 1) * size
        assert [recipe.samples(k * steps) for k in range(3)] == [0, TRAIN, 2 * TRAIN]
        assert recipe.samples(steps + 1) == TRAIN + size
        assert recipe.step_of(TRAIN - 1) == steps - 1


def test_evaluations_come_twenty_times_an_epoch_by_hundredths() -> None:
    for size, recipe in RGat.recipes().items():
        every = int(0.05 * -(-TRAIN // size))
        assert first_steps(recipe, 21) == [k * every for k in range(1, 22)]
        told = [recipe.position(step)["epoch_num"] for step in first_steps(recipe, 20)]
        assert told == pytest.approx(
            [round(k * every / recipe.epoch_steps, 2) for k in range(1, 21)]
        )
        assert told[0] == 0.05 and (size > 65_536 or told[19] == 1.0)


@pytest.mark.parametrize(("ruleset", "name"), [("5.1.0", "rgat"), ("4.0.0", "gnn")])
@pytest.mark.parametrize("division", ["closed", "open"])
def test_logs_pass_the_checkers_of_first_and_last_round(tmp_path, ruleset, name, division) -> None:
    log = rehearsal.write(tmp_path / "result_0.txt", "rgat", ruleset, division=division)
    report = compliance.check(log, ruleset)
    assert report.success, str(report)
    said = [line.value for line in logs.read(log) if line.key == "submission_benchmark"]
    assert said == [name]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("graph", "medium"), ("classes", 19), ("heads", 8), ("head_width", 64), ("dropout", 0.5),
        ("beta_1", 0.95), ("beta_2", 0.99), ("epsilon", 1e-6), ("clip_norm", 1.0),
        ("train_samples", 6_000_000), ("eval_samples", 50_000),
    ],
)  # fmt: skip
def test_closed_refuses_another_problem_by_name(field, value) -> None:
    closed = benchmarks.RunOptions(division="closed")
    with pytest.raises(UserError, match=field):
        preflight.resolve_division(RGat().replace(**{field: value}), closed)
    assert preflight.resolve_division(RGat(), closed) == "closed"


# -- sizes -----------------------------------------------------------------------------------------


def test_rows_are_samples_of_512_seeds() -> None:
    assert {size: recipe.rows for size, recipe in RGat.recipes().items()} == {
        4096: 8, 16_384: 32, 32_768: 64, 65_536: 128, 262_144: 512,
    }  # fmt: skip
    assert RGat(eval_batch_size=1000).eval_rows == 2
    with pytest.raises(
        UserError, match="rows 32 is not a multiple of gradient_accumulation_steps 5"
    ):
        RGat(gradient_accumulation_steps=5)
    assert RGat(sample_seeds=1024).rows == 16
    assert RGat(sample_seeds=1024).shape().seeds == 1024
    with pytest.raises(UserError, match="2 hops: room was measured for 3"):
        RGat(fanouts=(15, 10))


def test_flops_are_the_fact_sheets_by_mean_counts() -> None:
    recipe, ((seeds, _), mean) = RGat(), *rooms.MEANS.items()
    forward = 2.0 * seeds * 512 * 2983
    first = 0.0
    for layer, hops in ((1, 2), (2, 1), (3, 0)):
        width = 1024 if layer == 1 else 512
        for relation in recipe.size_of_graph.relations:
            targets = mean.nodes[relation.target][hops]
            if not targets:
                continue
            rows = mean.nodes[relation.source][hops + 1]
            rows += targets if relation.source != relation.target else 0
            edges = mean.edges[relation.key][hops]
            product = 2.0 * rows * width * 512
            forward += product + edges * 512 * 2 + rows * 512 * 2
            first += product if layer == 1 else 0
    assert recipe.flops_per_sample == pytest.approx((3 * forward - first) / seeds, rel=1e-12)


def test_features_of_the_full_graph_lie_where_they_fit() -> None:
    tables = RGat().tables()
    spread = {kind for kind, table in tables.items() if table.store.bins > 1}
    assert spread == {"paper", "author", "fos"}
    assert sum(t.rows * t.width for t in tables.values()) / 547_360_534 / 256 < 1.002
    assert all(table.optimizer is None and table.parameters == 0 for table in tables.values())
    assert {table.width for table in tables.values()} == {256}  # four float8 a word
    assert {t.width for t in RGat(feature_dtype="float16").tables().values()} == {512}
    with pytest.raises(
        UserError, match=r"GiB do not fit: .* on each of 1 device.*give their rows fewer"
    ):
        states.assemble(preflight.resolve_dtype(RGat()), meshes.make_mesh("data=1")).check_room()


# -- loss and features -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "float8_e4m3fn"])
def test_features_in_the_state_are_those_of_the_files(built, dtype) -> None:
    benchmark = tiny(feature_dtype=dtype)
    benchmark.data().build(built)
    assembly = states.assemble(benchmark, meshes.make_mesh("data=4,fsdp=2"))
    tables, handed_out = assembly.begun(0, built)["tables"], tiny(feature_dtype="float32").data()
    for kind, table in benchmark.tables().items():
        wanted = np.asarray(handed_out.features(built, kind).array)
        rows = tables[kind]["rows"][table.store.positions(np.arange(len(wanted)))]
        found = np.asarray(words.unpacked(rows, dtype).astype(jnp.float32))
        wanted = np.asarray(jnp.asarray(wanted).astype(dtype).astype(jnp.float32))
        np.testing.assert_array_equal(found, wanted)
        assert (table.store.bins > 1) == (kind in ("paper", "author", "fos"))


def test_the_loss_is_the_mean_over_the_seeds_that_there_are(built, x64) -> None:
    """Of an epoch's short last batch, whose rows of padding are zeros."""
    benchmark = tiny(dtype="float64")
    last = benchmark.epoch_steps - 1
    batch = benchmark.data().train(built).batched(benchmark.rows, seed=0)[last]
    there = (batch["labels"] >= 0) & batch["mask"][:, None]
    assert there.sum() == 48_000 - last * 256 < 256 and not batch["mask"].all()

    class Constant:
        def __call__(self, sample, *, key=None):
            logits = np.log(np.arange(1.0, 20.0))
            return jnp.broadcast_to(logits, (*batch["labels"].shape, 19))

    rows = {kind: jnp.zeros((8, n, 4), jnp.uint32) for kind, n in
            ((k, batch[f"ids/{k}"].shape[1]) for k in planted.SIZE.nodes)}  # fmt: skip
    loss, told = benchmark.loss(Constant(), {**batch, "rows": rows}, None)
    shares = np.arange(1.0, 20.0) / np.arange(1.0, 20.0).sum()
    wanted = -np.log(shares[batch["labels"][there]]).mean()
    assert float(loss.total / loss.weight) == pytest.approx(wanted, rel=1e-12)
    assert float(told["dropped"]) == batch["dropped"].sum()


def test_quality_counts_each_paper_once(built) -> None:
    benchmark = tiny()
    found = list(benchmark.data().validation(built).batched(benchmark.eval_rows).stream(threads=0))
    assert sum(map(benchmark.samples_in, found)) == 400

    class Right:
        def __call__(self, sample, *, key=None):
            return jax.nn.one_hot(jnp.where(labels % 2 == 0, labels, 0), 19)

    total = {"hits": 0.0, "weight": 0.0, "dropped": 0.0}
    for batch in found:
        labels = batch["labels"]
        rows = {
            k: jnp.zeros((8, batch[f"ids/{k}"].shape[1], 4), jnp.uint32) for k in planted.SIZE.nodes
        }
        outputs = benchmark.predict(Right(), {**batch, "rows": rows}, None)
        for name, value in benchmark.metric.sums(outputs, batch["mask"]).items():
            total[name] += float(value)
    labels = np.concatenate([b["labels"][b["mask"]].ravel() for b in found])
    labels = labels[labels >= 0]
    assert total == {"hits": (labels % 2 == 0).sum(), "weight": 400, "dropped": 0}
    quality = benchmark.metric.result(total)
    assert quality == {"accuracy": (labels % 2 == 0).mean(), "dropped": 0.0}


def test_features_are_read_once_the_clock_runs(built, tmp_path, monkeypatch) -> None:
    """What a run reads of the graph before `run_start` is headers alone."""
    reads, log = [], tmp_path / "out" / "result_0.txt"
    real = arrays.Mapped.read

    def read(self, first, last):
        keys = [line.key for line in logs.read(log)] if log.exists() else []
        reads.append("run_start" in keys)
        return real(self, first, last)

    monkeypatch.setattr(arrays.Mapped, "read", read)
    options = benchmarks.RunOptions(
        output=str(tmp_path / "out"), seed=3, max_samples=512, mesh="data=2"
    )
    launch.launch(tiny(), options, built)
    assert reads and all(reads)
    keys = [line.key for line in logs.read(log)]
    assert keys.index("run_start") < keys.index("block_start")


def test_each_device_reads_its_own_features_alone(built, monkeypatch) -> None:
    read = []
    real = arrays.Mapped.read

    def noted(self, first, last):
        read.append((self.path, first, last))
        return real(self, first, last)

    monkeypatch.setattr(arrays.Mapped, "read", noted)
    benchmark = tiny()
    states.assemble(benchmark, meshes.make_mesh("data=8")).begun(0, built)
    papers = [span[1:] for span in read if "paper" in span[0] and span[2] > span[1]]
    spans = sorted(papers)
    assert sum(last - first for first, last in spans) == planted.SIZE.nodes["paper"]
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans)), "nothing twice"


# -- what is refused -------------------------------------------------------------------------------


def test_data_that_are_not_there_are_told_before_a_run(tmp_path) -> None:
    options = benchmarks.RunOptions(output=str(tmp_path / "out"), division="open")
    with pytest.raises(UserError, match="full/processed lacks 7 of 7 files"):
        preflight.check_counts(RGat(), str(tmp_path))
    with pytest.raises(UserError, match=r"no planted graph in .* --tiny --data-dir"):
        preflight.preflight(tiny(), options, str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_another_size_of_the_graph_says_its_counts(built) -> None:
    wrong = dataclasses.replace(tiny(), train_samples=48_001)
    with pytest.raises(UserError, match="48,000"):
        preflight.check_counts(wrong, built)


def test_tiny_has_a_graph_of_its_own() -> None:
    with pytest.raises(UserError, match="graph is small, and tiny has a planted graph of its own"):
        benchmarks.get("rgat", tiny=True, graph="small")
    assert benchmarks.get("rgat", graph="small").size_of_graph.name == "small"
