"""attention(): every back end and mesh against NumPy and against each other."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import (
    CLIP,
    MESHES,
    assert_close,
    bias_of,
    over,
    packed,
    packed_apart,
    slow,
    tensors,
    value_and_grads,
)
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from mlperf_jax.errors import UserError
from mlperf_jax.ops import attention as attentions, attention_backends as backends, dropout, splash
from mlperf_jax.ops.attention import attention

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("segmented", [True, False])
def test_xla_equals_numpy(kv_heads, causal, segmented):
    with jax.enable_x64(True):
        q, k, v = tensors(2, 7, 4, kv_heads, 8, np.float64)
        how = {"causal": causal, "segments": packed(2, 7) if segmented else None}
        out = attention(q, k, v, scale=0.3, **how)
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, slow(q, k, v, 0.3, **how), rtol=1e-12)


@pytest.mark.parametrize("shape", [(2, 4, 8, 6), (1, 4, 8, 6), (2, 1, 1, 6), (1, 1, 8, 1)], ids=str)
def test_a_bias_values_of_their_own_width_and_segments_apart_equal_numpy(shape):
    with jax.enable_x64(True):
        arrays = tensors(2, 8, 4, 2, 8, np.float64, keys=6, values=5)
        how = packed_apart(2, 8, 6) | {"bias": bias_of(*shape, dtype=np.float64)}
        out = attention(*arrays, scale=0.3, **how)
        assert out.dtype == jnp.float64 and out.shape == (2, 8, 4, 5)
        np.testing.assert_allclose(out, slow(*arrays, 0.3, **how), rtol=1e-12)


def keeps(key, rate, *shape):
    """What dropout multiplies the weights by."""
    return np.asarray(dropout.masked(jnp.ones(shape), rate, dropout.kept(key, rate, shape)))


def test_dropout_equals_numpy_with_its_mask_and_is_off_without_a_key():
    with jax.enable_x64(True):
        arrays, key = tensors(2, 7, 4, 2, 8, np.float64), jax.random.key(5)
        found = attention(*arrays, scale=0.3, dropout_rate=0.4, dropout_key=key)
        keep = keeps(key, 0.4, 2, 4, 7, 7)
        assert 0.3 < (keep == 0).mean() < 0.5
        np.testing.assert_allclose(found, slow(*arrays, 0.3, keep=keep), rtol=1e-12)
        other = attention(*arrays, scale=0.3, dropout_rate=0.4, dropout_key=jax.random.key(6))
        assert np.abs(found - other).max() > 0.1
        plain = attention(*arrays, scale=0.3)
        np.testing.assert_array_equal(attention(*arrays, scale=0.3, dropout_rate=0.4), plain)
        np.testing.assert_array_equal(attention(*arrays, scale=0.3, dropout_key=key), plain)


def test_default_scale_and_other_lengths():
    q, k, v = tensors(1, 5, 2, 2, 4, keys=9)
    np.testing.assert_allclose(
        attention(q, k, v, causal=False), slow(q, k, v, 0.5, causal=False), rtol=2e-5, atol=1e-6
    )


def test_gradients():
    with jax.enable_x64(True):
        how = jax.jit(functools.partial(attention, segments=packed(1, 5)))
        check_grads(how, tensors(1, 5, 4, 2, 3, np.float64), 1, ["rev"])


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(2, 4, 4, 6), (1, 4, 1, 6), (2, 1, 4, 6)], ids=str)
def test_gradients_of_a_bias_and_under_dropout(shape, rate):
    with jax.enable_x64(True):
        how = packed_apart(2, 4, 6)
        dropping = {"dropout_rate": rate, "dropout_key": jax.random.key(0)}
        arrays = *tensors(2, 4, 4, 2, 3, np.float64, keys=6, values=5), bias_of(*shape, dtype=float)
        function = jax.jit(lambda q, k, v, bias: attention(q, k, v, bias=bias, **how, **dropping))
        check_grads(function, arrays, 1, ["rev"])


def test_dropout_is_the_same_when_it_is_computed_again():
    q, k, v = tensors(2, 16, 4, 2, 8)
    how = {"dropout_rate": 0.2, "dropout_key": jax.random.key(1)}

    def loss(q, again):
        function = functools.partial(attention, **how)
        return (jax.checkpoint(function) if again else function)(q, k, v).sum()

    kept, again = (jax.jit(jax.grad(loss), static_argnums=1)(q, x) for x in (False, True))
    np.testing.assert_array_equal(kept, again)


def test_dropout_keeps_a_byte_of_mask_for_each_weight_and_no_weights(capsys):
    q, k, v = tensors(1, 24, 4, 2, 8)
    how = {"dropout_rate": 0.2, "dropout_key": jax.random.key(1)}
    jax.ad_checkpoint.print_saved_residuals(lambda *a: attention(*a, **how).sum(), q, k, v)
    kept = re.findall(r"(\w+)\[1,2,2,24,24\]", capsys.readouterr().out)
    assert kept == ["bool"]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("biased", [None, (6, 4, 8, 6), (1, 4, 1, 6)], ids=str)
def test_a_few_rows_at_a_time_give_what_all_give(monkeypatch, rows, biased):
    with jax.enable_x64(True):
        arrays = tensors(6, 8, 4, 2, 8, np.float64, keys=6, values=5)
        bias = None if biased is None else bias_of(*biased, dtype=np.float64)
        how = packed_apart(6, 8, 6) | {"dropout_rate": 0.3, "dropout_key": jax.random.key(1)}
        whole = value_and_grads(*arrays, bias, **how)
        monkeypatch.setattr(backends, "CACHED", rows * 4 * 8 * 6 * 8)
        traced = jax.make_jaxpr(functools.partial(attention, bias=bias, **how))(*arrays)
        assert f"length={6 // rows}" in str(traced)
        for cut, uncut in zip(
            *map(jax.tree.leaves, (value_and_grads(*arrays, bias, **how), whole))
        ):
            np.testing.assert_allclose(cut, uncut, rtol=1e-12, atol=1e-14)


def test_scores_beyond_the_caches_are_never_whole_in_memory(monkeypatch):
    q, k, v = (jax.ShapeDtypeStruct((16, 256, heads, 8), jnp.float32) for heads in (4, 2, 2))
    step = jax.jit(jax.grad(lambda q, k, v: attention(q, k, v).sum(), (0, 1, 2)))
    scores = 16 * 4 * 256 * 256 * 4
    monkeypatch.setattr(backends, "CACHED", scores // 16)
    assert step.lower(q, k, v).compile().memory_analysis().temp_size_in_bytes < scores / 2


def test_bfloat16_rounds_the_result_only():
    q, k, v = tensors(1, 64, 4, 2, 16, jnp.bfloat16)
    out = attention(q, k, v)
    assert out.dtype == jnp.bfloat16
    wanted = slow(q, k, v, 0.25)
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


def test_keys_that_fill_no_tile_are_padded_for_splash():
    """Cross attention of an image to a caption, and the caption's own causal attention."""
    image, caption = tensors(1, 512, 2, 2, 64, keys=CLIP), tensors(1, CLIP, 2, 2, 64)
    for arrays, causal in ((image, False), (caption, True)):
        wanted = value_and_grads(*arrays, causal=causal, backend="xla")
        found = value_and_grads(*arrays, causal=causal, backend="splash_interpret")
        assert found[0].shape == wanted[0].shape
        assert_close(found, wanted, 2e-6)


