"""Batches to measure speed with: of every benchmark in range, and as uneven as its data."""

import functools

import jax
import numpy as np
import pytest
import toys

from mlperf_jax import benchmarks
from mlperf_jax.core import mesh as meshes, synthetic
from mlperf_jax.errors import UserError

BENCHMARKS = tuple(benchmarks.registry._BENCHMARKS)


@functools.cache
def drawn(name, evaluation=False):
    """The batches of a tiny benchmark, as NumPy arrays, and the benchmark."""
    given = benchmarks.get(name, tiny=True)
    buckets = given.eval_buckets() if evaluation else given.buckets()
    made = synthetic.batches(given, buckets, meshes.make_mesh("data=1"))
    return given, [{name: np.asarray(leaf) for name, leaf in batch.items()} for batch in made]


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("evaluation", [False, True], ids=("train", "evaluation"))
def test_batches_have_the_stated_shapes_and_ids_of_their_own(name, evaluation):
    given, made = drawn(name, evaluation)
    buckets = given.eval_buckets() if evaluation else given.buckets()
    assert len(made) == len(buckets)
    for batch, bucket in zip(made, buckets, strict=True):
        shapes = {name: ((bucket.rows, *s.shape), s.dtype) for name, s in bucket.example.items()}
        assert {name: (leaf.shape, leaf.dtype) for name, leaf in batch.items()} == shapes
        integers = [k for k, v in batch.items() if v.dtype.kind in "iu" and v.size > 100]
        varied = [k for k in integers if np.unique(batch[k]).size > 2]
        assert varied or not integers, "ids of 0 and 1 alone are nobody's data"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_same_batch_comes_again(name):
    given, made = drawn(name)
    again = synthetic.batches(given, given.buckets(), meshes.make_mesh("data=1"))
    for one, other in zip(made, again, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, dict(other))


def test_images_have_labels_of_all_classes():
    given, (batch,) = drawn("resnet")
    assert set(np.unique(batch["label"])) == set(range(given.classes))


def test_most_voxels_are_background_and_volumes_have_windows():
    given, (batch,) = drawn("unet3d")
    share = np.bincount(batch["label"].ravel(), minlength=3) / batch["label"].size
    assert share[0] > 0.8 > 0.01 < share[2] < share[1]
    assert batch["label"].max() == given.classes - 1
    _, (batch,) = drawn("unet3d", evaluation=True)
    assert batch["windows"].min() >= 1
    assert batch["windows"].max() == 3, "32 voxels hold three windows of 16, half overlapping"


def test_most_places_for_boxes_are_padding():
    given = benchmarks.get("retinanet", batch_size=64)
    bucket = given.buckets()[0]
    batch = given.data().drawn(64, bucket.example, np.random.default_rng(0))
    there = batch["label"] >= 0
    assert 4 < there.sum(1).mean() < 16, "1,024 places, and Open Images has 8.4 boxes an image"
    assert there.sum(1).min() >= 1
    assert set(np.unique(batch["label"][~there])) == {-1}
    assert batch["label"].max() < given.classes
    first, last = batch["boxes"][there].reshape(-1, 2, 2).swapaxes(0, 1)
    height, width = batch["size"][0]
    assert (first >= 0).all()
    assert (last > first).all()
    assert (last <= [width, height]).all()
    assert not batch["boxes"][~there].any()


def test_sequences_are_packed_as_long_as_wikipedias():
    given = benchmarks.get("bert")
    first, *_, last = given.buckets()
    batch = given.data().drawn(last.rows, last.example, np.random.default_rng(0))
    held = batch["next_sentence_weights"].sum()
    assert held == given.batch_size, "the largest shape holds all"
    filled = (batch["sequences"] > 0).sum()
    assert 0.9 < filled / given.batch_size / given.mean_length < 1.1
    assert batch["tokens"].max() < given.vocab
    masked = batch["masked_weights"].sum()
    assert 0.13 < masked / filled < 0.16
    assert batch["mask"].sum() < last.rows, "rows of the largest shape are left over"
    batch = given.data().drawn(first.rows, first.example, np.random.default_rng(0))
    assert 0.95 * given.batch_size < batch["next_sentence_weights"].sum() <= given.batch_size
    tokens = np.arange(given.sequence_length)
    padded = given.replace(packed=False)
    (bucket,) = padded.buckets()
    batch = padded.data().drawn(bucket.rows, bucket.example, np.random.default_rng(0))
    length = (batch["sequences"] > 0).sum(1)
    np.testing.assert_array_equal(batch["sequences"] > 0, tokens < length[:, None])
    assert length.min() < 64 < 512 == length.max()


