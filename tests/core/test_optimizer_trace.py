"""Users' optimizers, traced before a run begins: what is refused with which sentence, and what is told apart."""

import collections
import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from jax.experimental import pallas

from mlperf_jax.core import optimizer_trace, preflight
from mlperf_jax.errors import UserError
from mlperf_jax.optimizers import lars, per_layer, tree as trees

contrib, schedule = optax.contrib, optax.warmup_cosine_decay_schedule


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


PARAMS = {"fc": {"kernel": f32(6, 4), "bias": f32(4)}, "head": {"kernel": f32(4, 3)}}
TREE = trees.ParamTree.from_params(PARAMS)
LAYERED = {
    "layers": {
        "attention": {"kernel": f32(3, 8, 8)},
        "norm": {"scale": f32(3, 8)},
        "fc": {"kernel": f32(3, 8, 16), "bias": f32(3, 16)},
    },
    "head": {"kernel": f32(8, 5)},
}
LAYERED_TREE = trees.ParamTree.from_params(LAYERED)


def traced(tx, params=PARAMS):
    return optimizer_trace.trace(tx, params, trees.ParamTree.from_params(params))


def made(init=lambda params: (), update=lambda grads, state, params: (grads, state)):
    return optax.GradientTransformation(init, update)


def each(function):
    """A transformation that maps a function over the gradients."""
    return made(update=lambda grads, state, params: (jax.tree.map(function, grads), state))


def kernel(index, interpret=True):
    """Doubles the gradient by a kernel that writes its blocks of two rows in another order."""
    block = pallas.BlockSpec((2, 1), index)

    def double(given, out):
        out[...] = 2 * given[...]

    def update(g):
        rows = jnp.zeros((4, 1), g.dtype) + g.sum()
        call = pallas.pallas_call(
            double, rows, grid=(2,), in_specs=[block], out_specs=block, interpret=interpret
        )
        return g + call(rows).sum()

    return each(update)


class Counts:
    """Keeps a counter on itself, which a compiled step would never see again."""

    def __init__(self, after=0):
        self.steps, self.after = 0, after

    def init(self, params):
        return ()

    def update(self, grads, state, params=None):
        self.steps += 1
        factor = max(self.steps, self.after)
        return jax.tree.map(lambda g: -0.1 * g / factor, grads), state


class Evaluated:
    """SGD, evaluated at what a function makes of its weights."""

    def __init__(self, eval_params):
        self.sgd = optax.sgd(0.1)
        if eval_params is not None:
            self.eval_params = eval_params

    def init(self, params):
        return self.sgd.init(params)

    def update(self, grads, state, params=None):
        return self.sgd.update(grads, state, params)


class Weighted(Evaluated):
    def __init__(self):
        super().__init__(None)

    def eval_params(self, state, params):
        return params


class Settings:
    """A research configuration, as they are written."""

    def __init__(self, **values):
        self._values = values

    def __getattr__(self, name):
        return self._values[name]


class Keeps:
    """Keeps arrays of a traced step on itself."""

    last = None

    def init(self, params):
        return ()

    def update(self, grads, state, params=None):
        last, self.last = self.last or grads, grads
        return jax.tree.map(jnp.add, grads, last), state


def noisy(grads, state, params):
    return jax.tree.map(lambda g: g + np.random.normal(size=g.shape).astype("f"), grads), state


def without_bias(grads, state, params):
    return {**grads, "fc": {"kernel": grads["fc"]["kernel"]}}, state


def raising(grads, state, params):
    raise RuntimeError("not today")


