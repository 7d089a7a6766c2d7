"""The kernels of attention compiled for TPUs on this CPU; `make test-aot`, one process, needs libtpu."""

import functools
import os
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mlperf_jax.ops.attention import attention
from mlperf_jax.ops.shard import ROWS

pytestmark = pytest.mark.aot
pytest.importorskip("libtpu")

AXES = ("data", "fsdp", "tensor", "expert", "context")
# topology, axis sizes, queries, heads, key heads, head dimension, packed
CASES = [
    ("v5p:2x2x1", {"fsdp": 4}, 8192, 32, 8, 128, False),
    ("v6e:2x2", {"fsdp": 4}, 8192, 32, 8, 128, False),
    ("v5p:2x2x1", {"data": 4}, 8192, 32, 8, 128, True),  # the most vector memory
    ("v6e:2x2", {"data": 4}, 8192, 32, 8, 128, True),
    ("v5p:2x2x2", {"data": 2, "tensor": 2, "context": 2}, 8192, 64, 8, 128, True),
    ("v6e:2x4", {"fsdp": 2, "context": 4}, 8192, 32, 8, 128, True),
    ("v5p:2x2x1", {"tensor": 4}, 2048, 96, 96, 128, False),
    ("v5p:2x2x1", {"data": 4}, 2048, 8, 8, 256, True),
    ("v6e:2x2", {"data": 4}, 2048, 8, 8, 256, True),
    ("v5e:2x2", {"data": 4}, 8192, 8, 8, 64, True),
]


def topology_mesh(topology: str, sizes: dict[str, int]) -> Mesh:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    devices = topologies.make_mesh(described, shape, AXES).devices
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def abstract(mesh: Mesh, dtype, *shape: int) -> jax.ShapeDtypeStruct:
    """Queries, keys or values, or segments, as they lie over the mesh."""
    spec = PartitionSpec(ROWS, "context", *["tensor"] * (len(shape) == 4))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


@pytest.mark.parametrize(
    ("topology", "sizes", "length", "heads", "kv_heads", "head", "segmented"), CASES
)
def test_forward_and_backward_compile(
    topology: str,
    sizes: dict[str, int],
    length: int,
    heads: int,
    kv_heads: int,
    head: int,
    segmented: bool,
) -> None:
    """One row per part of the batch; the scores of that row alone would be 2 to 16 GiB."""
    mesh = topology_mesh(topology, sizes)
    rows = sizes.get("data", 1) * sizes.get("fsdp", 1)
    tensor = functools.partial(abstract, mesh)

    def step(q, k, v, segments):
        def loss(q, k, v):
            return attention(q, k, v, segments=segments).astype(jnp.float32).sum()

        return jax.value_and_grad(loss, (0, 1, 2))(q, k, v)

    q = tensor(jnp.bfloat16, rows, length, heads, head)
    k = tensor(jnp.bfloat16, rows, length, kv_heads, head)
    segments = tensor(jnp.int32, rows, length) if segmented else None
    with jax.set_mesh(mesh):
        compiled = jax.jit(step).lower(q, k, k, segments).compile()
    assert "splash_mha_fwd" in compiled.as_text() and "splash_mha_dkv" in compiled.as_text()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    print(f"attention {topology} {sizes} {q.shape}: {temporary / 2**20:.0f} MiB of temporaries")
    assert temporary < length**2 * heads * 4 / 4  # a quarter of one row's float32 scores


@pytest.mark.parametrize("topology", ["v5p:2x2x1", "v6e:2x2", "v5e:2x2"])
@pytest.mark.parametrize(
    ("queries", "keys", "head", "values", "apart"),
    [(4096, 77, 64, 64, False), (77, 77, 64, 64, False), (1000, 700, 64, 128, True),
     (4096, 4096, 192, 128, False), (4096, 4096, 512, 512, False)],
)  # fmt: skip
def test_lengths_and_widths_of_their_own_compile(topology, queries, keys, head, values, apart):
    """An image and its caption, a caption, a packed decoder over its encoder, DeepSeek's widths, the autoencoder's."""
    mesh = topology_mesh(topology, {"data": 4})
    rows = NamedSharding(mesh, PartitionSpec(ROWS))

    def tensor(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((4, *shape), dtype, sharding=rows)

    ids = [tensor(n, dtype=jnp.int32) if apart else None for n in (queries, keys)]

    def step(q, k, v, q_ids, k_ids):
        def loss(q, k, v):
            how = {"query_segments": q_ids, "key_segments": k_ids, "causal": queries == keys}
            return attention(q, k, v, **how).astype(jnp.float32).sum()

        return jax.value_and_grad(loss, (0, 1, 2))(q, k, v)

    arrays = tensor(queries, 8, head), tensor(keys, 8, head), tensor(keys, 8, values)
    with jax.set_mesh(mesh):
        text = jax.jit(step).lower(*arrays, *ids).compile().as_text()
    assert "splash_mha_fwd" in text and "splash_mha_dkv" in text


@pytest.mark.parametrize("topology", ["v5p:2x2x1", "v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dropout_over_short_rows_compiles(topology: str, dtype) -> None:
    """BERT's rows: beside the mask of a byte a weight nothing of the scores' size is kept."""
    mesh = topology_mesh(topology, {"data": 4})
    rows, length, heads = 16, 512, 16

    def step(q, k, v, segments, key):
        def loss(q, k, v):
            how = {"causal": False, "segments": segments}
            out = attention(q, k, v, dropout_rate=0.1, dropout_key=key, **how)
            return out.astype(jnp.float32).sum()

        return jax.value_and_grad(loss, (0, 1, 2))(q, k, v)

    q = abstract(mesh, dtype, rows, length, heads, 64)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        lowered = jax.jit(step).lower(q, q, q, abstract(mesh, jnp.int32, rows, length), key)
        compiled = lowered.compile()
    text = compiled.as_text()
    assert "tpu_custom_call" in text
    scores = re.findall(r"\b(\w+)\[[\d,]*512,512\]", text)
    assert "s8" in scores and not {"f32", "bf16"} & {*scores}
    temporary = compiled.memory_analysis().temp_size_in_bytes / (rows // 4 * heads * length**2)
    print(f"attention {topology} {dtype.__name__} {q.shape}: {temporary:.2f} bytes a score")
