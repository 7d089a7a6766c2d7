"""BERT against transformers (scripts/make_bert_reference.py), the fact sheet, itself packed and on meshes."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import modules
import numpy as np
import optax
import pytest
from flax import nnx

from mlperf_jax.core import mesh as meshes, state as states
from mlperf_jax.errors import UserError
from mlperf_jax.models import bert, bert_huggingface
from mlperf_jax.models.bert import Bert, BertConfig
from mlperf_jax.ops import dropout, losses
from mlperf_jax.optimizers import ParamTree, clip_by_global_norm, flatten_paths, lamb, linear_decay
from scripts import make_bert_reference as reference

QUIET = BertConfig(**reference.SIZES, dropout=0.0)
NOISY = QUIET.replace(dropout=0.1)


def build(config, dtype=jnp.float32):
    return Bert(config, dtype, rngs=nnx.Rngs(0))


def shapes(config, dtype=jnp.bfloat16):
    return modules.abstract(lambda: build(config, dtype))[1]


@functools.cache
def graph(config, dtype):
    return modules.abstract(lambda: build(config, dtype))[0]


@functools.cache
def stored():
    with np.load(reference.OUTPUT) as file:
        return dict(file)


@functools.cache
def weights():
    """The state dict of transformers: its own names and shapes, the script's values."""
    told = json.loads(stored()["gradients"].tobytes())["shapes"]
    return {name: reference.weight(name, tuple(shape)) for name, shape in told.items()}


def parameters(dtype=np.float32, tensors=None):
    """Weights of transformers, those of the script unless others are given, as our nested dict."""
    read = bert_huggingface.readers(weights() if tensors is None else tensors, QUIET)
    return modules.whole(read, dtype)


def unpacked():
    """The script's batch as our arrays: one sequence a row, the others' slots empty."""
    batch = {**reference.batch(), "positions": None}
    batch["segments"] = batch.pop("real").astype(np.int32)
    batch["first"] = np.zeros((len(reference.LENGTHS), 1), np.int32)
    batch["next"], batch["present"] = batch["next"][:, None], np.ones(batch["first"].shape)
    return batch


def packed():
    """The same sequences two to a row, the third row holding none."""
    one, length = unpacked(), reference.LENGTH + 8
    rows = {name: np.zeros((3, length), np.int32) for name in ("tokens", "types", "segments")}
    rows["positions"] = rows["tokens"].copy()
    slots = {name: np.zeros((3, 2 * reference.SLOTS), one[name].dtype)
             for name in ("at", "ids", "weights")}  # fmt: skip
    ends = {name: np.zeros((3, 2), one[name].dtype) for name in ("first", "next", "present")}
    for i, n in enumerate(reference.LENGTHS):
        row, second = divmod(i, 2)
        start = second * reference.LENGTHS[i - 1]
        span, part = slice(start, start + n), slice(second * reference.SLOTS, None)
        for name in ("tokens", "types"):
            rows[name][row, span] = one[name][i, :n]
        rows["segments"][row, span], rows["positions"][row, span] = second + 1, np.arange(n)
        for name, value in (("at", one["at"][i] + start), ("ids", one["ids"][i]),
                            ("weights", one["weights"][i])):  # fmt: skip
            slots[name][row, part][: reference.SLOTS] = value
        ends["first"][row, second], ends["present"][row, second] = start, 1
        ends["next"][row, second] = one["next"][i, 0]
    return {**rows, **slots, **ends}


def logits_of(model, batch, key=None):
    hidden = model.hidden(
        batch["tokens"],
        batch["types"],
        segments=batch["segments"],
        positions=batch["positions"],
        key=key,
    )
    return model.masked_logits(hidden, batch["at"]), model.next_logits(hidden, batch["first"])


def losses_of(model, batch, key=None):
    masked, following = logits_of(model, batch, key)
    pairs = (
        losses.weighted_xent(masked, batch["ids"], batch["weights"]),
        losses.weighted_xent(following, batch["next"], batch["present"]),
    )
    return [total / weight for total, weight in pairs], (masked, following)


