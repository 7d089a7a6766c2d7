"""attention(): every back end and mesh against NumPy and against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from mlperf_jax.errors import UserError
from mlperf_jax.ops import attention as attentions
from mlperf_jax.ops import splash
from mlperf_jax.ops.attention import attention

AXES = ("data", "fsdp", "tensor", "expert", "context")


def tensors(batch, length, heads, kv_heads, head, dtype=np.float32, keys=None):
    random = np.random.RandomState(0)
    shapes = [(length, heads), (keys or length, kv_heads), (keys or length, kv_heads)]
    return [jnp.asarray(random.randn(batch, *shape, head), dtype) for shape in shapes]


def packed(batch, length, documents=3):
    """Sorted document ids [B, T], different in each row."""
    return jnp.asarray(
        np.sort(np.random.RandomState(1).randint(0, documents, (batch, length)), 1), jnp.int32
    )


def slow(q, k, v, causal, segments, scale):
    """One query of one head of one row at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, t, n in np.ndindex(q.shape[:3]):
        seen = np.ones(k.shape[1], bool)
        if causal:
            seen[t + 1 :] = False
        if segments is not None:
            seen &= np.asarray(segments)[b] == np.asarray(segments)[b, t]
        kv_head = n // (q.shape[2] // k.shape[2])
        score = k[b, seen, kv_head] @ q[b, t, n] * scale
        weight = np.exp(score - score.max())
        out[b, t, n] = weight / weight.sum() @ v[b, seen, kv_head]
    return out


def value_and_grads(q, k, v, **how):
    """The result and the gradients of a weighted sum of it with respect to q, k and v."""
    weight = jnp.asarray(np.random.RandomState(2).randn(*q.shape), q.dtype)

    def loss(q, k, v):
        out = attention(q, k, v, **how)
        return (out.astype(jnp.promote_types(out.dtype, jnp.float32)) * weight).sum(), out

    grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return [out, *grads]


def over(sizes: dict[str, int]):
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 5, devices=devices)


def assert_close(found, wanted, tolerance):
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        one, other = (np.asarray(x, np.float64) for x in (one, other))
        difference = np.linalg.norm(one - other) / np.linalg.norm(other)
        assert difference < tolerance, f"{name}: {difference}"


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("segmented", [True, False])
def test_xla_equals_numpy(kv_heads, causal, segmented):
    with jax.enable_x64(True):
        q, k, v = tensors(2, 7, 4, kv_heads, 8, np.float64)
        segments = packed(2, 7) if segmented else None
        out = attention(q, k, v, causal=causal, segments=segments, scale=0.3)
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, slow(q, k, v, causal, segments, 0.3), rtol=1e-12)


def test_default_scale_and_other_lengths():
    q, k, v = tensors(1, 5, 2, 2, 4, keys=9)
    np.testing.assert_allclose(
        attention(q, k, v, causal=False), slow(q, k, v, False, None, 0.5), rtol=2e-5, atol=1e-6
    )


def test_gradients():
    with jax.enable_x64(True):
        how = jax.jit(functools.partial(attention, segments=packed(1, 5)))
        check_grads(how, tensors(1, 5, 4, 2, 3, np.float64), 1, ["rev"])


def test_bfloat16_rounds_the_result_only():
    q, k, v = tensors(1, 64, 4, 2, 16, jnp.bfloat16)
    out = attention(q, k, v)
    assert out.dtype == jnp.bfloat16
    wanted = slow(q, k, v, True, None, 0.25)
    assert np.abs(np.asarray(out, np.float64) - wanted).max() < 2e-2


def test_keys_and_values_are_not_repeated_in_memory():
    q, k, v = (jax.ShapeDtypeStruct((1, 8, heads, 4096), jnp.float32) for heads in (16, 1, 1))
    compiled = jax.jit(attention).lower(q, k, v).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * q.size * 4  # repeated: 3 x q


def test_the_backward_pass_keeps_the_weights_alone(capsys):
    q, k, v = tensors(1, 24, 4, 2, 8)
    jax.ad_checkpoint.print_saved_residuals(lambda *a: attention(*a).sum(), q, k, v)
    kept = capsys.readouterr().out
    assert kept.count("[1,2,2,24,24]") == 1  # JAX's softmax and `where` keep five


@pytest.fixture
def blocks_of_128(monkeypatch):
    """Short sequences in several blocks; sets whether the backward pass is fused."""

    def set_fused(fused: bool):
        largest = splash._Largest(128, 128, 128, 128, 128, fused)
        monkeypatch.setattr(splash, "_largest", lambda keys, head: largest)

    return set_fused


