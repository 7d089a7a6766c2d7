"""Levers as values and texts, what each changes in a step, and who has none of them."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from hypothesis import given, strategies as st

from mlperf_jax import benchmarks
from mlperf_jax.core import gradients, preflight, step as train
from mlperf_jax.core.levers import Levers, split
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError

# -- values and texts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "ema_decay=0.99",
        "ema_decay=0.999+label_smoothing=0+sam=0.05+batch_ramp=16:2000,32:6000+size_ramp=24:800",
        "sam=1e-09",
        "label_smoothing=0.123456789",
        "transform=my_file.py:make",
    ],
)
def test_a_text_says_levers_and_they_say_the_text(text):
    levers = Levers.of(text)
    assert str(levers) == text and Levers.of(str(levers)) == levers
    assert Levers.of(levers.given) == levers
    assert split(f"adamw:1e+3,b1=0.9+{text}") == ("adamw:1e+3,b1=0.9", levers)


def test_no_levers_are_false_and_say_nothing():
    assert not Levers() and str(Levers()) == ""
    assert all(Levers.of(given) == Levers() for given in ("", {}, None))
    assert Levers(label_smoothing=0.0), "a label that is not smoothed where the recipe smooths it"
    assert split("sgd:0.5") == ("sgd:0.5", Levers())


def test_levers_are_joined_and_left_out():
    one, other = Levers(sam=0.1, ema_decay=0.9), Levers(sam=0.2, size_ramp=((8, 100),))
    assert one.joined(other) == Levers(sam=0.2, ema_decay=0.9, size_ramp=((8, 100),))
    assert other.without("size_ramp") == Levers(sam=0.2)
    assert not one.ramped and other.ramped


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("emma_decay=0.9", r"no lever 'emma_decay': did you mean 'ema_decay'"),
        ("ema_decay", "'ema_decay' is no lever: write NAME=VALUE"),
        ("ema_decay=", "is no lever: write NAME=VALUE"),
        ("sam=0.1+sam=0.2", "sam is given twice"),
        ("sam=big", "sam cannot be 'big': write it as in sam=0.1"),
        ("sam=0", "sam must be a number, above 0, or None, not 0.0"),
        ("sam=nan", "sam must be a number, above 0"),
        ("ema_decay=1", "ema_decay must be a number, at least 0 and below 1"),
        ("label_smoothing=-0.1", "label_smoothing must be"),
        ("batch_ramp=16", "batch_ramp cannot be '16': write it as in batch_ramp=16:2000,32:6000"),
        ("batch_ramp=16:x", "batch_ramp cannot be"),
        ("batch_ramp=0:100", "batch_ramp must be"),
        ("batch_ramp=16:100,32:100", "batch_ramp: the samples until which a value holds must grow"),
        ("size_ramp=16:200,32:100", "size_ramp: the samples until which"),
        ({"sam": "x"}, "sam must be a number"),
        ({"sam": True}, "sam must be a number"),
        ({"batch_ramp": [[16, 100], [32]]}, "batch_ramp must be"),
        ({3: 4}, "no lever 3"),
        ("sam=0.1+", "'' is no lever"),
        (["sam=0.1"], r"levers must be NAME=VALUE joined by"),
        (True, "levers must be NAME=VALUE"),
        ("EMA_DECAY=0.9", "no lever 'EMA_DECAY'; known: batch_ramp, ema_decay"),
        (7, r"levers must be NAME=VALUE joined by \+ \(.*\), a dict, or Levers\(…\), not 7"),
    ],
)
def test_what_is_no_lever_is_refused_by_name(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        benchmarks.get("resnet", tiny=True, levers=wrong)


# -- segments --------------------------------------------------------------------------------------

RAMPS = st.lists(st.tuples(st.integers(1, 48), st.integers(1, 500)), max_size=4).map(
    lambda pairs: tuple(zip([p[0] for p in pairs], sorted({p[1] for p in pairs}), strict=False))
)


@given(batches=RAMPS, sizes=RAMPS, batch_size=st.integers(1, 48))
def test_every_batch_begins_where_the_one_before_it_ends(batches, sizes, batch_size):
    levers = Levers(batch_ramp=batches, size_ramp=sizes)
    segments = levers.segments(batch_size)
    assert segments[0][:2] == (0, 0) and segments[-1].batch == batch_size
    for one, following in itertools.pairwise(segments):
        assert following.step > one.step
        assert following.samples - one.samples == (following.step - one.step) * one.batch
    assert all(one.samples % one.batch == 0 for one in segments), "a batch of the stream"
    ends = [end for _, end in (*batches, *sizes)]
    assert segments[-1].samples >= max(ends, default=0)
    wanted = list(itertools.accumulate(itertools.chain.from_iterable(
        [one.batch] * ((after.step if after else one.step + 3) - one.step)
        for one, after in itertools.zip_longest(segments, segments[1:])
    ), initial=0))  # fmt: skip
    assert [levers.samples(step, batch_size) for step in range(len(wanted))] == wanted


def test_batches_that_nothing_divides_are_followed_at_once():
    levers = Levers(batch_ramp=((1, 10), (1_000_000_007, 2_000_000_000)))
    assert [one.batch for one in levers.segments(64)] == [1, 1_000_000_007, 64]
    with pytest.raises(UserError, match="exceeds the 1437 training samples"):
        benchmarks.get("resnet", tiny=True, bn_span=1, levers=levers)


def test_a_ramp_keeps_its_sizes_and_goes_on_with_the_benchmarks():
    levers = Levers(batch_ramp=((8, 40), (16, 100)), size_ramp=((24, 64),))
    assert [tuple(one) for one in levers.segments(32)] == [
        (0, 0, 8, 24),
        (6, 48, 16, 24),  # 40 is no multiple of 16: one batch of eight more
        (7, 64, 16, None),
        (11, 128, 32, None),  # nor 100 and 112 of 32
    ]


# -- what they change in a step --------------------------------------------------------------------


def moved(benchmark, mesh="data=1", optimizer=None):
    """Weights before and after a step, its scalars, and the gradient's batch."""
    assembly = toys.prepared(benchmark, mesh, optimizer)
    batch = toys.batch_of(benchmark, 0)
    before = assembly.create(0)
    after, scalars = jax.jit(train.make_train_step(assembly))(before, batch, jax.random.key(0))
    return assembly, batch, before, after, scalars


