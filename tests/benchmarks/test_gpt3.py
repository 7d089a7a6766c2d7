"""GPT3: recipes, rates, optimizer, evaluation, log and start checkpoint against rules and fact sheet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks.gpt3 import Gpt3
from mlperf_jax.core import mesh as meshes, preflight, starts, state
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.tokens import megatron
from mlperf_jax.models import decoder_paxml
from mlperf_jax.optimizers import ParamTree, tree
from tests.benchmarks.language_models import (
    toy_params,
    write_tokens,
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("data"))
    benchmarks.build_data(benchmarks.get("gpt3", tiny=True), folder)
    return folder


def test_learning_rate() -> None:
    """Warm-up from 0, one step at the base rate, a cosine to 10 %; the run starts at 0.997 of it."""
    for size in (1536, 2048):
        recipe = Gpt3.recipes()[size]
        rate, base, ratio = recipe.learning_rate(), recipe.base_lr, 1536 / size
        warm, end = int(np.ceil(265 * ratio)), int(np.ceil(108_600 * ratio))
        assert float(rate(0)) == 0
        np.testing.assert_allclose(rate(warm // 2), base * (warm // 2) / warm, rtol=1e-5)
        np.testing.assert_allclose([rate(warm), rate(warm + 1)], base, rtol=1e-6)
        t = (warm + end) // 3
        done = (t - warm - 1) / (end - warm - 1)
        np.testing.assert_allclose(
            rate(t), base * (0.1 + 0.45 * (1 + np.cos(np.pi * done))), rtol=1e-5
        )
        np.testing.assert_allclose(rate(end), 0.1 * base, rtol=1e-5)
        np.testing.assert_allclose(
            rate(recipe.steps_of(recipe.start_samples)), 0.997 * base, rtol=2e-3
        )


def test_decay_pulls_a_gain_to_one() -> None:
    """The stored gain is an offset from 1, and it is decayed (facts: gpt3 section 13)."""
    tiny = benchmarks.get("gpt3", tiny=True, dtype="float32")
    model = tiny.decoder()
    assert model.norm == "layer_offset"
    params = toy_params()
    tx = tiny.replace(warmup_samples=0).optimizer(ParamTree.from_params(params))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    scale = params["final_norm"]["scale"]
    assert (np.sign(updates["final_norm"]["scale"]) == -np.sign(scale)).all()


def test_validation_is_5662_windows_and_11_590_004_scored_tokens() -> None:
    """From the validation file's length; each window's last token is not scored."""
    tokens = 11_590_004 + 5662

    class File:
        def __init__(self):
            self.tokens = tokens

    windows = megatron.FileOrder(File(), 2048, None, extra=0)  # type: ignore[arg-type]
    assert len(windows) == Gpt3().eval_samples == 5662


def test_each_windows_last_token_is_not_scored(tmp_path) -> None:
    write_tokens(tmp_path / "valid", [40, 30])
    small = benchmarks.get("gpt3", tiny=True).replace(
        validation_file="valid", sequence_length=16, batch_size=5
    )
    data = small.data().validation(str(tmp_path))
    assert len(data) == 5
    batch = data.batched(5)[0]
    assert (batch["labels"] != -100).sum(1).tolist() == [15, 15, 15, 15, 5]
    stream = np.fromfile(tmp_path / "valid.bin", np.uint16)
    np.testing.assert_array_equal(batch["inputs"][1], stream[16:32])
    np.testing.assert_array_equal(batch["labels"][1][:15], stream[17:32])


def test_training_windows_are_shuffled_and_documents_are_not(tmp_path) -> None:
    """Window i is stream tokens [S i, S (i + 1)) in file order; two files in turn."""
    write_tokens(tmp_path / "a", [100, 28])
    write_tokens(tmp_path / "b", [60, 68])
    small = benchmarks.get("gpt3", tiny=True).replace(
        train_files=("a", "b"), sequence_length=16, batch_size=4, sample_limit=16
    )
    batches = small.data().train(str(tmp_path)).batched(4, seed=3)
    rows = np.concatenate([batches[number]["inputs"] for number in range(4)])
    for number, name in enumerate("ab"):
        windows = np.fromfile(tmp_path / f"{name}.bin", np.uint16).reshape(8, 16)
        found = {tuple(row) for row in rows[number::2]}
        assert found == {tuple(row) for row in windows.astype(np.int32)}
        assert [tuple(r) for r in rows[number::2]] != [tuple(w) for w in windows]


def test_starts_from_weights_moments_and_count(data_dir) -> None:
    """On one device and eight: everything of the checkpoint, and the count of this batch size."""
    tiny = preflight.resolve_dtype(benchmarks.get("gpt3", tiny=True))
    folder = f"{data_dir}/{tiny.weights}"
    moments = decoder_paxml.start_moments(folder, tiny.decoder())
    for mesh, size in (("data=1", 16), ("data=2,fsdp=4", 32)):
        changed = tiny.replace(batch_size=size)
        assembly = state.assemble(changed, meshes.make_mesh(mesh))
        begun = starts.begin_from(assembly.create(0), changed.start(data_dir))
        adam = next(part for part in begun["opt"][1] if hasattr(part, "mu"))
        assert int(adam.count) == 640 // size
        assert int(begun["step"]) == 0
        for name, part in (("mu", adam.mu), ("nu", adam.nu)):
            for path, leaf in tree.flatten_paths(part).items():
                reader = moments[name][path]
                np.testing.assert_array_equal(leaf, reader((slice(None),) * leaf.ndim))
        assert float(jnp.abs(adam.nu["embed"]["embedding"]).max()) > 0
        rates = [part for part in begun["opt"][1] if "count" in getattr(part, "_fields", ())]
        assert {int(part.count) for part in rates} == {640 // size}


def test_bad_start_checkpoint_is_named(data_dir) -> None:
    tiny = benchmarks.get("gpt3", tiny=True)
    with pytest.raises(
        UserError, match=r"copy the reference's checkpoint_00004000.*mlperf-llm-public2"
    ):
        tiny.replace(weights="elsewhere").start(data_dir)
    with pytest.raises(UserError, match="wrong shape"):
        tiny.replace(hidden=128).start(data_dir)


def test_sequences_beyond_the_positions_are_refused() -> None:
    with pytest.raises(UserError, match="sequence_length must be at most 2048, not 4096"):
        Gpt3(sequence_length=4096)
