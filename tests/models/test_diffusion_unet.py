"""The UNet against diffusers (scripts/make_diffusion_reference.py), the fact sheet, and itself in other ways."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import modules
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import unflatten_dict

from mlperf_jax.core import jaxprs, mesh as meshes, state as states
from mlperf_jax.errors import UserError
from mlperf_jax.models import diffusion_huggingface as huggingface, diffusion_unet
from mlperf_jax.models.diffusion_layers import ResBlock
from mlperf_jax.models.diffusion_unet import SpatialTransformer, UNet, UNetConfig
from mlperf_jax.ops import attention, pretend
from mlperf_jax.optimizers import ParamTree, flatten_paths
from scripts import make_diffusion_reference as reference

MIXED = UNetConfig(**reference.UNET)
WHOLE = MIXED.replace(groups=32)
MINI = UNetConfig(width=8, multipliers=(1, 2), res_blocks=1, attention_levels=1, head_width=8,
                  context_width=6, groups=2, transformer_groups=4)  # fmt: skip


def build(config, dtype=jnp.float32):
    return UNet(config, dtype, rngs=nnx.Rngs(0))


@functools.cache
def abstract(config, dtype=jnp.bfloat16):
    return modules.abstract(lambda: build(config, dtype))


@functools.cache
def stored():
    with np.load(reference.OUTPUT) as file:
        return dict(file)


def told(name):
    """Shapes of the arrays of a module, by the names of diffusers, and summaries of all gradients."""
    found = json.loads(stored()[f"{name} gradients"].tobytes())
    return found["shapes"], found["gradients"]


@functools.cache
def weights():
    return {
        name: reference.weight(name, tuple(shape)) for name, shape in told("unet 16")[0].items()
    }


def parameters(dtype=np.float32):
    return modules.whole(huggingface.unet_readers(weights(), MIXED), dtype)


def last(x):
    """Channels first to channels last."""
    return np.moveaxis(x, 1, -1) if x.ndim == 4 else x


def first(x):
    return np.moveaxis(np.asarray(x), -1, 1) if x.ndim == 4 else np.asarray(x)


def inputs(shapes, dtype=np.float32):
    return [last(reference.drawn(name, shape)).astype(dtype) for name, shape in shapes.items()]


def compiled(function):
    """A jitted function that compiles quickly and runs slowly."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def applied(config, dtype, params, latents, context):
    times = jnp.resize(jnp.array(reference.TIMESTEPS), (len(latents),))
    return states.merge(abstract(config, dtype)[0], params, {}, {})(latents, times, context)


@functools.cache
def forward(config, dtype):
    """A jitted function of (params, latents, context): the output."""
    return compiled(functools.partial(applied, config, dtype))


@functools.cache
def computed(config, dtype, name="slope"):
    """The same: the output, and the gradients of its sum weighted by numbers that go by the name."""

    def run(*arguments):
        slope = last(reference.drawn(name, first(np.empty(arguments[1].shape)).shape))

        def loss(*arguments):
            out = applied(config, dtype, *arguments)
            return (out * slope).sum(), out

        (_, out), slopes = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*arguments)
        return out, slopes

    return compiled(run)


def mini(dtype=np.float32):
    """Parameters and inputs, of four rows, of a network that compiles faster yet."""
    draw = np.random.RandomState(0)
    shapes = abstract(MINI)[1], *(jnp.empty(shape) for shape in ((4, 4, 6, 4), (4, 5, 6)))
    return jax.tree.map(lambda x: (draw.standard_normal(x.shape) * 0.5).astype(dtype), shapes)


# -- sizes -----------------------------------------------------------------------------------------


def test_parameters_are_as_many_as_in_the_reference():
    tree = ParamTree.from_params(abstract(UNetConfig())[1])
    assert tree.count() == 865_910_724
    assert {leaf.dtype for leaf in tree.leaves} == {np.dtype("float32")}