def compiled(function):
    """A jitted function that compiles quickly and runs slowly."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def computed(config, dtype):
    """A jitted function of (params, batch, key): losses and logits, and the gradients of the summed losses."""

    def run(params, batch, key=None):
        def loss(params):
            model = states.merge(graph(config, dtype), params, {}, {})
            found, logits = losses_of(model, batch, key)
            return sum(found), (found, logits)

        (_, found), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return *found, gradients

    return compiled(run)


# -- sizes -----------------------------------------------------------------------------------------


def test_parameters_are_as_many_as_in_the_reference():
    tree = ParamTree.from_params(shapes(BertConfig()))
    assert tree.count() == 336_226_108
    assert {leaf.dtype for leaf in tree.leaves} == {np.dtype("float32")}
    heads = sum(leaf.size for leaf in tree.leaves if leaf.path.startswith("masked/"))
    classifier = sum(leaf.size for leaf in tree.leaves if "classifier" in leaf.path)
    assert (heads, classifier) == (1_082_170, 2_050)
    assert tree.count() - heads - classifier == 335_141_888  # transformers' BertModel


def test_kinds_of_parameters():
    tree = ParamTree.from_params(shapes(BertConfig()))
    assert set(tree.embeddings) == {f"{t}/embedding" for t in ("words", "positions", "types")}
    assert set(tree.heads) == {"next/classifier/kernel"}
    assert tree["masked/bias"].kind == tree["next/pooler/bias"].kind == "bias"
    assert tree["masked/norm/bias"].kind == tree["embed_norm/scale"].kind == "norm"
    assert tree["blocks/layers/attention/query/kernel"].layers == 24
    # the reference's list: what has "LayerNorm" or "bias" in its name
    named = {reader._leaf.path for reader in bert_huggingface.readers(weights(), QUIET).values()
             if "LayerNorm" in reader._leaf.name or "bias" in reader._leaf.name}  # fmt: skip
    assert set(tree.norms | tree.biases) == named


def test_flops_are_those_of_the_fact_sheet():
    config = BertConfig()
    assert config.flops(512, 76, training=False) == pytest.approx(339.9e9, rel=2e-4)
    assert config.flops(512, 76) == pytest.approx(1.020e12, rel=5e-4)
    assert config.flops(512, 1, training=False) - config.flops(512, 0, training=False) == (
        2 * (1024**2 + 1024 * 30522)
    )
    assert config.flops(128, 19) == pytest.approx(0.24e12, rel=0.01)


# -- parity ----------------------------------------------------------------------------------------


def test_logits_losses_and_gradients_are_those_of_transformers(x64):
    wanted = stored()
    found, (masked, following), gradients = computed(QUIET, jnp.float64)(
        parameters(np.float64), unpacked()
    )
    np.testing.assert_allclose(masked, wanted["masked_logits"], atol=1e-10)
    np.testing.assert_allclose(following[:, 0], wanted["next_logits"], atol=1e-10)
    np.testing.assert_allclose(found, [wanted["masked_loss"], wanted["next_loss"]], atol=1e-11)
    assert np.abs(wanted["masked_logits"] - wanted["exact_gelu_masked_logits"]).max() > 1e-3
    gradients = reference.summary(bert_huggingface.to_huggingface(gradients, QUIET))
    told = json.loads(wanted["gradients"].tobytes())
    del told["shapes"]
    assert gradients.keys() == told.keys()
    for name, values in told.items():
        # softmax does not feel a bias of the keys, whose gradient is rounding
        np.testing.assert_allclose(gradients[name], values, rtol=1e-9, atol=1e-10, err_msg=name)


def test_float32_is_within_its_rounding_of_transformers():
    wanted = stored()
    found, logits, _ = computed(QUIET, jnp.float32)(parameters(), unpacked())
    np.testing.assert_allclose(logits[0], wanted["masked_logits"], atol=1e-4)
    np.testing.assert_allclose(logits[1][:, 0], wanted["next_logits"], atol=1e-4)
    np.testing.assert_allclose(found, [wanted["masked_loss"], wanted["next_loss"]], atol=1e-5)


def test_bfloat16_follows_float32():
    wide, narrow = (
        computed(QUIET, d)(parameters(), unpacked()) for d in (jnp.float32, jnp.bfloat16)
    )
    for a, b in zip(jax.tree.leaves(wide[1]), jax.tree.leaves(narrow[1]), strict=True):
        assert b.dtype == jnp.float32
        assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


# -- packing ---------------------------------------------------------------------------------------


def test_packed_sequences_are_as_if_alone():
    run, params, slots = computed(QUIET, jnp.float32), parameters(), reference.SLOTS
    apart, together = run(params, unpacked()), run(params, packed())
    np.testing.assert_allclose(together[0], apart[0], rtol=1e-6)
    masked = together[1][0][:2].reshape(4, slots, -1)
    used = reference.batch()["weights"] > 0
    np.testing.assert_allclose(masked[used], apart[1][0][used], atol=1e-5)
    np.testing.assert_allclose(together[1][1][:2].reshape(4, 2), apart[1][1][:, 0], atol=1e-5)
    for path, value in flatten_paths(apart[2]).items():
        found = flatten_paths(together[2])[path]
        np.testing.assert_allclose(found, value, atol=1e-5, err_msg=path)


# -- dropout ---------------------------------------------------------------------------------------


def traced(config, key=None, deterministic=False):
    def run(key):
        model = nnx.view(build(config), deterministic=deterministic)
        return logits_of(model, unpacked(), key)

    return jax.eval_shape(run, key)


def test_dropout_draws_at_four_places(monkeypatch):
    drawn, kept, key = [], dropout.kept, jax.random.key(0)
    monkeypatch.setattr(dropout, "kept", lambda *how: drawn.append(how[1:]) or kept(*how))
    traced(NOISY, key)
    hidden, scores = (4, 24, 32), (4, 4, 1, 24, 24)
    assert drawn == [(0.1, shape) for shape in (hidden, scores, hidden, hidden)]
    traced(NOISY, key, deterministic=True)
    traced(QUIET, key)
    assert len(drawn) == 4
    with pytest.raises(UserError, match="dropout needs a key"):
        traced(NOISY)


def test_what_is_recomputed_drops_the_same():
    key, other = jax.random.split(jax.random.key(3))
    kept, again, anew = (
        computed(NOISY.replace(remat=remat), jnp.float32)(parameters(), unpacked(), key)
        for remat, key in ((None, key), ("full", key), (None, other))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), kept, again)
    assert not np.allclose(kept[1][0], anew[1][0], atol=1e-3)


# -- numbers at their limits -----------------------------------------------------------------------


def test_a_token_beyond_the_vocabulary_is_no_number():
    batch = unpacked()
    batch["tokens"] = batch["tokens"].copy()
    batch["tokens"][1, 3] = QUIET.vocab
    _, (masked, following), _ = computed(QUIET, jnp.float32)(parameters(), batch)
    assert np.isnan(masked[1]).all() and np.isnan(following[1]).all()
    assert np.isfinite(masked[0]).all() and np.isfinite(masked[2:]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "width 32 is not divided by 3 heads"),
        ({"layers": 0}, "layers is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"max_positions": 16}, "24 tokens exceed the model's 16 positions"),
    ],
)
def test_what_makes_no_model_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        traced(QUIET.replace(**changes))


# -- thirty steps ----------------------------------------------------------------------------------


def plain_layer_norm(x, tensors, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
    return x * tensors[f"{name}.LayerNorm.weight"] + tensors[f"{name}.LayerNorm.bias"]


def plain_gelu(x):
    return 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def plain_loss(tensors, batch):
    """Both losses of one sequence a row, by transformers' names and layer after layer."""

    def affine(x, name):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def heads(x):
        return x.reshape(*x.shape[:2], NOISY.heads, -1).transpose(0, 2, 1, 3)

    tables = [tensors[f"bert.embeddings.{n}_embeddings.weight"]
              for n in ("word", "token_type", "position")]  # fmt: skip
    x = tables[0][batch["tokens"]] + tables[1][batch["types"]] + tables[2][: reference.LENGTH]
    x = plain_layer_norm(x, tensors, "bert.embeddings")
    hidden_keys = -10_000.0 * (1 - batch["segments"])[:, None, None]
    for i in range(NOISY.layers):
        name = f"bert.encoder.layer.{i}"
        q, k, v = (
            heads(affine(x, f"{name}.attention.self.{p}")) for p in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1]) + hidden_keys
        y = (jax.nn.softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        y = affine(y, f"{name}.attention.output.dense")
        x = plain_layer_norm(x + y, tensors, f"{name}.attention.output")
        y = affine(plain_gelu(affine(x, f"{name}.intermediate.dense")), f"{name}.output.dense")
        x = plain_layer_norm(x + y, tensors, f"{name}.output")
    head = "cls.predictions.transform"
    y = jnp.stack([x[b, at] for b, at in enumerate(batch["at"])])
    y = plain_layer_norm(plain_gelu(affine(y, f"{head}.dense")), tensors, head)
    logits = y @ tables[0].T + tensors["cls.predictions.bias"]
    each = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["ids"][..., None], -1)[..., 0]
    y = affine(jnp.tanh(affine(x[:, 0], "bert.pooler.dense")), "cls.seq_relationship")
    following = -jnp.take_along_axis(jax.nn.log_softmax(y), batch["next"], -1)
    return (batch["weights"] * each).sum() / batch["weights"].sum() + following.mean()


