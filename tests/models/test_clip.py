"""CLIP against open_clip and transformers (scripts/make_clip_reference.py), the fact sheet, and itself on meshes."""

import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import modules
import numpy as np
import optax
import pytest
from flax import nnx

from mlperf_jax.core import mesh as meshes, state as states
from mlperf_jax.errors import UserError
from mlperf_jax.models import clip, clip_import
from mlperf_jax.models.clip import Clip, TextConfig, TextTower, VisionConfig
from mlperf_jax.ops import pretend
from mlperf_jax.optimizers import ParamTree, flatten_paths
from scripts import make_clip_reference as reference

TEXT = TextConfig(**reference.TEXT, features=reference.FEATURES)
VISION = VisionConfig(**reference.VISION, features=reference.FEATURES)


def build(dtype=jnp.float32, text=TEXT, vision=VISION):
    return Clip(text, vision, dtype, rngs=nnx.Rngs(0))


def tower(config, dtype=jnp.float32):
    return TextTower(config, dtype, rngs=nnx.Rngs(0))


def shapes(make):
    return modules.abstract(make)[1]


def graph(make):
    return modules.abstract(make)[0]


@functools.cache
def stored():
    with np.load(reference.OUTPUT) as file:
        return dict(file)


@functools.cache
def tensors():
    """OpenCLIP's state dict: its own names and shapes, the script's values."""
    told = json.loads(stored()["open_clip"].tobytes())["shapes"]
    return {name: np.asarray(reference.weight(name, tuple(s))) for name, s in told.items()}


def parameters(dtype=np.float32):
    weights = clip_import.Weights(tensors(), transformers=False)
    return modules.whole(clip_import.readers(weights, TEXT, VISION), dtype)


def batch():
    return {"tokens": reference.captions().astype(np.int32), "images": reference.images()}


def results(model, batch):
    """By the script's names."""
    images, tokens = batch["images"], batch["tokens"]
    conditioning, logits = model.text.conditioning(tokens), model.logits(images, tokens)
    labels = jnp.arange(len(tokens))
    each = [optax.softmax_cross_entropy_with_integer_labels(x, labels) for x in (logits, logits.T)]
    probe = reference.drawn("conditioning", conditioning.shape)
    return {
        "conditioning": conditioning,
        "text_features": model.text.features(tokens),
        "image_features": model.vision(images),
        "scores": model(images, tokens),
        "logits": logits,
        "loss": sum(x.mean() for x in each) + (conditioning * probe).mean(),
    }


@functools.cache
def computed(dtype, text=TEXT, vision=VISION):
    """A jitted function of (params, batch): results, and the gradients of the loss."""
    made = graph(lambda: build(dtype, text, vision))

    def run(params, batch):
        def loss(params):
            found = results(states.merge(made, params, {}, {}), batch)
            return found["loss"], found

        (_, found), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return found, gradients

    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


# -- sizes -----------------------------------------------------------------------------------------


def test_parameters_are_as_many_as_in_the_reference():
    text, vision = TextConfig(), VisionConfig()
    tree = ParamTree.from_params(shapes(lambda: build(jnp.bfloat16, text, vision)))
    of_text = sum(leaf.size for leaf in tree.leaves if leaf.path.startswith("text/"))
    assert (
        of_text == 354_032_640
    )  # with the last layer and the projection, which conditioning lacks
    assert tree.count() == 986_109_441
    assert {leaf.dtype for leaf in tree.leaves} == {np.dtype("float32")}
    short = ParamTree.from_params(shapes(lambda: tower(text.replace(whole=False))))
    assert tree["text/last/attention/out/kernel"].shape == (1024, 1024)
    assert of_text - short.count() == 12 * 1024**2 + 13 * 1024 + 1024**2


def test_kinds_of_parameters():
    tree = ParamTree.from_params(shapes(build))
    assert set(tree.embeddings) == {
        "text/words/embedding", "text/positions/embedding", "vision/positions/embedding",
        "vision/class_embedding",
    }  # fmt: skip
    assert tree["vision/patches/kernel"].kind == tree["text/projection/kernel"].kind == "matrix"
    assert tree["vision/first_norm/bias"].kind == tree["text/final_norm/scale"].kind == "norm"
    assert tree["text/blocks/layers/attention/query/kernel"].layers == TEXT.layers - 1
    assert tree["vision/blocks/layers/feed_forward/up/bias"].layers == VISION.layers
    assert tree["logit_scale"].kind == "other"


