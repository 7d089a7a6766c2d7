"""Chunked cross entropy equals the plain one, on one device and on meshes, in less memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from mlperf_jax.ops import cross_entropy
from mlperf_jax.ops.cross_entropy import IGNORE, chunked_xent, sequence_xent
from mlperf_jax.ops.shard import ROWS

B, T, D, V = 4, 10, 16, 3264  # V: 3 tiles of 1,088 columns when WIDEST is small
AXES = ("data", "fsdp", "tensor", "expert", "context")


@pytest.fixture(autouse=True)
def f64():
    with jax.enable_x64(True):
        yield


def plain_rows(hidden, head, labels):
    """Losses [B, T], logits of all tokens at once."""
    logits = jnp.einsum("btd,dv->btv", hidden, head.astype(hidden.dtype))
    logits = logits.astype(jnp.promote_types(hidden.dtype, jnp.float32))
    scored = labels != IGNORE
    log_prob = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_prob, jnp.where(scored, labels, 0)[..., None], -1)[..., 0]
    return jnp.where(scored, -picked, 0)


def problem(dtype=np.float64, rows=B, tokens=T, width=D, vocabulary=V):
    rng = np.random.RandomState(0)
    hidden = rng.standard_normal((rows, tokens, width)).astype(dtype)
    head = (rng.standard_normal((width, vocabulary)) / width**0.5).astype(dtype)
    labels = rng.randint(0, vocabulary, (rows, tokens)).astype(np.int32)
    labels[rng.rand(rows, tokens) < 0.2] = labels[1, 3:6] = labels[3] = IGNORE
    labels[0, 0], labels[0, 1] = 0, vocabulary - 1  # both ends of the vocabulary
    return tuple(map(jnp.asarray, (hidden, head, labels)))


def distance(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def value_and_gradients(loss, hidden, head):
    return jax.jit(jax.value_and_grad(lambda h, w: 3 * loss(h, w), (0, 1)))(hidden, head)


@pytest.mark.parametrize(
    ("chunk", "widest"), [(1, 24_576), (7, 24_576), (7, 1500), (1000, 1500), (1000, 24_576)]
)
def test_equals_the_plain_loss(monkeypatch, chunk, widest):
    monkeypatch.setitem(cross_entropy.WIDEST, "cpu", widest)
    hidden, head, labels = problem()
    assert cross_entropy.Tiles.of(head).count == (3 if widest == 1500 else 1)

    def chunked(h, w):
        return chunked_xent(h, w, labels, chunk=chunk)[0]

    value, gradients = value_and_gradients(chunked, hidden, head)
    expected, wanted = value_and_gradients(
        lambda h, w: plain_rows(h, w, labels).sum(), hidden, head
    )
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for ours, theirs in zip(gradients, wanted):
        assert ours.dtype == jnp.float64
        assert distance(ours, theirs) < 1e-12

    options = dict(chunk=chunk)
    (total, count), (totals, counts), plain = jax.jit(
        lambda h, w: (
            chunked_xent(h, w, labels, **options),
            sequence_xent(h, w, labels, **options),
            plain_rows(h, w, labels),
        )
    )(hidden, head)
    scored = np.asarray(labels) != IGNORE
    assert count.dtype == counts.dtype == jnp.int32
    assert count == scored.sum()
    np.testing.assert_allclose(total, plain.sum(), rtol=1e-12)
    np.testing.assert_allclose(totals, plain.sum(1), rtol=1e-12)
    np.testing.assert_array_equal(counts, scored.sum(1))
    assert counts[3] == 0 and totals[3] == 0


def test_bf16_is_as_near_to_f64_as_the_plain_loss():
    """Both round slopes to bf16 for the products; ours never rounds logits or the head's gradient."""
    hidden, head, labels = problem()
    hidden = hidden.astype(jnp.bfloat16)
    rounded = head.astype(jnp.bfloat16).astype(jnp.float64)
    exact, wanted = value_and_gradients(
        lambda h, w: plain_rows(h, w, labels).sum(), hidden.astype(jnp.float64), rounded
    )
    found = {
        "plain": value_and_gradients(
            lambda h, w: plain_rows(h, w, labels).sum(), hidden, head.astype(jnp.float32)
        ),
        "chunked": value_and_gradients(
            lambda h, w: chunked_xent(h, w, labels, chunk=7)[0], hidden, head.astype(jnp.float32)
        ),
    }
    value, gradients = found["chunked"]
    assert value.dtype == jnp.float32
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]
    errors = {
        name: [abs(float(v / exact) - 1), *map(distance, g, wanted)]
        for name, (v, g) in found.items()
    }
    print(errors)
    assert np.all(np.array(errors["chunked"]) < [1e-6, 5e-3, 4e-3])
    assert errors["chunked"][2] <= 1.01 * errors["plain"][2]  # equal but for a processor's sums


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        (dict(data=2, tensor=4), B),
        (dict(data=2, expert=2, tensor=2), B),
        (dict(fsdp=2, context=2, tensor=2), B),
        (dict(data=4, context=2), 5),  # rows that the mesh does not divide
    ],
)
def test_a_mesh_equals_one_device(monkeypatch, sizes, rows):
    monkeypatch.setitem(cross_entropy.WIDEST, "cpu", 1100)
    hidden, head, labels = problem(rows=rows, vocabulary=8704)
    options = dict(chunk=3)

    def loss(h, w):
        return chunked_xent(h, w, labels, **options)[0]

    expected, wanted = value_and_gradients(loss, hidden, head)
    sums = sequence_xent(hidden, head, labels, **options)
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh):
        batch = P(ROWS, "context") if rows == B else P(None, "context")
        put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))  # noqa: E731
        arrays = put(hidden, batch), put(head, P("fsdp", "tensor"))
        value, gradients = value_and_gradients(loss, *arrays)
        sums_on_mesh = jax.jit(lambda h, w: sequence_xent(h, w, labels, **options))(*arrays)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for ours, theirs in zip(gradients, wanted):
        assert distance(ours, theirs) < 1e-12
    np.testing.assert_allclose(sums_on_mesh[0], sums[0], rtol=1e-12)
    np.testing.assert_array_equal(sums_on_mesh[1], sums[1])