def differences(before, after):
    return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), before, after)


class Tabled(toys.Toy):
    """Plain gradient descent at rate 1, so that weights move by their gradients."""

    def optimizer(self, tree):
        return optax.sgd(1.0)


@pytest.mark.parametrize("micro", [1, 4])
def test_a_sharpness_aware_step_goes_by_the_gradient_uphill(x64, micro):
    fields = dict(dtype="float64", ema_decay=None, gradient_accumulation_steps=micro)
    rho = 0.3
    assembly, batch, before, plain, flat = moved(Tabled(**fields))
    grads = differences(before["params"], plain["params"])
    scale = rho / math.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(grads)))
    uphill = jax.tree.map(lambda w, g: w + scale * g, before["params"], grads)
    rows = train.look_up(assembly, before["tables"], {"items": batch["ids"]})
    key = jax.random.fold_in(jax.random.key(0), 0)
    given = {name: jnp.asarray(leaf) for name, leaf in batch.items()}
    away = gradients.gradients(assembly, {**before, "params": uphill}, given, rows, key)
    *_, stepped, scalars = moved(Tabled(levers=Levers(sam=rho), **fields))
    wanted = differences(before["params"], stepped["params"])
    assert toys.distance(away["grads"][0], wanted) < 1e-12
    assert toys.distance(grads, wanted) > 0.01, "it is another gradient"
    assert scalars["loss"] == pytest.approx(float(flat["loss"]), rel=1e-12), "the loss is that here"
    assert toys.distance(plain["stats"], stepped["stats"]) < 1e-12
    rows_moved = [differences(before["tables"], found["tables"]) for found in (plain, stepped)]
    assert toys.distance(*rows_moved) > 1e-3, "tables are updated by the gradient uphill too"