def plain_lamb(tensors, slopes, moments, t, rate, b1, b2, decay):
    """One update, tensor by tensor, in NumPy."""
    for name, g in slopes.items():
        m, v = moments[name]
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        moments[name], w = (m, v), tensors[name]
        u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + 1e-6)
        ratio = 1.0
        if "LayerNorm" not in name and "bias" not in name:
            u = u + decay * w
            ratio = np.sqrt((w**2).sum()) / np.sqrt((u**2).sum())
        tensors[name] = w - rate * ratio * u


def test_thirty_steps_are_those_of_a_plain_loop(x64):
    """Clipping, warm-up, decay and LAMB; batches change in their tokens. In float64."""
    b1, b2, decay, base, warm, total, start = 0.75, 0.9, 0.0166629, 4e-3, 10, 40, -3
    schedule = linear_decay(base, warm, total, start_warmup_step=start)
    tx = optax.chain(clip_by_global_norm(1.0), lamb(schedule, b1, b2, 1e-6, decay))
    params, batch = parameters(np.float64), unpacked()
    run = computed(QUIET, jnp.float64)

    @compiled
    def apply(params, gradients, opt):
        updates, opt = tx.update(gradients, opt, params)
        return optax.apply_updates(params, updates), opt

    slope = compiled(jax.value_and_grad(plain_loss))
    tensors = {name: value.astype(np.float64) for name, value in weights().items()}
    moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in tensors.items()}
    opt, ours, plain = compiled(tx.init)(params), [], []
    for step in range(30):
        batch = {**batch, "tokens": (batch["tokens"] * 5 + step) % QUIET.vocab}
        found, _, gradients = run(params, batch)
        params, opt = apply(params, gradients, opt)
        ours.append(float(sum(found)))
        value, slopes = slope(tensors, batch)
        plain.append(float(value))
        slopes = {name: np.asarray(g) for name, g in slopes.items()}
        norm = math.sqrt(sum((g**2).sum() for g in slopes.values()))
        slopes = {name: g / max(1, norm + 1e-6) for name, g in slopes.items()}
        rate = base * (step - start) / warm if step - start < warm else base * (1 - step / total)
        plain_lamb(tensors, slopes, moments, step + 1, rate, b1, b2, decay)
    np.testing.assert_allclose(ours, plain, rtol=1e-9)
    assert ours[-1] < 0.8 * ours[0]
    found = bert_huggingface.to_huggingface(params, QUIET)
    for name, value in tensors.items():
        np.testing.assert_allclose(found[name], value, atol=1e-7, rtol=1e-7, err_msg=name)