@pytest.mark.parametrize("name", ["gpt3", "llama31_8b", "llama31_405b", "llama2_70b_lora"])
def test_tokens_are_as_frequent_as_words(name):
    given, (batch,) = drawn(name)
    counts = np.bincount(batch["inputs"].ravel(), minlength=given.vocab)
    assert batch["inputs"].min() >= 0
    assert len(counts) == given.vocab, "no id is outside"
    assert counts[:8].sum() > 4 * counts[8:16].sum() / 3 > 0
    np.testing.assert_array_equal(batch["labels"][:, :-1], batch["inputs"][:, 1:])
    assert (batch["labels"][:, -1] == -100).all() == (name == "llama2_70b_lora")


def test_clicks_are_rare_and_ids_spread_over_their_tables():
    given = benchmarks.get("dlrm_dcnv2", batch_size=4096)
    (bucket,) = given.buckets()
    batch = given.data().drawn(4096, bucket.example, np.random.default_rng(0))
    ends = np.cumsum(given.bag_sizes)
    for ids, rows in zip(np.split(batch["ids"], ends[:-1], 1), given.table_rows, strict=True):
        assert 0 <= ids.min() <= ids.max() < rows
        distinct = np.unique(ids).size
        assert min(rows, 100) * 0.9 < distinct
        assert distinct < 0.9 * ids.size, "popular ids come again and again"
    assert 0.02 < batch["label"].mean() < 0.05


def test_captions_begin_and_end():
    _, (batch,) = drawn("stable_diffusion")
    given = benchmarks.get("stable_diffusion", text_embeddings=False)
    (bucket,) = given.buckets()
    batch = given.data().drawn(64, bucket.example, np.random.default_rng(0))
    assert (batch["tokens"][:, 0] == given.vocab - 2).all()
    assert ((batch["tokens"] == given.vocab - 1).sum(1) == 1).all()
    assert 8 < (batch["tokens"] > 0).sum(1).mean() < 16


def test_samples_of_the_graph_hold_as_much_as_real_ones_and_fit_their_room():
    given, (batch,) = drawn("rgat")
    shape, size = given.shape(), given.size_of_graph
    assert batch["mask"].all()
    assert batch["labels"].max() < given.classes
    for kind, room in shape.nodes.items():
        ids = batch[f"ids/{kind}"]
        share = (ids >= 0).mean()
        assert ids.max() < size.nodes[kind]
        assert 0.5 < share <= 1 if room[-1] else not ids.size
        if kind in given.bins():
            place = np.sort(batch[f"place/{kind}"], 1)
            np.testing.assert_array_equal(place, np.tile(np.arange(room[-1]), (given.rows, 1)))
            block, bins = given.bins()[kind]
            numbers = ids[0][ids[0] >= 0] // block % bins
            assert (np.diff(numbers) >= 0).all(), "grouped by bin"
    for key, room in shape.edges.items():
        real = batch[f"real/{key}"]
        if room[-1]:
            assert 0.3 < real.mean() < 1
        source, target = (k for k in key.split("__")[::2])
        assert (batch[f"source/{key}"] < shape.nodes[source][-1]).all()
        assert (np.diff(batch[f"target/{key}"], axis=1) >= 0).all(), "ascending"
        assert (batch[f"target/{key}"] < max(1, shape.nodes[target][-2])).all()


def test_a_data_set_that_draws_other_arrays_is_told_so():
    class Draws(toys.InMemory):
        def drawn(self, rows, example, rng):
            return {"ids": np.zeros((rows, 3), np.int32), "unknown": np.zeros(rows)}

    class Mine(toys.Toy):
        def data(self):
            return Draws(self)

    given = Mine().tiny()
    with pytest.raises(UserError, match=r"draws ids as int32\[32, 3\].*states int32\[32, 2\]"):
        synthetic.batches(given, given.buckets(), meshes.make_mesh("data=1"))
