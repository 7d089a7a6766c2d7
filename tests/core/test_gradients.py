"""A loss of several means: each over the whole batch, whatever the accumulation."""

import jax
import jax.numpy as jnp
import more_toys
import numpy as np
import optax
import pytest
import toys

from mlperf_jax.core import mesh as meshes, step as train
from mlperf_jax.core.benchmark import Target, Weighted
from mlperf_jax.errors import UserError
from mlperf_jax.results import log as logs
from mlperf_jax.results.runs import Scalars

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def losses(model, batch):
    """Cross entropy of each row, and how far its first logit is from 1."""
    logits = model(batch["x"])
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return logits, entropy, (logits[:, 0] - 1) ** 2


def over(values, chosen):
    return Weighted(jnp.where(chosen, values, 0).sum(), chosen.sum())


class Several(toys.Plain):
    """Two means over rows that the labels choose, 0 to 3 of the 4 to 8 rows of a micro-batch."""

    def loss(self, model, batch, key):
        _, entropy, distance = losses(model, batch)
        means = {
            "entropy": over(entropy, batch["label"] > 0),
            "distance": over(distance, batch["ids"][:, 0] < 5),
        }
        return means, {"rows": jnp.ones(()) * len(entropy)}


class Sampled(Several):
    """One of the means is over rows that the model chooses."""

    def loss(self, model, batch, key):
        logits, entropy, distance = losses(model, batch)
        wrong = logits.argmax(-1) != batch["label"]
        return {"entropy": over(entropy, batch["label"] > 0), "wrong": over(distance, wrong)}


class WithTable(toys.Toy):
    """Rows of a table are looked up; running statistics are left out."""

    def loss(self, model, batch, key):
        logits = model.head(model.mix(batch["rows"]["items"].sum(1)))
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return {
            "entropy": over(entropy, batch["label"] > 0),
            "size": over((logits**2).sum(-1), batch["ids"][:, 0] < 5),
        }


def both(cls, micro, **fields):
    """((state, scalars), (state, scalars)) of three steps in one piece and in micro-batches."""
    given = dict(dtype="float64", **fields)
    return (toys.stepped(cls(gradient_accumulation_steps=n, **given), steps=3) for n in (1, micro))


@pytest.mark.parametrize("micro", [2, 4, 8])
@pytest.mark.parametrize("cls", [Several, Sampled, WithTable])
def test_accumulation_changes_nothing(x64, cls, micro):
    (whole, first), (parts, second) = both(cls, micro)
    assert toys.distance(toys.weights(whole), toys.weights(parts)) < 1e-12
    for a, b in zip(first, second, strict=True):
        a.pop("rows", None), b.pop("rows", None)
        assert a == pytest.approx(b, rel=1e-12)


@pytest.mark.parametrize("cls", [Several, Sampled])
@pytest.mark.parametrize("micro", [1, 4])
def test_the_loss_is_the_sum_of_the_means_of_all_rows(x64, cls, micro):
    benchmark = cls(dtype="float64", rate=1.0, gradient_accumulation_steps=micro)
    assembly = toys.prepared(benchmark)
    state, batch = assembly.create(0), toys.batch_of(benchmark, 0)

    def whole(params):
        loss = benchmark.loss(assembly.model({**state, "params": params}), batch, None)
        means = loss[0] if isinstance(loss, tuple) else loss
        values = {name: mean.total / mean.weight for name, mean in means.items()}
        return sum(values.values()), values

    (wanted, means), grads = jax.value_and_grad(whole, has_aux=True)(state["params"])
    after = jax.tree.map(lambda p, g: p - g, state["params"], grads)
    stepped, scalars = jax.jit(train.make_train_step(assembly))(state, batch, jax.random.key(0))
    assert toys.distance(after, stepped["params"]) < 1e-14
    assert scalars["loss"] == pytest.approx(float(wanted), rel=1e-14)
    for name, mean in means.items():
        assert scalars[name] == pytest.approx(float(mean), rel=1e-14)