@pytest.mark.parametrize("queries", [4096, CLIP])
def test_a_tpu_takes_captions_by_its_kernel(monkeypatch, queries):
    monkeypatch.setattr(attentions, "platform", lambda: "tpu")
    q, k = (jax.ShapeDtypeStruct((2, n, 5, 64), jnp.bfloat16) for n in (queries, CLIP))

    def loss(q, k):
        return attention(q, k, k, causal=queries == CLIP).astype(jnp.float32).sum()

    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(q, k))
    assert "splash_mha_fwd" in text and "splash_mha_dkv" in text
    assert f"{queries},{CLIP}]" not in text  # there are no scores


@pytest.mark.parametrize("fused", [True, False])
def test_splash_takes_segments_apart_and_values_of_another_width(blocks_of_128, fused):
    """DeepSeek's widths, over several blocks, some keys and queries short of a tile."""
    blocks_of_128(fused)
    arrays = tensors(1, 300, 4, 2, 192, keys=200, values=128)
    how = packed_apart(1, 300, 200)
    wanted = value_and_grads(*arrays, backend="xla", **how)
    assert_close(value_and_grads(*arrays, backend="splash_interpret", **how), wanted, 2e-6)


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


@pytest.mark.parametrize(
    ("sizes", "shape"), list(zip(MESHES, [(4, 4, 16, 12), (1, 4, 16, 12), (4, 1, 1, 12)]))
)
def test_every_mesh_adds_and_drops_the_same(sizes, shape):
    with jax.enable_x64(True):
        how = packed_apart(4, 16, 12) | {"dropout_rate": 0.3, "dropout_key": jax.random.key(2)}
        arrays = (
            *tensors(4, 16, 4, 2, 8, np.float64, keys=12, values=6),
            bias_of(*shape, dtype=float),
        )
        wanted = value_and_grads(*arrays, **how)
        with jax.set_mesh(over(sizes)):
            assert_close(value_and_grads(*arrays, **how), wanted, 1e-14)