def test_flops_are_those_of_the_fact_sheet():
    text, vision = TextConfig(), VisionConfig()
    assert text.conditioning_flops() == pytest.approx(45.1e9, rel=1e-3)
    layer = 77 * (24 * 1024**2 + 4 * 77 * 1024)
    assert text.conditioning_flops() == 23 * layer
    assert text.features_flops() == 24 * layer + 2 * 1024**2
    assert vision.tokens == 257
    patches = 256 * 2 * 14 * 14 * 3 * 1280
    blocks = 32 * 257 * (24 * 1280**2 + 4 * 257 * 1280)
    assert vision.features_flops() == patches + blocks + 2 * 1280 * 1024


def test_initial_weights_have_open_clip_s_deviations():
    config = TextConfig(
        layers=4, width=256, heads=4, hidden=1024, features=128, vocab=500, tokens=60
    )
    vision = VisionConfig(layers=3, width=128, heads=4, hidden=512, features=128, side=32, patch=4)
    made = jax.jit(lambda: states.split(build(jnp.float32, config, vision))[1])()["params"]
    flat = flatten_paths(made)
    residual = 256**-0.5 * 8**-0.5
    for path, std in (
        ("text/words/embedding", 0.02),
        ("text/positions/embedding", 0.01),
        ("text/blocks/layers/attention/query/kernel", 256**-0.5),
        ("text/blocks/layers/attention/out/kernel", residual),
        ("text/blocks/layers/feed_forward/up/kernel", 512**-0.5),
        ("text/blocks/layers/feed_forward/down/kernel", residual),
        ("text/last/feed_forward/down/kernel", residual),
        ("text/projection/kernel", 256**-0.5),
        ("vision/positions/embedding", 128**-0.5),
        ("vision/blocks/layers/attention/out/kernel", 128**-0.5 * 6**-0.5),
        ("vision/patches/kernel", 48**-0.5),
    ):
        assert float(flat[path].std()) == pytest.approx(std, rel=0.04), path
    for path, value in flat.items():
        if path.endswith("/bias"):
            assert not value.any(), path
    query, key = (flat[f"text/blocks/layers/attention/{p}/kernel"] for p in ("query", "key"))
    assert not np.allclose(query, key) and not np.allclose(query[0], query[1])
    assert float(flat["logit_scale"]) == pytest.approx(math.log(1 / 0.07))


# -- parity ----------------------------------------------------------------------------------------


def test_results_and_gradients_are_those_of_open_clip(x64):
    wanted = stored()
    found, gradients = computed(jnp.float64)(parameters(np.float64), batch())
    for name, value in found.items():
        np.testing.assert_allclose(value, wanted[name], atol=1e-10, err_msg=name)
    gradients = reference.summary(clip_import.to_open_clip(gradients, TEXT, VISION))
    told = json.loads(wanted["open_clip"].tobytes())
    del told["shapes"]
    assert gradients.keys() == told.keys()
    for name, values in told.items():
        np.testing.assert_allclose(gradients[name], values, rtol=1e-9, atol=1e-10, err_msg=name)
        assert values[0] > 1e-6, name


def test_float32_is_within_its_rounding_of_open_clip():
    wanted = stored()
    found, _ = computed(jnp.float32)(parameters(), batch())
    for name, value in found.items():
        np.testing.assert_allclose(value, wanted[name], atol=1e-4, rtol=1e-4, err_msg=name)


def test_bfloat16_follows_float32():
    wide, narrow = (computed(d)(parameters(), batch())[0] for d in (jnp.float32, jnp.bfloat16))
    assert narrow["conditioning"].dtype == narrow["image_features"].dtype == jnp.bfloat16
    assert narrow["scores"].dtype == narrow["logits"].dtype == jnp.float32
    for name, value in wide.items():
        off = np.abs(value - narrow[name].astype(np.float32)).max()
        assert 0 < off < 0.06 * np.abs(value).max(), name


def test_full_width_is_that_of_open_clip():
    """One block and two, in float32."""
    config = TextConfig(**reference.WIDE, features=reference.WIDE_FEATURES)
    leaves = clip_import._text_leaves(config, False, "")
    names = {name: leaf.file_shape for leaf in leaves for name in leaf.names(config.layers - 1)}
    given = {name: reference.weight(name, shape) for name, shape in names.items()}
    params = modules.whole(
        clip_import.text_readers(clip_import.Weights(given, transformers=False), config), np.float32
    )
    model = states.merge(graph(lambda: tower(config)), params, {}, {})
    tokens = reference.captions(reference.WIDE, 2).astype(np.int32)
    found = model.conditioning(tokens), model.features(tokens)
    np.testing.assert_allclose(found[0][:, ::19, ::64], stored()["wide_conditioning"], atol=1e-4)
    np.testing.assert_allclose(found[1], stored()["wide_features"], atol=1e-4, rtol=1e-4)