def test_arrays_are_those_of_diffusers_at_full_size():
    """By name and shape, for the benchmark's sizes."""
    shapes = json.loads(stored()["full size"].tobytes())["unet"]
    given = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    readers = huggingface.unet_readers(given, UNetConfig())
    ours = {path: leaf.shape for path, leaf in flatten_paths(abstract(UNetConfig())[1]).items()}
    assert {path: reader.shape for path, reader in readers.items()} == ours


def test_kinds_of_parameters():
    tree = ParamTree.from_params(abstract(MIXED)[1])
    assert set(tree.heads) == {"head/kernel"} and not tree.embeddings
    assert tree["down/0/blocks/0/residual/conv1/kernel"].input_axes == (0, 1, 2)
    norms = {path.rpartition("/")[0].rpartition("/")[2] for path in tree.norms}
    assert norms == {"norm", "norm1", "norm2", "attention_norm", "cross_norm", "feed_forward_norm"}
    assert tree["head/bias"].kind == tree["time_embedding/first/bias"].kind == "bias"
    assert not any(leaf.stacked or leaf.kind == "other" for leaf in tree.leaves)


def test_flops_are_those_of_the_fact_sheet():
    config = UNetConfig()
    assert config.flops(64, 64, 77) == pytest.approx(804.3e9, rel=1e-4)
    assert config.attention_flops(64, 64, 77) == pytest.approx(126e9, rel=1e-3)


def test_flops_are_those_that_the_compiler_counts():
    """By the products in a traced program."""
    config, latents = MIXED.replace(attention="xla"), jnp.zeros([1, 8, 12, 4])
    params = abstract(config, jnp.float32)[1]

    def run(params):
        model = states.merge(abstract(config, jnp.float32)[0], params, {}, {})
        return model(latents, jnp.zeros(1), jnp.zeros([1, 7, 24]))

    found = 0
    for equation in jaxprs.equations(jax.make_jaxpr(run)(params).jaxpr):
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            found += 2 * equation.outvars[0].aval.size * inner
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            found += 2 * equation.outvars[0].aval.size * kernel.size // kernel.shape[-1]
    assert config.flops(8, 12, 7) == found


# -- parity ----------------------------------------------------------------------------------------


def test_outputs_and_gradients_are_those_of_diffusers(x64):
    """16 groups in residual blocks and 32 in transformers."""
    out, slopes = computed(MIXED, jnp.float64, "slope unet 16")(
        parameters(np.float64), *inputs(reference.UNET_INPUTS, np.float64)
    )
    np.testing.assert_allclose(first(out), stored()["unet 16"], atol=1e-11)
    found = huggingface.unet_to_huggingface(slopes[0], MIXED)
    found |= {"input 0": first(slopes[1]), "input 1": np.asarray(slopes[2])}
    found, wanted = reference.summary(found), told("unet 16")[1]
    assert found.keys() == wanted.keys()
    for array, values in wanted.items():
        np.testing.assert_allclose(found[array], values, rtol=1e-9, atol=1e-10, err_msg=array)


def test_with_32_groups_it_is_the_one_that_diffusers_has(x64):
    found = forward(WHOLE, jnp.float64)(
        parameters(np.float64), *inputs(reference.UNET_INPUTS, np.float64)
    )
    np.testing.assert_allclose(first(found), stored()["unet 32"], atol=1e-11)
    assert np.abs(stored()["unet 16"] - stored()["unet 32"]).max() > 0.01


@pytest.mark.parametrize(("dtype", "share"), [(jnp.float32, 1e-4), (jnp.bfloat16, 0.06)])
def test_narrower_numbers_follow(dtype, share):
    found, wanted = (
        forward(MIXED, dtype)(parameters(), *inputs(reference.UNET_INPUTS)),
        stored()["unet 16"],
    )
    assert found.dtype == jnp.float32
    assert 0 < np.abs(first(found) - wanted).max() < share * np.abs(wanted).max()