FAILING = {
    "another shape": (each(lambda g: g.reshape(-1)[:1]), r"update of fc/bias is float32\[1\] and "),
    "whole numbers": (each(lambda g: g.astype(jnp.int32)), r"fc/bias is int32\[4\] .*floating"),
    "a dropped leaf": (made(update=without_bias), "gives no update of fc/bias: give zeros"),
    "a leaf that is None": (each(lambda g: None), "gives no update of fc/bias"),
    "a new leaf": (
        made(update=lambda g, s, p: ({**g, "more": jnp.zeros(3)}, s)),
        "gives an update of more, which the model lacks",
    ),
    "another state": (
        made(lambda p: jnp.zeros(()), lambda g, s, p: (g, (s, s))),
        r"state changes from step to step: it is float32\[\] after init and nothing after",
    ),
    "another type of state": (
        made(lambda p: {"n": jnp.zeros(())}, lambda g, s, p: (g, {"n": s["n"] > 0})),
        r"n is float32\[\] after init and bool\[\] after update",
    ),
    "one value": (made(update=lambda g, s, p: g), "gives dict: it must give the updates and its"),
    "None": (made(update=lambda g, s, p: None), "gives NoneType"),
    "an exception": (
        made(update=raising),
        r"update of the optimizer fails .*RuntimeError: not today \(.*test_optimizer_trace.py, line \d+",
    ),
    "a tracer as a number": (each(lambda g: g * float(g.sum())), "fails .*use jnp.where"),
    "a tracer as a condition": (each(lambda g: g if g.sum() > 0 else -g), "fails .*use jnp.where"),
    "a counter on the object": (Counts(), "is another one each time it is traced"),
    "noise of NumPy": (made(update=noisy), "is another one each time it is traced"),
    "arrays on the object": (Keeps(), "uses arrays of an earlier step: keep them in the state"),
    "a rate that is text": (optax.adam("0.1"), "step_size of the optimizer is text: give a number"),
    "a rate that is no number": (optax.adamw(float("nan")), "step_size of the optimizer is nan"),
    "another setting that is none": (optax.adam(1e-3, b1=float("nan")), "computes with nan: look"),
    "an injected one": (optax.inject_hyperparams(optax.adam)(np.nan), "learning_rate of .* is nan"),
    "an infinite rate": (optax.adamw(float("inf")), "step_size of the optimizer is -inf"),
    "an injected rate": (
        optax.inject_hyperparams(optax.adam)(np.inf),
        "learning_rate of .* is inf",
    ),
    "a mask of another tree": (
        optax.masked(optax.sgd(0.1), {"fc": True, "tail": False}),
        "init of the optimizer fails",
    ),
    "a counter that acts later": (Counts(after=9), "is another one each time it is traced"),
    "other containers": (
        made(update=lambda g, s, p: (collections.OrderedDict(g), s)),
        "in other containers than the gradients",
    ),
    "four bits": (made(lambda p: jnp.zeros(3, jnp.int4)), "int4, which arrays of a step cannot be"),
    "evaluation weights that fail": (
        Evaluated(lambda s, p: 1 / 0),
        "eval_params of the optimizer fails",
    ),
    "a callback": (
        each(lambda g: jax.pure_callback(np.asarray, g, g)),
        r"calls Python while a step runs \(pure_callback\)",
    ),
    "a kernel of an accelerator": (
        kernel(lambda row: (row, 0), interpret=False),
        r"cannot be compiled here \(.*leave out its pallas_call",
    ),
    "a function of no library": (
        each(lambda g: jax.ffi.ffi_call("nobodys", f32(*g.shape))(g)),
        r"cannot be compiled here \(.*leave out its ffi_call",
    ),
    "averages of its own": (optax.lookahead(optax.sgd(0.1), 5, 0.5), "average them with ema_decay"),
    "gradients of examples": (contrib.dpsgd(0.1, 1.0, 1.0, 0), "per-example ones cannot be had"),
    "the loss at a part": (
        per_layer(optax.lbfgs(1.0)),
        "update of the optimizer fails|asks for the loss at other parameters",
    ),
}


@pytest.mark.parametrize("what", FAILING)
def test_what_cannot_train_is_refused_in_one_sentence(what):
    tx, sentence = FAILING[what]
    with pytest.raises(UserError, match=sentence) as caught:
        traced(tx, LAYERED if what == "the loss at a part" else PARAMS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (optax.adamw, r"adamw of optax was not called: give what it returns, adamw\(…\)"),
        (each(lambda g: g.reshape(-1)[:1]), "update of head/bias is"),
        (lambda tree: 1 / 0, r"failed when given the ParamTree: ZeroDivisionError.*line \d+\)"),
        (lambda tree: None, "optimizer None has no init and update"),
        (lambda tree: sys.exit("bad settings"), "SystemExit: bad settings"),
        (functools.partial(optax.sgd, 0.1, 0.9), "sgd of optax was not called"),
        (lambda nesterov=False: optax.sgd(0.1), "as nesterov, which is False by default"),
        (optax.chain(optax.clip(1.0), Weighted()), "Weighted is evaluated at its eval_params, and"),
    ],
)
def test_refused_before_any_folder(given, sentence, tmp_path):
    options = toys.options(tmp_path / "output", optimizer=given)
    with pytest.raises(UserError, match=sentence):
        preflight.preflight(toys.Toy(), options, "data")
    assert not (tmp_path / "output").exists()


def squares(tree):
    return sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(tree))