def test_a_sharpness_aware_step_is_the_same_on_every_mesh(x64):
    sam = Tabled(dtype="float64", levers=Levers(sam=0.3))
    one, eight = (moved(sam, mesh)[3] for mesh in ("data=1", "data=2,fsdp=4"))
    assert toys.distance(toys.weights(one), toys.weights(eight)) < 1e-12


def test_where_there_is_no_gradient_there_is_no_uphill():
    class Flat(toys.Plain):
        def loss(self, model, batch, key):
            return super().loss(model, batch, key) * 0

    _, _, before, after, scalars = moved(Flat(dtype="float32", levers=Levers(sam=0.3)))
    assert scalars["loss"] == 0 and toys.distance(before["params"], after["params"]) == 0


def test_a_bad_batch_is_skipped_by_sharpness_aware_steps_too():
    benchmark = toys.Toy(dtype="float32", nonfinite="skip", levers=Levers(sam=0.3))
    assembly, batch = toys.prepared(benchmark), toys.batch_of(benchmark, 0)
    batch["x"][:] = np.nan
    before = assembly.create(0)
    after, _ = jax.jit(train.make_train_step(assembly))(before, batch, jax.random.key(0))
    assert toys.distance(before["params"], after["params"]) == 0
    assert after["bad_since"] == 1


def test_the_lever_averages_as_the_field_does():
    field = moved(toys.Plain(dtype="float32", ema_decay=0.75))[3]
    lever = moved(toys.Plain(dtype="float32", levers=Levers(ema_decay=0.75)))[3]
    assert toys.distance(field["ema"], lever["ema"]) == 0
    assert "ema" not in moved(toys.Plain(dtype="float32"))[3]
    with pytest.raises(UserError, match=r"ema_decay 0\.75.*so does the optimizer"):
        toys.prepared(
            toys.Plain(dtype="float32", levers=Levers(ema_decay=0.75)),
            optimizer=optax.contrib.schedule_free_sgd(0.1),
        )


def test_a_lever_for_labels_stands_in_place_of_the_recipes():
    resnet = benchmarks.get("resnet", tiny=True)
    assert resnet.smoothing == 0.1
    assert resnet.replace(levers=Levers(label_smoothing=0.0)).smoothing == 0.0
    assert benchmarks.get("bert", tiny=True).smoothing == 0.0


def loss_program(benchmark):
    assembly = toys.prepared(preflight.resolve_dtype(benchmark), optimizer=optax.identity())
    arguments = next(train.train_arguments(assembly))
    with jax.set_mesh(assembly.mesh):
        return str(train.jit_train_step(assembly).trace(*arguments).jaxpr)


@pytest.mark.parametrize("name", ["resnet", "bert", "llama31_8b", "rgat"])
def test_a_loss_reads_the_smoothing_where_it_says_so(name):
    benchmark = benchmarks.get(name, tiny=True)
    assert benchmark.smooths_labels
    smoothed = benchmark.replace(levers=Levers(label_smoothing=0.37))
    assert "0.37" in loss_program(smoothed) and "0.37" not in loss_program(benchmark)


# -- who has which ---------------------------------------------------------------------------------


def test_every_benchmark_says_which_levers_it_has():
    classes = {name: benchmarks.benchmark_class(name) for name in benchmarks.names()}
    smooth = {name for name, cls in classes.items() if cls.smooths_labels}
    llms = {"gpt3", "llama31_8b", "llama31_405b", "llama2_70b_lora"}
    assert smooth == {"resnet", "bert", "rgat"} | llms
    assert {name: cls.sized_by for name, cls in classes.items() if cls.sized_by} == {
        "resnet": "image_size",
        "retinanet": "image_size",
        "unet3d": "patch",
        **dict.fromkeys(llms, "sequence_length"),
    }