def test_sinusoids_are_those_of_diffusers():
    found = diffusion_unet.sinusoids(jnp.array(reference.TIMESTEPS), 320, jnp.float32)
    np.testing.assert_allclose(found, stored()["sinusoids"], atol=2e-4)  # 981 x float32's rounding


# -- single parts at full width --------------------------------------------------------------------


def part(make, name, shapes, readers, call=lambda module, *args: module(*args)):
    """Output and gradients of a part in float64, by torch's names, weights drawn by them too."""
    graphdef, state = states.split(make())
    tensors, _ = told(name)
    tensors = {n: reference.weight(f"{name} {n}", tuple(shape)) for n, shape in tensors.items()}
    leaves = list(readers)
    read = huggingface._readers(tensors, leaves, name)
    params = {path: r((slice(None),) * len(r.shape)).astype(np.float64) for path, r in read.items()}
    params = unflatten_dict({path.removeprefix("/"): x for path, x in params.items()}, sep="/")
    shapes_of = lambda tree: jax.tree.map(jnp.shape, tree)  # noqa: E731
    assert shapes_of(params) == shapes_of(state["params"])
    arguments = inputs(shapes, np.float64)
    slope = last(reference.drawn(f"slope {name}", stored()[name].shape))

    @compiled
    def run(params, *arguments):
        def loss(params, *arguments):
            out = call(states.merge(graphdef, params, {}, {}), *arguments)
            return (out * slope).sum(), out

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, *arguments)

    (_, out), slopes = run(params, *arguments)
    np.testing.assert_allclose(first(out), stored()[name], atol=1e-10)
    found = huggingface._exported({"": slopes[0]}, leaves)
    found |= {f"input {i}": first(x) for i, x in enumerate(slopes[1:])}
    found, wanted = reference.summary(found), told(name)[1]
    assert found.keys() == wanted.keys()
    for array, values in wanted.items():
        np.testing.assert_allclose(found[array], values, rtol=1e-8, atol=1e-8, err_msg=array)


def unnamed(leaves):
    """Leaves whose names begin with no dot: those of a part by itself."""
    return [
        leaf.__class__(**{**vars(leaf), "name": leaf.name.removeprefix(".")}) for leaf in leaves
    ]


def test_a_residual_block_of_the_benchmark(x64):
    sizes = {"epsilon": 1e-5, "time_width": 1280, "dtype": jnp.float64}
    leaves = unnamed(huggingface._res_block("", "", 640, 320, 1280))
    make = functools.partial(ResBlock, 640, 320, 16, **sizes, rngs=nnx.Rngs(0))
    # diffusers' blocks activate the embedding of the time, which ours get activated
    told_time = lambda block, x, time: block(x, nnx.silu(time))  # noqa: E731
    part(make, "res block", reference.RES_BLOCK, leaves, told_time)


def test_a_spatial_transformer_of_the_benchmark(x64):
    leaves = unnamed(huggingface._transformer("", "", 320, 1024))
    make = functools.partial(SpatialTransformer, 320, UNetConfig(), jnp.float64, rngs=nnx.Rngs(0))
    part(make, "transformer", reference.TRANSFORMER, leaves)


# -- the start -------------------------------------------------------------------------------------