def asking(function):
    def update(updates, state, params, *, value_fn, grad):
        return function(updates, value_fn(params), grad), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def with_settings(settings):
    return each(lambda g: -settings.rate * g)


SERVED = {
    "words in settings": optax.chain(optax.sgd(0.1), each(lambda g, decay="cosine": g)),
    "no clipping": optax.clip_by_global_norm(np.inf),
    "not known yet": made(lambda p: {"last": jnp.full((), jnp.nan)}, lambda g, s, p: (g, s)),
    "settings of any name": with_settings(Settings(rate=0.1)),
    "paths that meet": made(
        lambda p: {"a/b": p["head"], "a": {"b": p["fc"]}}, lambda g, s, p: (g, s)
    ),
}


@pytest.mark.parametrize("what", SERVED)
def test_what_can_train_is_served(what):
    assert traced(SERVED[what]).notes == ()


# -- identity --------------------------------------------------------------------------------------

PEAK = 1e-3


def test_a_program_is_told_from_others_by_what_it_computes():
    global PEAK
    different = [
        optax.adam(schedule(0.0, 1e-3, 10, 100)),
        optax.adam(schedule(0.0, 1e-2, 10, 100)),
        optax.inject_hyperparams(optax.adamw)(1e-3),
        optax.inject_hyperparams(optax.adamw)(1e-2),
        optax.adam(jnp.asarray([1e-3, 1e-2])[0]),
        optax.adam(jnp.asarray([1e-3, 1e-2])[1]),
        optax.adam(lambda step: PEAK / (step + 1)),
        optax.chain(optax.chain(optax.clip(1.0)), optax.adam(1e-3)),
        optax.chain(optax.chain(optax.clip(2.0)), optax.adam(1e-3)),
        optax.adamw(1e-3, mask=TREE.biases),
        optax.adamw(1e-3, mask=~TREE.biases),
        made(lambda p: jnp.arange(4.0), lambda g, s, p: (g, s)),
        made(lambda p: jnp.arange(4.0)[::-1], lambda g, s, p: (g, s)),
        optax.noisy_sgd(0.1, key=0),
        optax.noisy_sgd(0.1, key=1),
        kernel(lambda row: (row, 0)),
        kernel(lambda row: (1 - row, 0)),
        Evaluated(lambda state, params: params),
        Evaluated(lambda state, params: jax.tree.map(lambda p: 0.5 * p, params)),
        asking(lambda updates, value, grad: jax.tree.map(lambda g: -0.1 * g, updates)),
        asking(lambda updates, value, grad: jax.tree.map(lambda g: -0.1 * g, grad)),
        asking(lambda updates, value, grad: jax.tree.map(lambda g: -g / (1 + value), updates)),
        asking(
            lambda updates, value, grad: jax.tree.map(lambda g: -g / (1 + squares(grad)), updates)
        ),
    ]
    programs = [traced(tx).program for tx in different]
    PEAK = 1e-2
    programs.append(traced(optax.adam(lambda step: PEAK / (step + 1))).program)
    assert len(set(programs)) == len(programs)
    assert traced(different[0]).program == programs[0]


SAME = """
import jax, optax, jax.numpy as jnp
{unrelated}
def my_own(rate):
    @jax.jit
    def moved(g):
        return -rate * jax.nn.silu(jnp.where(g > 0, g, 0.5 * g))
    return optax.stateless_with_tree_map(lambda g, p: moved(g))
optimizer = optax.chain(optax.adaptive_grad_clip(0.1), my_own(1e-2), optax.scale_by_trust_ratio())
"""


def test_a_program_is_the_same_in_another_process_and_after_an_unrelated_edit():
    code = SAME + (
        "from mlperf_jax.core import optimizer_trace as t; from mlperf_jax.optimizers import tree\n"
        "p = dict(k=jax.ShapeDtypeStruct((5, 4), 'f')); "
        "print(t.trace(optimizer, p, tree.ParamTree.from_params(p)).program)"
    )
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    unrelated = "# a word\nOTHER = 3\ndef helper():\n    return 4\n"
    command = [sys.executable, "-c", code.format(unrelated=unrelated)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    here: dict = {}
    exec(SAME.format(unrelated=""), here)
    assert found.stdout.strip() == traced(here["optimizer"], {"k": f32(5, 4)}).program


# -- what an update asks for -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tx", "extras", "calls"),
    [
        (optax.sgd(0.1), optimizer_trace.EXTRAS, 0),
        (made(), (), 0),
        (optax.MultiSteps(optax.polyak_sgd(), 2), optimizer_trace.EXTRAS, 0),
        (contrib.sam(optax.sgd(0.1), optax.sgd(0.1), opaque_mode=True), ("grad_fn",), 1),
        (
            optax.chain(
                optax.clip(1.0), contrib.sam(optax.sgd(0.1), optax.sgd(0.1), 3, True, True)
            ),
            ("grad_fn",),
            2,
        ),
        (optax.lbfgs(), ("value", "grad", "value_fn"), 1),
        (contrib.sophia(0.1), optimizer_trace.EXTRAS, 1),
    ],
)
def test_extra_arguments_go_to_those_that_take_them(tx, extras, calls):
    found = traced(tx)
    assert found.extras == extras
    assert bool(found.calls) == bool(calls)