@functools.cache
def hub_files():
    return json.loads(stored()["hub_files"].tobytes())


def hub_folder(folder, kind):
    """What transformers' `save_pretrained` left of the script's model, but in float32."""
    from safetensors.numpy import save_file

    told = hub_files()[kind]
    given = {
        name: np.asarray(reference.weight(name, tuple(s))) for name, s in told["shapes"].items()
    }
    save_file(given, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(told["config"]))
    return folder


def test_transformers_clip_model_is_read(tmp_path, x64):
    read = clip_import.readers(hub_folder(tmp_path, "CLIPModel"), TEXT, VISION)
    found, _ = computed(jnp.float64)(modules.whole(read, np.float64), batch())
    np.testing.assert_allclose(found["logits"], stored()["hub_logits"], atol=1e-6)
    np.testing.assert_allclose(found["scores"], stored()["hub_scores"], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "is_whole", "wanted"),
    [
        ("CLIPTextModel", False, "hub_conditioning"),  # as in Stable Diffusion 2's folders
        ("CLIPTextModelWithProjection", True, "hub_text_features"),
    ],
)
def test_transformers_text_models_are_read(tmp_path, x64, kind, is_whole, wanted):
    config = TEXT.replace(whole=is_whole)
    params = modules.whole(clip_import.text_readers(hub_folder(tmp_path, kind), config), np.float64)
    model = states.merge(graph(lambda: tower(config, jnp.float64)), params, {}, {})
    tokens = batch()["tokens"]
    found = model.features(tokens) if is_whole else model.conditioning(tokens)
    np.testing.assert_allclose(found, stored()[wanted], atol=1e-6)  # its softmax is in float32


# -- attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("platform", "length"), [("gpu", 77), ("tpu", 77), ("gpu", 257)])
def test_odd_lengths_take_the_fast_kernels(platform, length):
    """None of the scores of 77 or 257 tokens is held; plainly they are."""
    sizes = {"layers": 2, "width": 128, "heads": 2, "hidden": 256, "features": 64}
    text = TextConfig(**sizes, vocab=50)
    vision = VisionConfig(**sizes, side=224)

    def traced():
        def run(images, tokens):
            model = build(jnp.bfloat16, text, vision)
            return model.text.features(tokens) if length == 77 else model.vision(images)

        images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
        return str(jax.make_jaxpr(run)(images, jax.ShapeDtypeStruct((2, 77), jnp.int32)))

    assert f"{length},{length}]" in traced()
    with pretend.platform(platform):
        assert f"{length},{length}]" not in traced()


def test_the_tpu_kernel_gives_the_same():
    config = TextConfig(layers=2, width=64, heads=1, hidden=64, features=8, vocab=30)
    params = states.split(tower(config))[1]["params"]
    tokens = reference.captions({"vocab": 30, "tokens": 77}, 2).astype(np.int32)

    def conditioned(config):
        made = graph(lambda: tower(config))
        return states.merge(made, params, {}, {}).conditioning(tokens)

    found = [conditioned(c) for c in (config, config.replace(attention="splash_interpret"))]
    np.testing.assert_allclose(*found, atol=1e-4)


def test_what_is_recomputed_is_the_same():
    kept, again = (
        computed(jnp.float32, TEXT.replace(remat=remat), VISION.replace(remat=remat))(
            parameters(), batch()
        )
        for remat in (None, "full")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), kept, again)


def test_shorter_captions_are_the_beginnings_of_longer_ones():
    model = states.merge(graph(lambda: build()), parameters(), {}, {}).text
    tokens = batch()["tokens"]
    short, long = model.conditioning(tokens[:, :6]), model.conditioning(tokens)
    np.testing.assert_allclose(short, long[:, :6], atol=1e-5)


# -- images ----------------------------------------------------------------------------------------


