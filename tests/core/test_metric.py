"""A metric that knows its data, and sums that are folded as they come."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks import registry
from mlperf_jax.core import evaluation, launch, offline, preflight
from mlperf_jax.core.benchmark import Target
from mlperf_jax.errors import UserError

HARD = (Target("accuracy", above=1.0),)
READ: list[
    tuple[str, list[str]]
] = []  # folders that references were read from, and the log's keys then


@dataclasses.dataclass(frozen=True)
class Referenced:
    """The share of predictions that agree with the references, which the folder of the data holds."""

    references: np.ndarray | None = None
    mode: str = "inline"
    rows = True
    ranges = toys.Slow.ranges

    def sums(self, outputs, mask):
        raise NotImplementedError("it takes rows")

    def result(self, total):
        assert self.references is not None
        return {"accuracy": float(np.mean(total == self.references))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored(toys.Toy):
    metric = Referenced()
    output: str = ""

    def predict(self, model, batch, key):
        return model(batch["x"], batch["rows"]["items"]).argmax(-1)

    def metric_from(self, data_dir):
        READ.append((data_dir, toys.keys(self.output)))
        references = np.load(f"{data_dir}/references.npy")
        return dataclasses.replace(self.metric, references=references)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredBeside(Scored):
    metric = Referenced(mode="beside")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredOffline(Scored):
    metric = Referenced(mode="offline")


@pytest.fixture
def folder(tmp_path):
    READ.clear()
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "references.npy", toys.problem(50, 2)["label"])
    return tmp_path


def run(cls, folder, **more):
    output = folder / "output"
    benchmark = cls(output=str(output), targets=HARD)
    return benchmark, launch.launch(benchmark, toys.options(output, **more), str(folder / "data"))


@pytest.mark.parametrize("cls", [Scored, ScoredBeside])
def test_references_are_read_once_when_the_first_evaluation_is_due(cls, folder):
    _, result = run(cls, folder, max_samples=32 * 25)
    ((where, keys),) = READ
    assert where == str(folder / "data")
    assert keys.count("eval_start") == 1
    assert keys[-1] in ("eval_start", "block_start")[: 1 + (cls is ScoredBeside)]  # a thread's time
    assert toys.keys(folder / "output").count("eval_accuracy") == 2
    plain = toys.run(toys.Toy(targets=HARD), folder / "plain", max_samples=32 * 25)
    assert result.quality == plain.quality and 0 < plain.quality["accuracy"] < 1


def test_scoring_after_the_run_reads_them(folder):
    benchmark, nothing = run(ScoredOffline, folder, max_samples=32 * 25)
    assert nothing is None and READ == []
    options = toys.options(folder / "output", resume=True)
    result = offline.score(benchmark, options, str(folder / "data"))
    assert result is not None and 0 < result.quality["accuracy"] < 1
    assert len(READ) == 1


def test_loaded_weights_are_evaluated_by_them(folder, monkeypatch):
    _, result = run(Scored, folder, max_samples=32 * 20)
    monkeypatch.setattr(registry, "benchmark_class", lambda name: Scored)
    loaded = benchmarks.load(folder / "output", data_dir=str(folder / "data"))
    assert loaded.evaluate() == result.quality
    (folder / "data").rename(folder / "elsewhere")
    assert loaded.evaluate(str(folder / "elsewhere")) == result.quality
    assert [where for where, _ in READ[1:]] == [str(folder / n) for n in ("data", "elsewhere")]


def test_neither_preflight_nor_compiling_opens_the_data(tmp_path):
    READ.clear()
    benchmark = Scored(output=str(tmp_path))
    plan = preflight.preflight(benchmark, toys.options(tmp_path / "output"), "nowhere")
    evaluation.compile_predict(plan.assembly)
    assert READ == []


@pytest.mark.parametrize("other", [Referenced(mode="beside"), toys.metrics.Mean("accuracy")])
def test_a_metric_of_another_kind_is_refused(other, folder):
    class Wrong(Scored):
        def metric_from(self, data_dir):
            return other

    with pytest.raises(UserError, match="metric says inline and rows: they must agree"):
        run(Wrong, folder)


# -- sums ------------------------------------------------------------------------------------------

SIDE = 96  # of the sums, which tells them from other arrays


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums as large as those of Inception's features are, in small, and a count."""

    mode: str = "inline"
    rows = False
    ranges = toys.Slow.ranges

    def sums(self, outputs, mask):
        return {
            "moments": jnp.ones((SIDE, SIDE)) * mask.sum(),
            "count": jnp.where(mask.sum() == 8, 2.0**24, 1.0).astype(jnp.float32),
        }

    def result(self, total):
        return {"accuracy": 0.0}


class Many(toys.Toy):
    metric = Moments()

    def predict(self, model, batch, key):
        return batch["label"]


def test_sums_of_a_few_batches_lie_on_the_device_and_no_count_is_lost():
    """Of 41 batches; adding 1 to 2**24 in float32 changes nothing."""
    benchmark = Many(eval_samples=321, eval_batch_size=8)
    assembly = toys.prepared(benchmark, "data=1")
    most = 0

    def watched(threads):
        nonlocal most
        for batch in benchmark.eval_data("").batched(8).stream(threads=threads):
            most = max(most, sum(a.shape == (SIDE, SIDE) for a in jax.live_arrays()))
            yield batch

    evaluator = evaluation.Evaluator(assembly, 0, "", threads=1)
    evaluator.batches = types.SimpleNamespace(stream=watched)
    total = evaluator.outputs(assembly.create(0), 1)
    assert 0 < most <= evaluation.IN_FLIGHT + 2  # one more while it is folded
    assert total["count"] == 40 * 2**24 + 1
    assert total["moments"].dtype == np.float64
    np.testing.assert_array_equal(total["moments"], np.full((SIDE, SIDE), 321.0))