def test_it_begins_as_zero_and_by_torchs_laws():
    model = build(MIXED)
    params = states.split(model)[1]["params"]
    out = forward(MIXED, jnp.float32)(params, *inputs(reference.UNET_INPUTS))
    assert out.dtype == jnp.float32 and not out.any()
    params = flatten_paths(params)
    zero, drawn = [], {}
    for path, value in params.items():
        module, _, name = path.rpartition("/")
        kind = module.rpartition("/")[2]
        if kind in ("conv2", "project_out", "head"):
            zero.append(kind)
            assert not value.any(), path
        elif "norm" in kind:
            assert (value == (name == "scale")).all(), path
        else:
            fan_in = math.prod(params[f"{module}/kernel"].shape[:-1])
            drawn.setdefault((kind, name), []).append(np.ravel(value) * math.sqrt(fan_in))
    assert set(zero) == {"conv2", "project_out", "head"} and len(zero) == 2 * (12 + 6 + 1)
    kinds = {kind for kind, _ in drawn}
    assert kinds == {
        "conv_in", "conv1", "time", "skip", "halve", "double", "first", "second", "project_in", "query", "key",
        "value", "out", "up", "gate", "down",
    }  # fmt: skip
    assert {kind for kind in kinds if (kind, "bias") not in drawn} == {"query", "key", "value"}
    for kind, values in drawn.items():
        values = np.concatenate(values)
        assert np.abs(values).max() <= 1 and values.max() > 0.7 and values.min() < -0.7, kind
        assert abs(values.mean()) < 4 / math.sqrt(3 * len(values)), kind
        assert np.square(values).mean() == pytest.approx(
            1 / 3, abs=4 * 0.3 / math.sqrt(len(values))
        )
    assert not np.array_equal(*(params[f"down/0/blocks/{i}/residual/conv1/kernel"] for i in (0, 1)))


# -- memory and kernels ----------------------------------------------------------------------------


@pytest.mark.parametrize("remat", ["full", "attention"])
def test_what_is_recomputed_is_the_same(remat):
    kept, again = (computed(MINI.replace(remat=r), jnp.float32)(*mini()) for r in (None, remat))
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4 * np.abs(a).max())


def residuals(remat):
    """Bytes that the forward pass keeps for the backward one."""
    graphdef = abstract(MINI.replace(remat=remat))[0]
    params, latents, context = mini()

    def loss(params):
        return states.merge(graphdef, params, {}, {})(latents, jnp.zeros(4), context).sum()

    kept = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))


def test_remat_keeps_less():
    nothing, attended, everything = (residuals(remat) for remat in ("full", "attention", None))
    assert nothing < attended < everything
    assert nothing < residuals("dots_no_batch") < residuals("dots")