def test_splash_over_context_takes_keys_that_it_does_not_divide():
    arrays = tensors(2, 256, 4, 2, 64, keys=CLIP)
    how = packed_apart(2, 256, CLIP)
    wanted = value_and_grads(*arrays, backend="xla", **how)
    with jax.set_mesh(over({"data": 2, "tensor": 2, "context": 2})):
        found = value_and_grads(*arrays, backend="splash_interpret", **how)
    assert_close(found, wanted, 2e-6)


# -- queries that see no key -------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["xla", "splash_interpret", "cudnn"])
@pytest.mark.parametrize("sizes", [{}, {"data": 2, "context": 2}], ids=str)
def test_queries_without_keys_give_zeros_and_touch_nothing(request, backend, sizes):
    dtype = jnp.float32
    if backend == "cudnn":
        dtype = jnp.bfloat16
        request.getfixturevalue("hopper")
    q, k, v = tensors(2, 128, 2, 2, 64, dtype)
    how = packed_apart(2, 128, 128)
    blind = np.asarray(how["query_segments"]) == 7
    assert 0 < blind.sum() < blind.size

    def loss(q, k, v):
        out = attention(q, k, v, backend=backend, **how)
        return (out.astype(jnp.float32) ** 2).sum() + out.astype(jnp.float32).sum(), out

    with jax.set_mesh(over(sizes)):
        program = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))
        grads, out = program(q, k, v)
        others, _ = program(jnp.where(blind[..., None, None], 100, q), k, v)
    assert not np.asarray(out, np.float32)[blind].any()
    assert np.abs(np.asarray(out, np.float32)[~blind]).min(-1).max() > 0
    assert not np.asarray(grads[0], np.float32)[blind].any()
    for one, other in zip(grads, others):
        assert np.isfinite(np.asarray(one, np.float32)).all()
        np.testing.assert_array_equal(one, other)


def test_causal_queries_before_their_first_key_are_blind_too():
    q, k, v = tensors(1, 6, 2, 2, 8)
    queries, keys = jnp.array([[1, 1, 2, 2, 1, 2]]), jnp.array([[0, 1, 0, 0, 2, 1]])
    how = {"query_segments": queries, "key_segments": keys}
    out = attention(q, k, v, **how)
    np.testing.assert_allclose(out, slow(q, k, v, 8**-0.5, **how), rtol=2e-5, atol=1e-6)
    assert [t for t in range(6) if not np.asarray(out)[0, t].any()] == [0, 2, 3]