# -- stacks of layers ------------------------------------------------------------------------------

WRONG = {
    "lamb": optax.lamb(1e-3),
    "clipped lamb": optax.chain(optax.clip_by_global_norm(1.0), optax.lamb(1e-3)),
    "muon": contrib.muon(1e-3),
    "adafactor": optax.adafactor(1e-3, min_dim_size_to_factor=2),
    "block clipping": optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(0.1)),
    "masked by rank": optax.adamw(1e-3, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    "centralised": optax.chain(optax.centralize(), optax.sgd(0.1)),
    "per axis": optax.sm3(1e-3),
    "sorted": each(lambda g: jnp.sort(g, axis=0)),
    "the largest": each(lambda g: g * (g >= jax.lax.top_k(g, 2, axis=0)[0][-1])),
    "in reverse": each(lambda g: g[::-1]),
    "transformed": each(lambda g: jnp.fft.fftn(g).real),
    "by size": each(lambda g: g / g.size**0.5),
    "by rank": each(lambda g: g * 0.5 if g.ndim > 1 else g * 0.25),
    "scanned and summed": each(lambda g: g / jnp.cumsum(g, axis=0)[-1]),
}
RIGHT = {
    "adamw": optax.adamw(1e-3),
    "masked": optax.adamw(1e-3, mask=~(LAYERED_TREE.norms | LAYERED_TREE.biases)),
    "global norm": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
    "twice a global norm": optax.chain(
        optax.clip_by_global_norm(1.0), optax.normalize_by_update_norm(), optax.sgd(1.0)
    ),
    "prodigy": contrib.prodigy(1.0),
    "lbfgs": optax.lbfgs(1.0),
    "flat": optax.flatten(optax.adam(1e-3)),
    "muon by the tree": contrib.muon(1e-3, muon_weight_dimension_numbers=LAYERED_TREE.matrices),
    "lamb per layer": per_layer(optax.lamb(1e-3)),
    "clipped lamb per layer": optax.chain(optax.clip(1.0), per_layer(optax.lamb(1e-3))),
    "ours": lars(0.1),
    "one layer at a time": each(lambda g: jax.lax.map(jnp.tanh, g)),
    "the largest of a row": each(lambda g: g * (g >= jax.lax.top_k(g, 2)[0][..., -1:])),
    "by row": each(lambda g: g / jnp.sqrt((g * g).sum(-1, keepdims=True))),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_stack_taken_for_one_tensor_is_named_with_the_remedy(what):
    (note,) = traced(WRONG[what], LAYERED).notes
    assert note.startswith("note: the optimizer takes 3 layers stacked in one array")
    assert "per_layer" in note and "layers/" in note and "head" not in note


@pytest.mark.parametrize("what", RIGHT)
def test_nothing_is_said_of_what_sees_layers(what):
    assert not traced(RIGHT[what], LAYERED).notes


@pytest.mark.parametrize("what", WRONG)
def test_nothing_is_said_without_stacks(what):
    assert not traced(WRONG[what]).notes


def test_the_note_is_said_at_the_start(tmp_path, capfd):
    options = dict(optimizer=optax.lamb(1e-2), max_samples=32, show="plain")
    toys.run(toys.Layered(), tmp_path, **options)
    assert "stacked in one array for one tensor" in capfd.readouterr().err


@pytest.mark.parametrize("opaque", [False, True])
def test_adversarial_weights_between_steps_are_told_of(opaque):
    sam = contrib.sam(optax.sgd(0.1), optax.sgd(0.1), opaque_mode=opaque)
    notes = traced(optax.chain(optax.clip(1.0), sam)).notes
    assert [("opaque_mode=True" in note) for note in notes] == [True] * (not opaque)