@pytest.mark.parametrize(("device", "kernel"), [("tpu", "splash"), ("gpu", "cudnn")])
def test_every_attention_of_the_benchmark_goes_to_the_fast_kernels(device, kernel, monkeypatch):
    chosen, choose = [], attention._choose

    def choice(backend, call, dropping):
        chosen.append((call.queries, call.keys, choose(backend, call, dropping)))
        return chosen[-1][-1]

    monkeypatch.setattr(attention, "_choose", choice)
    graphdef, params = abstract(UNetConfig())
    latents, context = jnp.zeros([2, 64, 64, 4]), jnp.zeros([2, 77, 1024])
    with pretend.platform(device):
        jax.eval_shape(
            lambda params: states.merge(graphdef, params, {}, {})(latents, jnp.zeros(2), context),
            params,
        )
    sides = [64, 64, 32, 32, 16, 16, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    wanted = [(side**2, keys, kernel) for side in sides for keys in (side**2, 77)]
    assert chosen == wanted


def test_77_keys_are_the_same_to_the_tpus_kernel():
    config = UNetConfig(
        width=64, multipliers=(1,), attention_levels=1, head_width=64, context_width=16
    )
    x = jnp.asarray(reference.drawn("x", (2, 8, 16, 64)))
    context = jnp.asarray(reference.drawn("context of 77", (2, 77, 16)))

    def run(backend):
        made = SpatialTransformer(
            64, config.replace(attention=backend), jnp.float32, rngs=nnx.Rngs(0)
        )
        made.project_out.kernel[...] = jnp.eye(64)
        return jax.value_and_grad(lambda x: jnp.sin(made(x, context)).sum())(x)

    plain, kernel = run("xla"), run("splash_interpret")
    np.testing.assert_allclose(kernel[0], plain[0], rtol=1e-5)
    np.testing.assert_allclose(kernel[1], plain[1], atol=2e-5)


# -- meshes ----------------------------------------------------------------------------------------


def on_mesh(text):
    """Output and gradients in float64, the parameters placed by the rules."""
    mesh, (params, *arguments) = meshes.make_mesh(text), mini(np.float64)
    with jax.set_mesh(mesh):
        shardings = meshes.state_shardings({"params": params}, diffusion_unet.RULES, mesh)
        placed = jax.device_put({"params": params}, shardings)["params"]
        return jax.device_get(computed(MINI, jnp.float64)(placed, *arguments))


def test_the_mesh_changes_nothing(x64):
    """Of two devices on `tensor` the finest level's one head keeps one idle."""
    for found, wanted in zip(*map(jax.tree.leaves, map(on_mesh, ("data=2,fsdp=2,tensor=2", "data=1"))),
                             strict=True):  # fmt: skip
        np.testing.assert_allclose(found, wanted, atol=1e-11 * np.abs(wanted).max())


def test_where_parameters_live():
    mesh, shapes = meshes.make_mesh("fsdp=4,tensor=2"), abstract(UNetConfig())[1]
    specs = {
        path: leaf.spec
        for path, leaf in flatten_paths(
            meshes.state_shardings({"params": shapes}, diffusion_unet.RULES, mesh)["params"]
        ).items()
    }
    P = jax.sharding.PartitionSpec
    block = "down/1/blocks/0"
    for path, spec in {
        f"{block}/residual/conv1/kernel": P(None, None, "fsdp", "tensor"),
        f"{block}/residual/conv2/kernel": P(None, None, "tensor", "fsdp"),
        f"{block}/residual/conv1/bias": P("tensor"),
        f"{block}/residual/conv2/bias": P(),
        f"{block}/residual/time/kernel": P("fsdp", "tensor"),
        f"{block}/residual/skip/kernel": P(None, None, "fsdp"),
        f"{block}/transformer/project_in/kernel": P("fsdp"),
        f"{block}/transformer/block/attention/query/kernel": P("fsdp", "tensor"),
        f"{block}/transformer/block/cross_attention/out/kernel": P("tensor", "fsdp"),
        f"{block}/transformer/block/feed_forward/down/kernel": P("tensor", "fsdp"),
        "time_embedding/second/kernel": P("tensor", "fsdp"),
        "head/kernel": P(None, None, "fsdp"),
        "down/0/halve/kernel": P(None, None, "fsdp"),
    }.items():
        assert specs[path] == spec, path
    large = {path for path, leaf in flatten_paths(shapes).items() if leaf.size > 16_384}
    whole = {path for path in large if not any(specs[path])}
    assert not whole


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"multipliers": ()}, r"multipliers are \(\)"),
        ({"attention_levels": 3}, "attention_levels is 3; give 0 to 2"),
        ({"groups": 12}, "groups 12 does not divide the 32 channels"),
        ({"width": 48, "head_width": 32, "groups": 16}, "head_width 32 does not divide the 48"),
        ({"transformer_groups": 24}, "transformer_groups 24 does not divide the 32"),
        ({"width": 33, "groups": 11}, "width 33 is odd"),
        ({"remat": "some"}, "remat: unknown policy 'some'"),
    ],
)
def test_what_makes_no_network_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: states.split(build(MIXED.replace(**changes)))[1])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 4, 4, 6), (2,), (2, 7, 24)), r"not \[B, H, W, 4\]"),
        (((2, 4, 5, 4), (2,), (2, 7, 24)), "4 x 5 cannot be halved 1 times; .* multiples of 2"),
        (((2, 4, 6, 4), (2,), (2, 7, 32)), r"\(2, 7, 32\) is not \[B, tokens, 24\]"),
        (((2, 4, 6, 4), (1,), (2, 7, 24)), r"2 latents, times of shape \(1,\)"),
        (((2, 4, 6, 4), (2,), (1, 7, 24)), "1 contexts; give one time and one context for each"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(shapes, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: build(MIXED)(*map(jnp.zeros, shapes)))