def test_pixels_are_those_of_open_clip():
    for image, wanted in zip(reference.photographs(), stored()["pixels"], strict=True):
        found = np.asarray(clip.pixels(jnp.asarray(image)[None], reference.SIDE)[0])
        # equal levels of 256; a level is 0.014 here
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_pixels_beyond_black_and_white_are_these():
    image = jnp.array([-0.01, 0, 0.5, 1, 1.01])[None, None, :, None] * jnp.ones((1, 5, 1, 3))
    found = np.asarray(clip.pixels(image, 5)[0, 0, :, 0] * clip.DEVIATIONS[0] + clip.MEANS[0]) * 255
    np.testing.assert_allclose(found, [0, 0, 127, 255, 255], atol=1e-3)  # cut down, not rounded


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TEXT.replace(heads=5), "width 32 is not divided by 5 heads"),
        (lambda: TEXT.replace(vocab=0), "vocab is 0; give at least 1"),
        (lambda: TEXT.replace(layers=1), "1 layers has none before its last"),
        (lambda: VISION.replace(patch=5), "side 12 is not divided by patches of 5"),
        (lambda: build(text=TEXT.replace(features=8)), "8 features of captions .* 24 of images"),
        (lambda: build(text=TEXT.replace(whole=False)), "no features of captions"),
        (
            lambda: tower(TEXT.replace(whole=False)).features(jnp.zeros((1, 11), jnp.int32)),
            "ends before its last layer and has no features; make it with whole=True",
        ),
        (
            lambda: tower(TEXT).conditioning(jnp.zeros((1, 12), jnp.int32)),
            "captions of 12 tokens exceed the tower's 11 positions",
        ),
        (
            lambda: build().vision(jnp.zeros((1, 12, 10, 3))),
            "images are 12x10x3, the tower's 12x12x3; resize them with models.clip.pixels",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: make() and 0)


def test_a_token_beyond_the_vocabulary_is_no_number():
    model = states.merge(graph(lambda: build()), parameters(), {}, {}).text
    tokens = batch()["tokens"].copy()
    tokens[1, 3] = TEXT.vocab
    found = np.asarray(model.conditioning(tokens))
    assert np.isnan(found[1, 3:]).all() and np.isfinite(np.delete(found, 1, 0)).all()


# -- meshes ----------------------------------------------------------------------------------------


@functools.cache
def on_mesh(text):
    mesh, params = meshes.make_mesh(text), parameters(np.float64)
    with jax.set_mesh(mesh):
        shardings = meshes.state_shardings({"params": params}, clip.RULES, mesh)
        placed = jax.device_put({"params": params}, shardings)["params"]
        found, gradients = computed(jnp.float64)(placed, batch())
    return jax.tree.map(np.asarray, (found, gradients))


@pytest.mark.parametrize("mesh", ["data=2,fsdp=2,tensor=2", "fsdp=2,tensor=2,context=2"])
def test_every_mesh_computes_what_one_device_does(mesh, x64):
    """11 and 10 tokens over two devices of `context`, the 11 filled up."""
    one, many = on_mesh("data=1"), on_mesh(mesh)
    for name, value in one[0].items():
        np.testing.assert_allclose(many[0][name], value, atol=1e-12, err_msg=name)
    off = sum(((a - b) ** 2).sum() for a, b in zip(*map(jax.tree.leaves, (many[1], one[1]))))
    norm = sum((leaf**2).sum() for leaf in jax.tree.leaves(one[1]))
    assert norm > 0 and math.sqrt(off / norm) < 1e-12


def test_images_are_filled_up_for_the_mesh_too(x64):
    """17 tokens over two devices: what is added is seen by no token."""
    vision = VISION.replace(side=16, layers=1)
    params = states.split(build(jnp.float64, vision=vision))[1]["params"]["vision"]
    made = graph(lambda: build(jnp.float64, vision=vision).vision)
    images = np.random.RandomState(0).standard_normal((2, 16, 16, 3))
    alone = states.merge(made, params, {}, {})(images)
    with jax.set_mesh(meshes.make_mesh("data=2,context=2,tensor=2")):
        together = jax.jit(lambda p: states.merge(made, p, {}, {})(images))(params)
    np.testing.assert_allclose(together, alone, atol=1e-12)


@pytest.mark.parametrize("inside", ["", "frozen_text/"])
def test_rules_split_every_matrix_over_fsdp_and_tensor(inside):
    params = shapes(lambda: build(jnp.float32, TextConfig(), VisionConfig()))
    flat = {inside + path: leaf for path, leaf in flatten_paths(params).items()}
    mesh = meshes.make_mesh("fsdp=4,tensor=2")
    for path, leaf in flat.items():
        assert any(re.fullmatch(pattern, path) for pattern, _ in clip.RULES), path
        spec = meshes.leaf_spec(path, leaf.shape, clip.RULES, mesh)
        parts = leaf.size // math.prod(
            jax.sharding.NamedSharding(mesh, spec).shard_shape(leaf.shape)
        )
        split = path.endswith(("kernel", "/embedding"))
        columns = ["", *path.split("/")][-2] in ("query", "key", "value", "up")
        wanted = 4 if "patches" in path else 8 if split else 2 if columns else 1
        assert parts == wanted, path