def make_mesh(sizes):
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def test_devices_hold_their_part_of_the_vocabulary_and_sum_the_gradient_once():
    hidden, head, labels = problem()  # 3,264 columns: 816 on each device of four
    mesh = make_mesh(dict(data=2, tensor=4))
    with jax.set_mesh(mesh):
        shapes = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
            for x, spec in (
                (hidden, P(ROWS)),
                (head, P("fsdp", "tensor")),
                (labels, P(ROWS)),
            )
        ]
        loss = lambda h, w, y: chunked_xent(h, w, y, chunk=4)[0]  # noqa: E731
        text = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile().as_text()
    assert re.search(r"f64\[[\d,]*\b816\]", text)
    assert not re.search(r"f64\[[\d,]*\b3264\b", text)  # no whole row of logits or head
    moved = re.findall(r"= (\S+) (?:all-reduce|reduce-scatter|all-gather)\(", text)
    moved = [
        [int(n) for n in re.findall(r"[\[,](\d+)", shape.partition("{")[0])] for shape in moved
    ]
    large = [shape for shape in moved if np.prod(shape, initial=1) >= D * 816]
    assert len(large) == 1, moved  # the sum over `data`


def peak(loss, hidden, head, labels, wrt=(0, 1)):
    compiled = jax.jit(jax.value_and_grad(loss, wrt)).lower(hidden, head, labels).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "width", "vocabulary", "chunk"),
    [(2048, 512, 32_768, 256), (8192, 4096, 128_256, 1024)],  # the second: Llama 3.1 8B
)
def test_temporaries_are_below_a_quarter_of_the_plain_ones(dtype, tokens, width, vocabulary, chunk):
    arrays = (
        jax.ShapeDtypeStruct((1, tokens, width), dtype),
        jax.ShapeDtypeStruct((width, vocabulary), jnp.float32),
        jax.ShapeDtypeStruct((1, tokens), jnp.int32),
    )
    plain = peak(lambda h, w, y: plain_rows(h, w, y).sum(), *arrays)
    chunked = peak(lambda h, w, y: chunked_xent(h, w, y, chunk=chunk)[0], *arrays)
    print(f"{dtype.__name__} {tokens=}: {chunked / 2**20:.0f} of {plain / 2**20:.0f} MiB")
    assert 4 * chunked < plain


def test_a_frozen_head_costs_no_gradient():
    arrays = (
        jax.ShapeDtypeStruct((1, 256, 512), jnp.float32),
        jax.ShapeDtypeStruct((512, 8192), jnp.float32),
        jax.ShapeDtypeStruct((1, 256), jnp.int32),
    )

    def products(wrt):  # one chunk, as the compiler counts the body of a loop once
        loss = lambda h, w, y: chunked_xent(h, w, y, chunk=256)[0]  # noqa: E731
        compiled = jax.jit(jax.grad(loss, wrt)).lower(*arrays).compile()
        return compiled.cost_analysis()["flops"] / (2 * 256 * 512 * 8192)

    assert products((0, 1)) == pytest.approx(3, rel=0.03)
    assert products(0) == pytest.approx(2, rel=0.03)


def test_tiles_are_aligned_where_they_can_be():
    def count(columns):
        return cross_entropy._tile_count(columns, 24_576)

    assert [count(n) for n in (128_256, 51_200, 50_304, 32_000, 16_032)] == [6, 4, 3, 2, 1]
    assert count(50_257) == 29  # 29 x 1,733
    assert count(40_009) == 1  # a prime


def test_scored_labels_outside_the_vocabulary_give_nan():
    hidden, head, labels = problem()
    for wrong in (-1, V, V + 1):
        assert jnp.isnan(chunked_xent(hidden, head, labels.at[2, 2].set(wrong))[0])
    assert jnp.isfinite(chunked_xent(hidden, head, labels.at[2, 2].set(IGNORE))[0])


def test_nothing_scored_is_zero_with_zero_gradients():
    hidden, head, labels = problem()
    nothing = jnp.full_like(labels, IGNORE)
    value, gradients = value_and_gradients(
        lambda h, w: chunked_xent(h, w, nothing)[0], hidden, head
    )
    assert value == 0
    assert not any(np.asarray(g).any() for g in gradients)
    assert chunked_xent(hidden, head, nothing)[1] == 0


def test_huge_logits_stay_finite():
    hidden, head, labels = problem(np.float32)
    value, gradients = value_and_gradients(
        lambda h, w: chunked_xent(h, 1e4 * w, labels)[0], hidden, head
    )
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(g).all() for g in gradients)


def test_errors_name_the_shapes():
    hidden, head, labels = problem()
    for arguments, options, words in (
        ((hidden, head.T, labels), {}, r"head \[D, V\].*\(4, 10, 16\).*\(3264, 16\)"),
        ((hidden, head, labels[:, 1:]), {}, r"labels of shape \(4, 10\), not \(4, 9\)"),
        ((hidden, head, labels), dict(chunk=0), "chunk of at least 1"),
    ):
        for function in (chunked_xent, sequence_xent):
            with pytest.raises(ValueError, match=words):
                function(*arguments, **options)