# -- meshes ----------------------------------------------------------------------------------------


@functools.cache
def on_mesh(text):
    """Losses and gradients in float64 with dropout, the parameters placed by the rules."""
    mesh, params, batch = meshes.make_mesh(text), parameters(np.float64), unpacked()
    del batch["positions"]
    batch = {name: np.concatenate([value, value]) for name, value in batch.items()}
    with jax.set_mesh(mesh):
        shardings = meshes.state_shardings({"params": params}, bert.RULES, mesh)
        placed = jax.device_put({"params": params}, shardings)["params"]
        run, key = computed(NOISY, jnp.float64), jax.random.key(5)
        found, _, gradients = run(placed, {**batch, "positions": None}, key)
    return np.array(found), jax.tree.map(np.asarray, gradients)


@pytest.mark.parametrize("mesh", ["data=2,fsdp=2,tensor=2", "fsdp=2,tensor=2,context=2"])
def test_every_mesh_computes_what_one_device_does(mesh, x64):
    one, many = on_mesh("data=1"), on_mesh(mesh)
    np.testing.assert_allclose(many[0], one[0], rtol=1e-12)
    off = sum(((a - b) ** 2).sum() for a, b in zip(*map(jax.tree.leaves, (many[1], one[1]))))
    norm = sum((leaf**2).sum() for leaf in jax.tree.leaves(one[1]))
    assert norm > 0 and math.sqrt(off / norm) < 1e-12


def test_rules_split_every_matrix_of_the_layers_over_fsdp_and_tensor():
    params = shapes(BertConfig())
    mesh = meshes.make_mesh("fsdp=4,tensor=2")
    placed = flatten_paths(meshes.state_shardings({"params": params}, bert.RULES, mesh))
    for path, leaf in flatten_paths(params).items():
        parts = leaf.size // math.prod(placed[f"params/{path}"].shard_shape(leaf.shape))
        split = path.endswith(("kernel", "embedding")) and "classifier" not in path
        assert parts == (8 if split else 2 if path.split("/")[-2] in "query key value up" else 1)
