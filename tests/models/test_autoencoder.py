"""The autoencoder against diffusers (scripts/make_diffusion_reference.py), the fact sheet, and in parts."""

import functools
import json

import jax
import jax.numpy as jnp
import modules
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.core import jaxprs, mesh as meshes, state as states
from mlperf_jax.errors import UserError
from mlperf_jax.models import autoencoder, diffusion_huggingface as huggingface
from mlperf_jax.models.autoencoder import Autoencoder, AutoencoderConfig, Decoder, Encoder
from mlperf_jax.optimizers import ParamTree, flatten_paths
from scripts import make_diffusion_reference as reference

CONFIG = AutoencoderConfig(**reference.AUTOENCODER)
TINY = AutoencoderConfig(width=8, multipliers=(1, 2), res_blocks=1, groups=4)


def make(config, dtype, kind=Autoencoder):
    return kind(config, dtype, rngs=nnx.Rngs(0))


@functools.cache
def abstract(config, dtype=jnp.bfloat16):
    return modules.abstract(lambda: make(config, dtype))


@functools.cache
def stored():
    with np.load(reference.OUTPUT) as file:
        return dict(file)


def told():
    return json.loads(stored()["autoencoder gradients"].tobytes())


def parameters(dtype=np.float32):
    tensors = {n: reference.weight(n, tuple(shape)) for n, shape in told()["shapes"].items()}
    return modules.whole(huggingface.autoencoder_readers(tensors, CONFIG), dtype)


def last(x):
    return np.moveaxis(x, 1, -1)


def first(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def inputs(dtype=np.float32):
    shapes = reference.AUTOENCODER_INPUTS.items()
    return [last(reference.drawn(name, shape)).astype(dtype) for name, shape in shapes]


@functools.cache
def computed(dtype):
    """A jitted function of (params, images, latents): moments and pictures, and gradients of their weighted sum."""
    outputs = [stored()[name].shape for name in ("moments", "pictures")]
    sizes = [int(np.prod(shape)) for shape in outputs]
    both = np.split(reference.drawn("slope autoencoder", (sum(sizes),)), sizes[:1])
    slopes = [last(part.reshape(shape)) for part, shape in zip(both, outputs)]

    def run(params, images, latents):
        def loss(params, images, latents):
            model = states.merge(abstract(CONFIG, dtype)[0], params, {}, {})
            out = model.encoder(images), model.decoder(latents)
            return sum((x * slope).sum() for x, slope in zip(out, slopes)), out

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, images, latents)

    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


# -- sizes -----------------------------------------------------------------------------------------


def test_parameters_are_as_many_as_in_the_reference():
    tree = ParamTree.from_params(abstract(AutoencoderConfig())[1])
    counts = {}
    for leaf in tree.leaves:
        half, part = leaf.path.split("/")[:2]
        name = part if "quant" in part else half
        counts[name] = counts.get(name, 0) + leaf.size
    assert counts == {"encoder": 34_163_592, "quant": 72, "decoder": 49_490_179, "post_quant": 20}


def test_arrays_are_those_of_diffusers_at_full_size():
    shapes = json.loads(stored()["full size"].tobytes())["vae"]
    given = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    readers = huggingface.autoencoder_readers(given, AutoencoderConfig())
    ours = {p: x.shape for p, x in flatten_paths(abstract(AutoencoderConfig())[1]).items()}
    assert {path: reader.shape for path, reader in readers.items()} == ours


def test_flops_are_those_of_the_fact_sheet():
    config = AutoencoderConfig()
    assert config.encoder_flops(512, 512) == pytest.approx(1116.7e9, rel=1e-4)
    assert config.decoder_flops(512, 512) == pytest.approx(2514.5e9, rel=1e-4)


# -- parity ----------------------------------------------------------------------------------------


def test_outputs_and_gradients_are_those_of_diffusers(x64):
    (_, (moments, pictures)), slopes = computed(jnp.float64)(
        parameters(np.float64), *inputs(np.float64)
    )
    np.testing.assert_allclose(first(moments), stored()["moments"], atol=1e-11)
    np.testing.assert_allclose(first(pictures), stored()["pictures"], atol=1e-11)
    found = huggingface.autoencoder_to_huggingface(slopes[0], CONFIG)
    found |= {f"input {i}": first(x) for i, x in enumerate(slopes[1:])}
    found, wanted = reference.summary(found), told()["gradients"]
    assert found.keys() == wanted.keys()
    for array, values in wanted.items():
        np.testing.assert_allclose(found[array], values, rtol=1e-9, atol=1e-10, err_msg=array)


def test_float32_and_bfloat16_follow():
    for dtype, share in ((jnp.float32, 1e-4), (jnp.bfloat16, 0.06)):
        (_, out), _ = computed(dtype)(parameters(), *inputs())
        for name, value in zip(("moments", "pictures"), out):
            assert value.dtype == jnp.float32
            error = np.abs(first(value) - stored()[name]).max()
            assert 0 < error < share * np.abs(stored()[name]).max(), (name, dtype)


