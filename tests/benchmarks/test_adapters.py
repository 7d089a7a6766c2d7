"""Adapters of runs, saved for other libraries and begun from."""

import jax
import numpy as np
import pytest

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks.language_model import SIZES
from mlperf_jax.core import mesh as meshes, preflight, starts, state
from mlperf_jax.errors import UserError
from mlperf_jax.models import huggingface, lora_peft
from mlperf_jax.optimizers import tree
from mlperf_jax.results.runs import RunSet

NAME = "llama2_70b_lora"
SMALL = {"tiny": True, "mesh": "data=1", "seed": 1, "show": "none", "max_samples": 16}


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    """The folder of a run of two steps, a checkpoint of each."""
    folder = tmp_path_factory.mktemp("lora")
    where = {"data_dir": tiny_data(NAME), "output": str(folder), "checkpoint_every": 1}
    benchmarks.run(NAME, **SMALL, **where)
    return folder


@pytest.fixture(scope="module")
def saved(run):
    return benchmarks.save_adapter(run, run / "saved", base="tiny/llama")


def begun(tiny_data, **fields):
    """What a run begins with."""
    benchmark = preflight.resolve_dtype(benchmarks.get(NAME, tiny=True, **fields))
    assembly = state.assemble(benchmark, meshes.make_mesh("data=1"))
    return starts.begin_from(assembly.create(0), benchmark.start(tiny_data(NAME)))


def test_what_is_saved_is_what_was_trained(run, saved):
    adapter, loaded = lora_peft.read(saved), benchmarks.load(run)
    assert adapter.lora == loaded.benchmark.decoder().lora and adapter.base == "tiny/llama"
    params = tree.flatten_paths(loaded.view["params"])
    assert adapter.weights.keys() == params.keys()
    for path, array in adapter.weights.items():
        assert array.any(), f"{path} was trained"
        np.testing.assert_array_equal(array, params[path])


def test_the_base_is_not_read(run, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("the base was opened")

    monkeypatch.setattr(huggingface, "open_folder", refused)
    first = benchmarks.save_adapter(f"{run}/run_0", tmp_path / "first", step=1)
    last = benchmarks.save_adapter(run, tmp_path / "last")
    a, b = (lora_peft.read(folder).weights for folder in (first, last))
    assert any((a[path] != b[path]).any() for path in a), "of another step"
    assert lora_peft.read(last).base is None, "a tiny base has no name elsewhere"


def test_a_run_begins_from_an_adapter(saved, tiny_data):
    fresh, own = (begun(tiny_data, adapter=given) for given in (None, str(saved)))
    adapter = lora_peft.read(saved).weights
    params = tree.flatten_paths(own["params"])
    for path, array in adapter.items():
        np.testing.assert_array_equal(array, params[path])
    jax.tree.map(np.testing.assert_array_equal, fresh["frozen"], own["frozen"])
    jax.tree.map(np.testing.assert_array_equal, fresh["opt"], own["opt"])


def test_a_run_that_began_from_an_adapter_is_saved_too(saved, tiny_data, tmp_path):
    where = {"data_dir": tiny_data(NAME), "output": str(tmp_path / "on")}
    result = benchmarks.run(NAME, **SMALL, **where, adapter=str(saved))
    weights = lora_peft.read(benchmarks.save_adapter(result, tmp_path / "again")).weights
    before = lora_peft.read(saved).weights
    for path, array in weights.items():
        moved, size = np.abs(array - before[path]).max(), np.abs(before[path]).max()
        assert 0 < moved < 3 * size, f"{path} went on from where it was"


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_rank": 4}, "takes rank 16 and alpha 32 here, not 4 and 32: give --lora-rank 16"),
        ({"lora_alpha": 16}, "takes rank 16 and alpha 32 here, not 16 and 16"),
    ],
)
def test_an_adapter_of_another_rank_is_refused_before_anything_is_made(
    fields, message, saved, tiny_data, tmp_path
):
    where = {"data_dir": tiny_data(NAME), "output": str(tmp_path / "set")}
    with pytest.raises(UserError, match=message):
        benchmarks.run(NAME, **SMALL, **where, adapter=str(saved), **fields)
    assert not (tmp_path / "set").exists()


def test_an_adapter_of_another_base_is_refused(saved):
    config = benchmarks.get(NAME, tiny=True).decoder()
    with pytest.raises(UserError, match=r"another base: .*has shape \(\d, \d+, 16\), not \("):
        lora_peft.start_weights(str(saved), config.replace(layers=config.layers + 1))


def test_a_folder_without_an_adapter_is_refused(tiny_data):
    benchmark = benchmarks.get(NAME, tiny=True, adapter="nowhere")
    with pytest.raises(UserError, match=r"nowhere holds no adapter_config.json"):
        benchmark.start(tiny_data(NAME))  # in the data's folder


def test_what_has_no_adapter_or_no_room_is_refused(run, saved, tmp_path):
    with pytest.raises(UserError, match="saved is there already"):
        benchmarks.save_adapter(run, saved)
    with pytest.raises(UserError, match="keeps no checkpoint of step 7, only of 1, 2"):
        benchmarks.save_adapter(run, tmp_path / "new", step=7)
    with RunSet(tmp_path / "set").create(benchmarks.get("resnet", tiny=True).config(), {"seed": 1}):
        pass
    with pytest.raises(UserError, match="is a run of resnet, which trains no adapters"):
        benchmarks.save_adapter(tmp_path / "set", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_runs_of_full_size_name_the_release(saved, tmp_path):
    tiny, params = benchmarks.get(NAME, tiny=True), tree.unflatten(lora_peft.read(saved).weights)
    large = benchmarks.get(NAME, **{size: getattr(tiny, size) for size in SIZES})
    folder = large.save_adapter(params, tmp_path / "large")
    assert lora_peft.read(folder).base == "meta-llama/Llama-2-70b-hf"