def compared():
    """An optimizer that asks for loss and gradients itself: its state is how far they are from those given."""

    def update(grads, state, params, *, value, grad, value_fn, grad_fn, obj_fn):
        del state
        own = grad_fn(params)
        far = [
            jnp.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (own, grad)), strict=True)
        ]
        found = jnp.stack([*far, value_fn(params) - value, obj_fn(params, 3) - value])
        return jax.tree.map(lambda g: -g, grads), found

    def init(params):
        return jnp.zeros(len(jax.tree.leaves(params)) + 2, jnp.float64)

    return optax.GradientTransformationExtraArgs(init, update)


@pytest.mark.parametrize("cls", [Several, Sampled, WithTable, toys.Toy])
@pytest.mark.parametrize("micro", [1, 4])
def test_an_optimizer_may_evaluate_the_loss_of_the_whole_batch(x64, cls, micro):
    fields = dict(dtype="float64", gradient_accumulation_steps=micro, clip_norm=1e-3)
    state, scalars = toys.stepped(cls(**fields), "data=2,fsdp=4", steps=3, optimizer=compared())
    assert jnp.abs(state["opt"][1]).max() < 1e-12
    calls = 3  # value_fn, grad_fn and obj_fn, in each of three steps
    assert state["evaluations"] == scalars[-1]["loss_evaluations"] == 3 * calls


def test_line_searches_count_their_evaluations(tmp_path):
    benchmark = toys.Plain(sample_limit=32 * 10, targets=(Target("accuracy", above=0.99),))
    result = toys.run(benchmark, tmp_path, optimizer=optax.lbfgs())
    lines = [x for x in logs.read(tmp_path / "result_0.txt") if x.key == "loss_evaluations"]
    assert [line.value for line in lines] == [result.loss_evaluations]
    assert result.loss_evaluations >= 10


def test_devices_agree(x64):
    fields = dict(dtype="float64", gradient_accumulation_steps=2)
    for cls in (Several, Sampled, WithTable):
        one, eight = (toys.stepped(cls(**fields), mesh)[0] for mesh in ("data=1", "data=2,fsdp=4"))
        assert toys.distance(toys.weights(one), toys.weights(eight)) < 1e-12


def test_a_mean_of_nothing_is_zero():
    benchmark = Several(dtype="float32", gradient_accumulation_steps=4)
    assembly, batch = toys.prepared(benchmark), toys.batch_of(benchmark, 0)
    batch["ids"][:] = 9
    _, scalars = jax.jit(train.make_train_step(assembly))(
        assembly.create(0), batch, jax.random.key(0)
    )
    assert scalars["distance"] == 0 and scalars["loss"] == scalars["entropy"] > 0


@pytest.mark.parametrize("cls", [Several, Sampled])
def test_a_bad_micro_batch_is_left_out_of_every_mean(x64, cls):
    """The weights beforehand would count it."""
    given = dict(dtype="float64", ema_decay=None)
    skipping = cls(nonfinite="skip", gradient_accumulation_steps=4, **given)
    batch = toys.batch_of(skipping, 0)
    good = {name: np.delete(v, np.s_[2::4], axis=0) for name, v in batch.items()}
    batch["x"][2::4] = np.nan
    found = []
    for benchmark, rows in ((skipping, batch), (cls(batch_size=24, **given), good)):
        assembly = toys.prepared(benchmark)
        program = jax.jit(train.make_train_step(assembly))
        found.append(program(assembly.create(0), rows, jax.random.key(0)))
    (skipped, scalars), (wanted, means) = found
    assert toys.distance(wanted["params"], skipped["params"]) < 1e-12
    assert {n: float(scalars[n]) for n in means if n != "rows"} == pytest.approx(
        {n: float(value) for n, value in means.items() if n != "rows"}, rel=1e-12
    )


# -- what it costs ---------------------------------------------------------------------------------