@pytest.mark.parametrize(
    ("causal", "segmented", "fused"),
    [(True, False, False), (False, True, True)],
)
def test_splash_equals_xla(blocks_of_128, causal, segmented, fused):
    blocks_of_128(fused)
    q, k, v = tensors(1, 384, 4, 2, 64)
    how = {"causal": causal, "segments": packed(1, 384) if segmented else None}
    wanted = value_and_grads(q, k, v, backend="xla", **how)
    assert_close(value_and_grads(q, k, v, backend="splash_interpret", **how), wanted, 2e-6)


def test_splash_in_bfloat16(blocks_of_128):
    blocks_of_128(True)
    q, k, v = tensors(1, 256, 4, 1, 128, jnp.bfloat16)
    wanted = value_and_grads(*(x.astype(jnp.float32) for x in (q, k, v)), backend="xla")
    assert_close(value_and_grads(q, k, v, backend="splash_interpret"), wanted, 1e-2)


@pytest.mark.parametrize("kind", ["TPU v5", "TPU v6 lite", "TPU7x"])
@pytest.mark.parametrize("head", [64, 128, 256])
@pytest.mark.parametrize("keys", [128, 384, 1408, 8192, 131072])
def test_splash_blocks_divide(monkeypatch, kind, head, keys):
    monkeypatch.setattr(splash, "_device_kind", lambda: kind)
    blocks = splash.block_sizes(1664, keys, head)
    assert 1664 % blocks.block_q == 0 and blocks.block_q % 128 == 0
    assert keys % blocks.block_kv == 0 and blocks.block_kv % blocks.block_kv_compute == 0
    assert blocks.block_kv_dkv % blocks.block_kv_dkv_compute == 0
    assert blocks.has_backward_blocks
    fused = kind != "TPU v5" and head <= 128 and keys <= 8192
    assert blocks.use_fused_bwd_kernel is fused


MESHES = [
    {"data": 2, "tensor": 2, "context": 2},
    {"expert": 2, "context": 4},
    {"data": 2, "tensor": 4},  # more devices than key heads
]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("segmented", [True, False])
def test_every_mesh_equals_one_device_in_float64(sizes, segmented):
    with jax.enable_x64(True):
        q, k, v = tensors(4, 16, 4, 2, 8, np.float64)
        segments = packed(4, 16) if segmented else None
        wanted = value_and_grads(q, k, v, segments=segments)
        with jax.set_mesh(over(sizes)):
            assert_close(value_and_grads(q, k, v, segments=segments), wanted, 1e-14)


def test_without_a_causal_mask_every_mesh_equals_one_device():
    with jax.enable_x64(True):
        q, k, v = tensors(2, 8, 4, 2, 8, np.float64, keys=12)
        wanted = value_and_grads(q, k, v, causal=False)
        with jax.set_mesh(over(MESHES[0])):
            assert_close(value_and_grads(q, k, v, causal=False), wanted, 1e-14)


@pytest.mark.parametrize(
    ("sizes", "segmented", "causal", "fused"),
    [
        (MESHES[0], True, True, False),
        ({"tensor": 4, "context": 2}, False, False, True),
    ],
)
def test_splash_over_a_mesh_equals_one_device(blocks_of_128, sizes, segmented, causal, fused):
    blocks_of_128(fused)
    q, k, v = tensors(2, 512, 4, 2, 64)
    how = {"causal": causal, "segments": packed(2, 512) if segmented else None}
    wanted = value_and_grads(q, k, v, backend="xla", **how)
    with jax.set_mesh(over(sizes)):
        found = value_and_grads(q, k, v, backend="splash_interpret", **how)
    assert_close(found, wanted, 2e-6)


def test_the_result_stays_split():
    mesh = over(MESHES[0])
    with jax.set_mesh(mesh):
        out = jax.jit(attention)(*tensors(2, 8, 4, 2, 8))
    split = NamedSharding(mesh, PartitionSpec("data", "context", "tensor"))
    assert out.sharding.is_equivalent_to(split, 4)