# -- latents ---------------------------------------------------------------------------------------


def test_latents_are_drawn_from_their_moments():
    """Mean and deviation, the log-variances clamped from both sides."""
    log_variances = np.array([-100.0, -2.0, 0.5, 90.0])
    means = np.array([3.0, -1.0, 0.5, 0.0])
    moments = np.broadcast_to(np.concatenate([means, log_variances]), (4, 8, 8, 8))
    noise = np.random.RandomState(0).standard_normal((4, 8, 8, 4))
    wanted = 0.18215 * (means + np.exp(np.array([-30, -2.0, 0.5, 20]) / 2) * noise)
    for dtype, off in ((jnp.float32, 1e-6), (jnp.float64, 1e-15)):
        with jax.enable_x64(dtype == jnp.float64):
            given = jnp.asarray(moments, dtype), jnp.asarray(noise, dtype)
            found = np.asarray(autoencoder.sample(*given))
        assert found.dtype == dtype
        np.testing.assert_allclose(found, wanted, rtol=off, atol=off)


@pytest.fixture(scope="module")
def decoder():
    model = make(TINY, jnp.float32, Decoder)
    # wide enough to be clamped at both ends
    model.conv_out.kernel[...] = model.conv_out.kernel[...] * 8
    return model


def drawn_latents(rows):
    return jnp.asarray(reference.drawn("drawn latents", (rows, 4, 6, 4)))


def test_pictures_are_in_0_to_1_and_latents_are_scaled_back(decoder):
    latents = drawn_latents(2)
    wanted = np.clip((np.asarray(decoder(latents / 0.18215)) + 1) / 2, 0, 1)
    assert (wanted == 0).any() and (wanted == 1).any() and (wanted != np.rint(wanted)).any()
    np.testing.assert_allclose(decoder.decode(latents), wanted, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 2, 4, 6, 100])
def test_decoding_in_parts_is_the_same(at_once, decoder):
    latents = drawn_latents(6)
    found = jax.jit(lambda x: decoder.decode(x, at_once=at_once))(latents)
    np.testing.assert_allclose(found, decoder.decode(latents), atol=1e-5)


def largest_batch(function, *args):
    """The most pictures that any convolution of a program sees."""
    return max(
        equation.invars[0].aval.shape[0]
        for equation in jaxprs.equations(jax.make_jaxpr(function)(*args))
        if equation.primitive.name == "conv_general_dilated"
    )


def test_no_part_is_larger_than_was_said(decoder):
    for rows, at_once, most in ((8, None, 8), (8, 4, 4), (8, 3, 2), (7, 3, 1), (2, 5, 2)):
        decode = functools.partial(decoder.decode, at_once=at_once)
        assert largest_batch(decode, drawn_latents(rows)) == most


@pytest.mark.parametrize("text", ["data=4", "data=2,tensor=2"])
def test_on_a_mesh_every_device_decodes_its_own(text, decoder):
    """Each device a part of so many at a time, and nothing gathered where only rows are split."""
    latents, mesh = np.asarray(drawn_latents(8)), meshes.make_mesh(text)
    with jax.set_mesh(mesh):
        placed = jax.device_put(latents, meshes.batch_sharding(mesh))
        decode = jax.jit(
            lambda x: decoder.decode(x, at_once=1),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        program = decode.lower(placed).compile()
        found = program(placed)
        assert largest_batch(lambda x: decoder.decode(x, at_once=1), placed) == int(text[5])
    if "tensor" not in text:
        gathered = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
        assert not [name for name in gathered if name in program.as_text()]
    np.testing.assert_allclose(found, decoder.decode(jnp.asarray(latents)), atol=1e-5)


def test_shapes_that_do_not_fit_are_refused(decoder):
    encoder = make(TINY, jnp.float32, Encoder)
    with pytest.raises(UserError, match=r"images of shape \(1, 3, 8, 8\) are not .* 3\]"):
        encoder(jnp.zeros([1, 3, 8, 8]))
    with pytest.raises(UserError, match="9 x 8 pixels; both sides must be multiples of 2"):
        encoder(jnp.zeros([1, 9, 8, 3]))
    with pytest.raises(UserError, match=r"latents of shape \(2, 4, 6, 8\)"):
        decoder(jnp.zeros([2, 4, 6, 8]))
    with pytest.raises(UserError, match="at_once is 0"):
        decoder.decode(drawn_latents(2), at_once=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"multipliers": (1, 0)}, r"multipliers are \(1, 0\)"),
        ({"groups": 12}, "12 groups do not divide the width 32"),
    ],
)
def test_what_makes_no_network_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        CONFIG.replace(**changes)
