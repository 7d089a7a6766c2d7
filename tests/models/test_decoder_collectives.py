"""What travels over the mesh in a decoder's forward pass: each layout that a comment there asks for.

Without those the model computes the same, so tests of equality do not see them; they cost traffic.
Sizes differ, so a shape says what an array is.
"""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mlperf_jax.core import mesh as meshes, state as states
from mlperf_jax.models import decoder
from mlperf_jax.models.decoder import Decoder, DecoderConfig, Lora

B, T, D, F, V, N, K, H = 8, 16, 40, 56, 96, 4, 2, 12
CONFIG = DecoderConfig(layers=1, width=D, heads=N, kv_heads=K, head_dim=H, hidden=F, vocab=V)
WAYS = 2  # of fsdp, tensor and context each


@functools.cache
def collectives(config=CONFIG):
    """(operation, dtype, shape of its result on one device) of the forward pass, optimised."""
    mesh = meshes.make_mesh(f"fsdp={WAYS},tensor={WAYS},context={WAYS}")
    found = []

    def shapes():
        graphdef, parts = states.split(Decoder(config, jnp.float32, rngs=nnx.Rngs(0)))
        found.append(graphdef)
        return parts["params"]

    params = jax.eval_shape(shapes)
    placed = meshes.state_shardings({"params": params}, decoder.RULES, mesh)["params"]

    def hidden(params, tokens):
        return states.merge(found[0], params, {}, {}).hidden(tokens, key=jax.random.key(0))

    with jax.set_mesh(mesh):
        jitted = jax.jit(hidden, in_shardings=(placed, meshes.batch_sharding(mesh)))
        program = jitted.lower(params, jax.ShapeDtypeStruct((B, T), jnp.int32)).compile()
    operation = r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    found = set()
    for line in program.as_text().splitlines():
        if match := re.search(r"= (.*?) " + operation, line):
            for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
                shape = tuple(int(size) for size in sizes.split(",") if size)
                found.add((match[2], dtype, shape))
    return found


def floats(operation, config=CONFIG):
    """Shapes that an operation moves, axes of one left out."""
    return {
        tuple(size for size in shape if size > 1)
        for kind, dtype, shape in collectives(config)
        if kind == operation and dtype.startswith("f")
    }


def test_every_device_looks_up_its_own_tokens():
    assert not [dtype for _, dtype, _ in collectives() if dtype.startswith(("s", "u"))]
    # the table over fsdp once, its columns split over tensor, and never the whole of it
    assert (V, D // WAYS) in floats("all-gather")
    assert (V, D) not in floats("all-gather")


def test_row_split_products_are_summed_over_tensor_alone():
    rows, tokens = B // WAYS, T // WAYS
    assert floats("all-reduce") | floats("reduce-scatter") <= {
        (rows, tokens, D),
        (rows, tokens // WAYS, D),
    }
    # the operands of these products stay where they are along T
    assert not floats("all-gather") & {(rows, T, F // WAYS), (rows, T, N * H // WAYS)}


def test_column_split_kernels_stay_split_over_tensor():
    whole = {(D, N * H), (N * H, D), (D, F), (F, D)}
    assert (D, F // WAYS) in floats("all-gather")  # over fsdp
    assert not floats("all-gather") & whole


def test_keys_and_values_alone_are_whole_over_context():
    rows = B // WAYS
    assert {(rows, T, K // WAYS * H), (rows, T, H)} & floats("all-gather")
    assert (rows, T, N // WAYS, H) not in floats("all-gather")  # queries


@pytest.mark.parametrize("operation", ["all-gather", "all-reduce", "all-to-all"])
def test_adapters_move_no_activations_but_their_low_ranks(operation):
    rank = 6
    config = CONFIG.replace(lora=Lora(rank=rank, dropout=0.0))
    more = floats(operation, config) - floats(operation)
    activations = {shape for shape in more if len(shape) == 3}
    assert all(shape[-1] == rank for shape in activations), activations