def test_inside_a_scan_with_remat():
    q, k, v = tensors(2, 256, 2, 2, 64)

    def loss(q, backend):
        body = jax.checkpoint(
            lambda x, _: (x + attention(x, k, v, backend=backend), None),
            prevent_cse=False,
            policy=jax.checkpoint_policies.save_only_these_names(attentions.NAME),
        )
        return jax.lax.scan(body, q, None, length=2)[0].sum()

    wanted = jax.grad(loss)(q, "xla")
    with jax.set_mesh(over({"data": 2, "context": 2})):
        found = jax.jit(jax.grad(loss), static_argnums=1)(q, "splash_interpret")
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture
def hopper(monkeypatch):
    """As on an H200, with cuDNN's part taken by XLA; lists the keyword arguments of the calls."""
    calls = []
    plain = jax.nn.dot_product_attention

    def stand_in(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        calls.append(kwargs)
        return plain(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    monkeypatch.setattr(attentions, "_cuda_capability", lambda: (9, 0))
    monkeypatch.setattr(attentions, "platform", lambda: "gpu")
    return calls


@pytest.mark.parametrize(
    ("sizes", "causal", "segmented"),
    [
        ({}, True, False),
        ({}, True, True),
        ({"data": 2, "tensor": 4}, True, False),
        (MESHES[0], True, True),
        (MESHES[0], True, False),
        (MESHES[0], False, False),
    ],
)
def test_cudnn_is_asked_for_the_same(hopper, sizes, causal, segmented):
    q, k, v = tensors(4, 16, 4, 2, 8, jnp.bfloat16)
    how = {"causal": causal, "segments": packed(4, 16) if segmented else None}
    wanted = value_and_grads(q, k, v, backend="xla", **how)
    with jax.set_mesh(over(sizes)):
        found = value_and_grads(q, k, v, **how)
    assert hopper
    split = sizes.get("context", 1) > 1
    assert hopper[0]["is_causal"] is (causal and not split)
    assert (hopper[0]["mask"] is None) is not (segmented or (causal and split))
    assert_close(found, wanted, 2e-2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": jnp.float32}, "float32"),
        ({"head": 12}, "head dimension 12"),
        ({"head": 264}, "up to 256"),
        ({"queries": 15, "masked": True}, "15 queries"),
    ],
)
def test_what_cudnn_refuses_goes_to_xla(hopper, change, words):
    fits = {
        "dtype": jnp.dtype(jnp.bfloat16),
        "queries": 16,
        "keys": 16,
        "head": 128,
        "masked": False,
    }
    assert attentions._cudnn_misfit(**fits) is None
    case = fits | change
    assert words in attentions._cudnn_misfit(**case)
    q, k, v = tensors(1, case["queries"], 2, 2, case["head"], case["dtype"])
    segments = packed(1, case["queries"]) if case["masked"] else None
    attention(q, k, v, segments=segments)
    assert not hopper
    with pytest.raises(UserError, match="back end 'cudnn' cannot take"):
        attention(q, k, v, segments=segments, backend="cudnn")


def test_older_gpus_take_narrower_heads(monkeypatch):
    monkeypatch.setattr(attentions, "_cuda_capability", lambda: (8, 0))
    case = (jnp.dtype(jnp.bfloat16), 16, 16)
    assert attentions._cudnn_misfit(*case, 128, False) is None
    assert "up to 128" in attentions._cudnn_misfit(*case, 136, False)
    monkeypatch.setattr(attentions, "_cuda_capability", lambda: (7, 5))
    assert "8.0" in attentions._cudnn_misfit(*case, 128, False)


def test_auto_on_a_tpu_takes_splash_where_it_fits(monkeypatch):
    monkeypatch.setattr(attentions, "platform", lambda: "tpu")
    q, k, _ = tensors(1, 256, 2, 2, 64)
    assert attentions._choose("auto", q, k, None, 1) == "splash"
    assert attentions._choose("auto", q, k, None, 4) == "xla"  # 64 queries a device
    assert attentions._choose("auto", q[..., :8], k[..., :8], None, 1) == "xla"


def test_forced_back_ends_say_why_not():
    q, k, v = tensors(1, 16, 4, 2, 64)
    with pytest.raises(UserError, match=r"unknown back end 'flash'.*splash"):
        attention(q, k, v, backend="flash")
    with pytest.raises(UserError, match="NVIDIA GPU"):
        attention(q, k, v, backend="cudnn")
    with pytest.raises(UserError, match=r"16 queries and 16 keys.*128"):
        attention(q, k, v, backend="splash")


def test_shapes_that_do_not_belong_together():
    q, k, v = tensors(2, 8, 4, 2, 8)
    with pytest.raises(ValueError, match=r"B, S, K, H"):
        attention(q, k, v[:, :4])
    with pytest.raises(ValueError, match="multiple of K"):
        attention(q[:, :, :3], k, v)
    with pytest.raises(ValueError, match="as many queries as keys"):
        attention(q[:, :4], k, v)
    with pytest.raises(ValueError, match="segments"):
        attention(q, k, v, segments=jnp.zeros([2, 4], jnp.int32))


def test_a_mesh_that_does_not_divide_is_named():
    q, k, v = tensors(3, 256, 2, 2, 64)
    with jax.set_mesh(over({"data": 2})):
        for backend in ("xla", "splash_interpret"):
            with pytest.raises(ValueError, match="not divided by"):
                attention(q, k, v, backend=backend)


@pytest.mark.gpu
@pytest.mark.parametrize("segmented", [True, False])
def test_cudnn_equals_xla_on_a_gpu(segmented):
    q, k, v = tensors(2, 512, 8, 2, 128, jnp.bfloat16)
    segments = packed(1, 384) if segmented else None
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    wanted = value_and_grads(*wide, backend="xla", segments=segments)
    assert_close(value_and_grads(q, k, v, backend="cudnn", segments=segments), wanted, 2e-2)