# -- the layout and what is kept ---------------------------------------------------------------------


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


def call_of(arrays, causal=True, bias=None, ways=1):
    return backends.Call(*arrays, bias, None, None, causal, 1.0, {"context": ways})


def test_auto_on_a_tpu_takes_splash_where_it_fits(monkeypatch):
    monkeypatch.setattr(attentions, "platform", lambda: "tpu")
    arrays = tensors(1, 256, 2, 2, 64)
    q, k, v = arrays
    chosen = {
        "as it is": attentions._choose("auto", call_of(arrays)),
        "whole tiles a part": attentions._choose("auto", call_of(arrays, ways=2)),
        "half a tile a part": attentions._choose("auto", call_of(arrays, ways=4)),
        "the same, all seen": attentions._choose("auto", call_of(arrays, False, ways=4)),
        "few keys": attentions._choose("auto", call_of((q, k[:, :63], v[:, :63]), False)),
        "narrow keys": attentions._choose("auto", call_of((q[..., :8], k[..., :8], v))),
        "narrow values": attentions._choose("auto", call_of((q, k, v[..., :8]))),
        "a bias": attentions._choose("auto", call_of(arrays, bias=bias_of(1, 1, 1, 256))),
        "dropout": attentions._choose("auto", call_of(arrays), dropping=True),
        "dropout and a bias": attentions._choose(
            "auto", call_of(arrays, bias=bias_of(1, 1, 1, 256)), dropping=True
        ),
    }
    taken = {case for case, backend in chosen.items() if backend == "splash"}
    assert taken == {"as it is", "whole tiles a part", "the same, all seen"}
    assert [case for case, backend in chosen.items() if backend == "whole"] == ["dropout"]
    assert set(chosen.values()) == {"splash", "whole", "xla"}


def test_forced_back_ends_say_why_not():
    q, k, v = tensors(1, 16, 4, 2, 64)
    with pytest.raises(UserError, match=r"unknown back end 'flash'.*splash"):
        attention(q, k, v, backend="flash")
    with pytest.raises(UserError, match="NVIDIA GPU"):
        attention(q, k, v, backend="cudnn")
    with pytest.raises(UserError, match=r"16 queries and 16 keys.*64 or more"):
        attention(q, k, v, backend="splash")
    with pytest.raises(UserError, match="'splash' cannot take a bias"):
        attention(q, k, v, backend="splash", bias=bias_of(1, 1, 16, 16))
    for backend in ("splash", "cudnn"):
        with pytest.raises(UserError, match=f"'{backend}' cannot take dropout"):
            attention(q, k, v, backend=backend, dropout_rate=0.1, dropout_key=jax.random.key(0))


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
    ids = jnp.zeros([2, 8], jnp.int32)
    with pytest.raises(ValueError, match="give no others"):
        attention(q, k, v, segments=ids, key_segments=ids)
    with pytest.raises(ValueError, match=r"shapes \(2, 8\) and None"):
        attention(q, k, v, query_segments=ids)
    with pytest.raises(ValueError, match=r"shapes \(2, 8\) and \(2, 4\)"):
        attention(q, k, v, query_segments=ids, key_segments=ids[:, :4])
    with pytest.raises(ValueError, match=r"bias \(1, 3, 8, 8\).*\(2, 4, 8, 8\), or 1"):
        attention(q, k, v, bias=bias_of(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"dropout_rate 1.0 is not in \[0, 1\)"):
        attention(q, k, v, dropout_rate=1.0)


def test_a_mesh_that_does_not_divide_is_named():
    q, k, v = tensors(3, 256, 2, 2, 64)
    with jax.set_mesh(over({"data": 2})):
        for backend in ("xla", "splash_interpret"):
            with pytest.raises(UserError, match="2 ways, which do not divide"):
                attention(q, k, v, backend=backend)