def work(loss, micro):
    """FLOPs of a step of a deep model on this loss of its logits."""

    class Deep(toys.Layered):
        def loss(self, model, batch, key):
            return loss(model(batch["x"]), batch["label"])

    benchmark = Deep(dtype="float32", gradient_accumulation_steps=micro)
    assembly = toys.prepared(benchmark)
    batch = train.abstract_batch(benchmark.buckets()[0], meshes.batch_sharding(assembly.mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = train.jit_train_step(assembly).lower(assembly.abstract, batch, key).compile()
    return compiled.cost_analysis()["flops"]


def entropy(logits, label):
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def test_means_whose_weights_the_batch_gives_cost_what_one_costs():
    one = lambda logits, label: over(entropy(logits, label), label > 0)  # noqa: E731
    two = lambda logits, label: {"a": one(logits, label), "b": over(logits[:, 0], label > 1)}  # noqa: E731
    wrong = lambda logits, label: {  # noqa: E731
        "a": one(logits, label),
        "b": over(logits[:, 0], logits.argmax(-1) != label),
    }
    for micro in (1, 2):
        assert work(two, micro) < 1.05 * work(one, micro)
    assert work(wrong, 1) < 1.05 * work(one, 1)
    # a second backward pass, which is two thirds of a step
    assert 1.2 * work(one, 2) < work(wrong, 2) < 2 * work(one, 2)


# -- names -----------------------------------------------------------------------------------------


def test_each_mean_is_logged_by_its_name(tmp_path):
    toys.run(Several(), tmp_path, max_samples=640, log_every=5)
    for line in Scalars.read(tmp_path / "run_0" / "scalars.jsonl"):
        assert line["loss"] == pytest.approx(line["entropy"] + line["distance"], rel=1e-6)
        assert line["rows"] == 32


@pytest.mark.parametrize("name", ["loss", "bad_since", "rows"])
def test_a_name_that_is_taken_is_refused(name):
    class Named(toys.Plain):
        def loss(self, model, batch, key):
            return {name: super().loss(model, batch, key)}, {"rows": jnp.ones(())}

    with pytest.raises(UserError, match=f"a mean of the loss is called '{name}', which is taken"):
        toys.stepped(Named(), steps=1)


# -- after a step ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mesh", ["data=1", "data=2,fsdp=4"])
def test_a_routers_bias_moves_once_a_step_whatever_the_accumulation(x64, mesh):
    states = [
        toys.stepped(more_toys.Routed(dtype="float64", gradient_accumulation_steps=n), mesh, k)[0]
        for n in (1, 2, 4)
        for k in (1, 5)
    ]
    first, later = states[::2], states[1::2]
    for state in first:
        assert np.abs(state["stats"]["bias"]).max() == pytest.approx(0.01, rel=1e-6)
        assert not state["stats"]["load"].any()
    for state in later[1:]:
        np.testing.assert_array_equal(state["stats"]["bias"], later[0]["stats"]["bias"])
        assert toys.distance(state["params"], later[0]["params"]) < 1e-12


def test_what_is_counted_after_a_step_are_the_rows_that_counted():
    """Of a bad micro-batch nothing, and after a batch that is bad altogether nothing happens."""
    seen = []

    class Seeing(more_toys.Routed):
        def after_step(self, stats):
            jax.debug.callback(lambda load: seen.append(np.asarray(load)), stats["load"])
            return super().after_step(stats)

    benchmark = Seeing(dtype="float32", nonfinite="skip", gradient_accumulation_steps=4)
    assembly = toys.prepared(benchmark)
    program, key = jax.jit(train.make_train_step(assembly)), jax.random.key(0)
    batch = toys.batch_of(benchmark, 0)
    batch["x"][1::4] = np.nan
    state, _ = program(assembly.create(0), batch, key)
    jax.effects_barrier()
    assert seen[0].sum() == 24
    batch["x"][:] = np.nan
    after, _ = program(state, batch, key)
    np.testing.assert_array_equal(after["stats"]["bias"], state["stats"]["bias"])
    assert state["stats"]["bias"].any() and not after["stats"]["load"].any()


@pytest.mark.parametrize("change", [{"load": jnp.zeros(4)}, {"extra": jnp.zeros(4)}])
def test_statistics_keep_their_shapes(change):
    class Wrong(more_toys.Routed):
        def after_step(self, stats):
            return {**stats, **change}

    with pytest.raises(UserError, match=f"after_step must return .*: {next(iter(change))} was"):
        toys.stepped(Wrong(), steps=1)


def test_evaluation_does_not_count(tmp_path):
    """The loads that evaluation adds up are not kept; the run learns and its weights are reproducible."""
    one, two = (toys.run(more_toys.Routed(), tmp_path / name) for name in ("one", "two"))
    assert one.reached and one.parameters_sha256 == two.parameters_sha256
