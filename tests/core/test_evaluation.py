"""Quality: sums and rows over all batches, inline and beside the steps."""

import dataclasses
import pathlib
import threading
import types
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from mlperf_jax import metrics
from mlperf_jax.core import evaluation
from mlperf_jax.core.benchmark import Target
from mlperf_jax.errors import UserError
from mlperf_jax.results import compliance, log as logs

HARD = (Target("accuracy", above=1.0),)
SECONDS = 60  # for what must happen: a test that waits this long has failed


def evaluator(benchmark, mesh="data=8"):
    """(evaluator, a state to evaluate)."""
    assembly = toys.prepared(benchmark, mesh)
    return evaluation.Evaluator(assembly, 0, "", threads=1), assembly.create(0)


# -- inline ----------------------------------------------------------------------------------------


def test_the_last_partial_batch_counts_its_real_rows_alone():
    measuring, state = evaluator(toys.Toy(eval_batch_size=16))  # 50 samples in 4 batches
    outputs = measuring.outputs(state, 1)
    assert outputs["count"] == 50
    rows, _ = evaluator(toys.Beside(eval_batch_size=16))
    hits = rows.outputs(state, 1)["hit"]
    assert hits.shape == (50,) and hits.sum() == outputs["total"]


def test_rows_come_in_the_order_of_the_data():
    class Order(toys.Beside):
        def predict(self, model, batch, key):
            return {"x": batch["x"][:, 0]}

    measuring, state = evaluator(Order(eval_batch_size=16), "data=2,fsdp=4")
    np.testing.assert_array_equal(measuring.outputs(state, 1)["x"], toys.problem(50, 2)["x"][:, 0])


def test_quality_is_the_same_on_any_mesh_and_batch_size():
    found = []
    for size, mesh in ((16, "data=1"), (16, "data=8"), (64, "data=2,fsdp=2"), (8, "fsdp=8")):
        measuring, state = evaluator(toys.Toy(eval_batch_size=size), mesh)
        found.append(measuring.quality(state, 1))
    assert all(quality == found[0] for quality in found)


def test_averaged_weights_are_evaluated():
    measuring, state = evaluator(toys.Toy())
    broken = jax.tree.map(lambda leaf: leaf * np.nan, state["params"])
    assert measuring.quality({**state, "params": broken}, 1) == measuring.quality(state, 1)
    other = jax.tree.map(lambda leaf: -leaf, state["ema"])
    assert measuring.quality({**state, "ema": other}, 1) != measuring.quality(state, 1)


def test_an_optimizer_may_evaluate_other_weights_than_it_trains():
    @dataclasses.dataclass(frozen=True)
    class Averaging:
        init = staticmethod(lambda params: jax.tree.map(lambda leaf: -leaf, params))
        update = staticmethod(lambda grads, state, params=None: (grads, state))
        eval_params = staticmethod(lambda state, params: state)

    class Averaged(toys.Toy):
        ema_decay = None

        def optimizer(self, tree):
            return Averaging()

    for tx in (Averaging(), optax.contrib.schedule_free_sgd(0.1)):
        with pytest.raises(UserError, match=r"ema_decay 0\.9.*so does the optimizer.*to None"):
            toys.prepared(toys.Toy(), optimizer=tx)
    for clip_norm in (None, 1.0):
        benchmark = Averaged(ema_decay=None, clip_norm=clip_norm)
        measuring, state = evaluator(benchmark, "data=2,fsdp=4")
        view = measuring.assembly.eval_view(state)
        assert toys.distance(view["params"], jax.tree.map(lambda x: -x, state["params"])) == 0
        for leaf, wanted in zip(jax.tree.leaves(view), jax.tree.leaves(state), strict=False):
            assert leaf.sharding.mesh == wanted.sharding.mesh
        assert measuring.quality(state, 1)


def test_the_documented_optimizer_is_evaluated_at_its_mean():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "own_optimizer.md").read_text()
    code = text[
        text.index("class Averaged:") : text.index('run("resnet", tiny=True, optimizer=Averaged')
    ]
    names = {"jax": jax, "jnp": jnp, "optax": optax}
    exec(code, names)

    class Mean(toys.Plain):
        def optimizer(self, tree):
            return names["Averaged"]()

    state, _ = toys.stepped(Mean(), "data=8", steps=3)
    view = evaluator(Mean())[0].assembly.eval_view(state)
    assert toys.distance(view["params"], state["opt"][1]) == 0
    assert toys.distance(view["params"], state["params"]) > 1e-3