@pytest.mark.parametrize(
    ("name", "levers", "sentence"),
    [
        ("unet3d", "label_smoothing=0.1", "unet3d has no label_smoothing: its loss has no classes"),
        ("dlrm_dcnv2", "size_ramp=8:100", "dlrm_dcnv2 has no size_ramp: its examples have one size"),
        ("rgat", "batch_ramp=64:100", "rgat has no batch_ramp: it counts its samples in its own way"),
        ("resnet", "batch_ramp=48:100", "batch_ramp=48:100: batch size 48 is not a multiple of bn_span"),
        ("resnet", "size_ramp=32:100", "size_ramp: 32 is no smaller than image_size 32"),
        ("resnet", "batch_ramp=6400:100", "batch_size 6400 exceeds the 1437 training samples"),
        ("unet3d", "size_ramp=5:100", "size_ramp=5:100: patch 5 cannot be halved"),
        ("resnet", "transform=a.py:b", "transform is given to a run"),
    ],
)  # fmt: skip
def test_a_lever_that_a_benchmark_has_not_is_refused(name, levers, sentence):
    with pytest.raises(UserError, match=sentence):
        benchmarks.get(name, tiny=True, levers=levers)


def test_the_closed_division_pulls_no_lever():
    official = benchmarks.get("resnet", levers="sam=0.05")
    with pytest.raises(UserError, match=r"a lever \(--levers\) is not allowed in the closed"):
        preflight.resolve_division(official, RunOptions())
    assert preflight.resolve_division(official, RunOptions(division="open")) == "open"


def test_plan_and_bench_look_at_one_kind_of_batch():
    from mlperf_jax.core import bench

    ramped = toys.Plain(levers=Levers(batch_ramp=((8, 40),)))
    with pytest.raises(
        UserError, match="bench looks at one kind of batch, and batch_ramp=8:40 has"
    ):
        bench.bench(ramped, RunOptions(mesh="data=1"))


def test_a_configuration_keeps_its_levers_and_one_of_before_has_none():
    levers = Levers(sam=0.05, batch_ramp=((8, 40),))
    benchmark = toys.Plain(levers=levers)
    config = benchmark.config()
    assert config["levers"] == "sam=0.05+batch_ramp=8:40"
    assert toys.Plain.from_config(config) == benchmark
    assert "levers" not in toys.Plain().config(), "as before there were any"
    assert toys.Plain.from_config(toys.Plain().config()) == toys.Plain()


# -- smoothing as mathematics ----------------------------------------------------------------------


def test_smoothed_losses_are_cross_entropies_with_smooth_labels(x64):
    from mlperf_jax.ops import cross_entropy, losses

    rng, share = np.random.default_rng(0), 0.3
    hidden, head = rng.normal(size=(2, 5, 8)), rng.normal(size=(8, 11))
    labels = rng.integers(0, 11, (2, 5))
    labels[0, 2] = cross_entropy.IGNORE
    weight = (labels >= 0).astype(float)

    def wanted(hidden, head):
        log = jax.nn.log_softmax(hidden @ head)
        smooth = (1 - share) * jax.nn.one_hot(labels, 11) + share / 11
        return -(weight * (smooth * log).sum(-1)).sum()

    def chunked(hidden, head):
        return cross_entropy.chunked_xent(
            hidden, head, jnp.array(labels), smoothing=share, chunk=3
        )[0]

    def weighted(hidden, head):
        return losses.weighted_xent(hidden @ head, jnp.array(labels), jnp.array(weight), share)[0]

    truth = jax.value_and_grad(wanted, (0, 1))(hidden, head)
    for function in (chunked, weighted):
        found = jax.value_and_grad(function, (0, 1))(jnp.array(hidden), jnp.array(head))
        assert toys.distance(truth[1], found[1]) < 1e-12
        assert float(found[0]) == pytest.approx(float(truth[0]), rel=1e-12)