def test_weights_that_are_no_parameters_are_refused():
    class Wrong(toys.Plain):
        def optimizer(self, tree):
            def averaged(state, params):
                return {"head": {"bias": params["head"]["bias"]}}

            init, update = optax.sgd(0.1)
            return SimpleNamespace(init=init, update=update, eval_params=averaged)

    with pytest.raises(UserError, match=r"eval_params must .*: head/kernel was .* became nothing"):
        evaluator(Wrong())


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_schedule_free_optimizer_is_evaluated_at_its_average_where_it_lies(clip_norm):
    class Averaged(toys.Layered):
        def optimizer(self, tree):
            return optax.contrib.schedule_free_sgd(0.5, b1=0.5)

    benchmark, mesh = Averaged(clip_norm=clip_norm), "data=2,fsdp=4"
    state, _ = toys.stepped(benchmark, mesh, steps=3)
    measuring, _ = evaluator(benchmark, mesh)
    found = measuring.assembly.eval_view(state)["params"]
    opt = state["opt"] if clip_norm is None else state["opt"][1]
    wanted = optax.contrib.schedule_free_eval_params(opt, state["params"])
    assert toys.distance(found, wanted) < 1e-6
    assert toys.distance(found, state["params"]) > 1e-3
    leaves = zip(*map(jax.tree.leaves, (found, state["params"], opt.z)), strict=True)
    assert all(a.sharding == b.sharding == c.sharding for a, b, c in leaves)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(found))


def test_statistics_of_the_batch_play_no_part():
    """An evaluation of one batch is that of its rows in any company."""

    class Logits(toys.Beside):
        def predict(self, model, batch, key):
            return {"logits": model(batch["x"], batch["rows"]["items"])}

    (many, state), (few, _) = (evaluator(Logits(eval_batch_size=n)) for n in (56, 8))
    one, other = (m.outputs(state, 1)["logits"] for m in (many, few))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_sampling_keys_differ_by_evaluation_and_batch():
    class Drawing(toys.Beside):
        def predict(self, model, batch, key):
            return {"noise": jax.random.normal(key, batch["label"].shape)}

    measuring, state = evaluator(Drawing(eval_batch_size=16))
    first, second = (measuring.outputs(state, n)["noise"] for n in (1, 2))
    assert len({first[0], first[16], first[32], second[0]}) == 4
    np.testing.assert_array_equal(first, measuring.outputs(state, 1)["noise"])


def test_a_metric_without_the_value_it_promised_is_refused():
    class Promises(metrics.Mean):
        ranges = {"accuracy": (0, 1), "f1": (0, 1)}  # noqa: RUF012

    class Toy(toys.Toy):
        metric = Promises("accuracy")

    measuring, state = evaluator(Toy(targets=(Target("f1", at_least=0.5),)))
    with pytest.raises(UserError, match="the metric gives accuracy, but a target wants f1"):
        measuring.quality(state, 1)


def test_evaluation_data_without_a_sample_are_refused():
    measuring, state = evaluator(toys.Toy())
    measuring.batches = types.SimpleNamespace(stream=lambda threads: iter(()))
    with pytest.raises(UserError, match="no sample"):
        measuring.quality(state, 1)


def test_a_metric_may_be_a_mean_of_anything():
    metric = metrics.Mean("loss")
    assert metric.result({"total": np.float64(3), "count": np.float64(4)}) == {"loss": 0.75}


# -- beside ----------------------------------------------------------------------------------------


class Gated:
    """Accuracy from rows, whose value is known once the gate is open."""

    mode, rows, ranges = "beside", True, toys.Slow.ranges

    def __init__(self):
        self.gate, self.asked = threading.Event(), threading.Event()

    def result(self, total):
        self.asked.set()
        assert self.gate.wait(SECONDS), "nobody opened the gate"
        return {"accuracy": float(np.mean(total["hit"]))}


def opens(split, at, metric):
    """Opens a metric's gate when the batch of this step is read."""

    def alter(step, batch):
        if step == at:
            assert metric.asked.wait(SECONDS), "no evaluation was under way"
            metric.gate.set()
        return batch

    return toys.Altered(split, alter)


def gated(at, **fields):
    """A toy whose first evaluation, after step 10, is known when the batch of step `at` is read."""
    measure = Gated()

    class Slowly(toys.Beside):
        metric = measure

        def train_data(self, data_dir):
            return opens(super().train_data(data_dir), at, measure)

    return Slowly(**fields)


def accuracies(folder):
    lines = logs.read(folder / "result_0.txt")
    return [(x.metadata["samples_count"], x.value) for x in lines if x.key == "eval_accuracy"]


@pytest.fixture(scope="module")
def prompt(tmp_path_factory):
    """(result, folder) of a run whose values are known at once."""
    folder = tmp_path_factory.mktemp("prompt")
    return toys.run(toys.Beside(), folder), folder


def test_training_goes_on_meanwhile(tmp_path):
    """The value after step 10 is only known when the batch of step 18 is asked for."""
    result = toys.run(gated(18, targets=HARD), tmp_path, max_samples=32 * 25)
    assert [samples for samples, _ in accuracies(tmp_path)] == [320, 640]
    assert result.samples == 32 * 25
    report = compliance.check(tmp_path)
    assert report.success, report


def test_the_evaluated_state_is_the_one_that_counts(tmp_path, prompt):
    late = toys.run(gated(18, targets=(Target("accuracy", at_least=0.3),)), tmp_path / "late")
    soon = toys.run(toys.Beside(targets=(Target("accuracy", at_least=0.3),)), tmp_path / "soon")
    inline = toys.run(toys.Toy(targets=(Target("accuracy", at_least=0.3),)), tmp_path / "inline")
    assert late.reached and late.samples == soon.samples == inline.samples == 320
    assert late.quality == soon.quality == inline.quality
    assert late.parameters_sha256 == soon.parameters_sha256 == inline.parameters_sha256
    last = logs.read(tmp_path / "late" / "result_0.txt")[-1]
    assert last.key == "run_stop" and last.metadata["samples_count"] == 320
    report = compliance.check(tmp_path / "late")
    assert report.success, report


def test_a_value_is_waited_for_at_the_next_evaluation(tmp_path):
    # the gate opens as the batch of step 19 is read ahead; evaluation 2 must come after value 1
    toys.run(gated(19, targets=HARD), tmp_path, max_samples=640)
    keys = toys.keys(tmp_path)
    first, second = (i for i, key in enumerate(keys) if key == "eval_start")
    assert first < keys.index("eval_accuracy") < second


def test_an_error_of_the_metric_reaches_the_caller(tmp_path):
    class Failing(toys.Slow):
        def result(self, total):
            raise UserError("annotation 7 is unreadable")

    class Broken(toys.Beside):
        metric = Failing()

    with pytest.raises(UserError, match="annotation 7"):
        toys.run(Broken(), tmp_path)


def test_a_pending_evaluation_is_not_lost_when_the_run_breaks_off(tmp_path, prompt):
    """The checkpoint of step 10 is taken with its evaluation to come; the run breaks off at 15."""
    measure = Gated()

    def alter(step, batch):
        if step == 15:
            assert measure.asked.wait(SECONDS)
            raise UserError("damaged")
        return batch

    class Broken(toys.Beside):
        metric = measure

        def train_data(self, data_dir):
            return toys.Altered(super().train_data(data_dir), alter)

    with pytest.raises(UserError, match="damaged"):
        toys.run(Broken(), tmp_path)
    measure.gate.set()
    assert accuracies(tmp_path) == []
    result = toys.run(toys.Beside(), tmp_path, resume=True)
    assert result.parameters_sha256 == prompt[0].parameters_sha256
    assert accuracies(tmp_path) == accuracies(prompt[1])
    assert sorted(toys.keys(tmp_path)) == sorted(toys.keys(prompt[1]))
    assert toys.scalar_steps(tmp_path)[:3] == toys.scalar_steps(prompt[1])[:3]


def test_a_periodic_checkpoint_waits_for_the_value(tmp_path, prompt):
    result = toys.run(gated(12), tmp_path, checkpoint_every=15)
    assert result.parameters_sha256 == prompt[0].parameters_sha256
    assert accuracies(tmp_path) == accuracies(prompt[1])


def test_a_loss_that_is_not_finite_does_not_undo_an_evaluation_that_passed(tmp_path):
    easy = (Target("accuracy", at_least=0.3),)
    result = toys.run(gated(14, targets=easy, poisoned=(12,)), tmp_path, log_every=1)
    assert result.reached and result.samples == 320
    soon = toys.run(toys.Beside(targets=easy), tmp_path / "soon")
    assert result.parameters_sha256 == soon.parameters_sha256
