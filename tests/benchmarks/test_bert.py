"""BERT: recipes, rates, rows, loss, quality, start and log against rules and fact sheet."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rehearsal
from flax import nnx

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks.bert import Bert
from mlperf_jax.core import brief, mesh as meshes, preflight, state as states
from mlperf_jax.errors import UserError
from mlperf_jax.metrics import WeightedAccuracy
from mlperf_jax.models import bert_huggingface
from mlperf_jax.optimizers import ParamTree
from mlperf_jax.results import compliance, keys, rules
from tests.benchmarks.language_models import first_steps, points, toy_params

OFFICIAL = points("bert", "5.0.0")


def small(**changes) -> Bert:
    """One layer of eight features, in float32 and without dropout."""
    sizes = {"layers": 1, "width": 8, "heads": 2, "hidden": 16, "dropout": 0.0}
    return Bert().tiny().replace(dtype="float32", **(sizes | changes))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> str:
    """The tiny data, without start weights."""
    folder = str(tmp_path_factory.mktemp("data"))
    Bert().tiny().data().build(folder)
    return folder


# -- recipes, log, schedules -----------------------------------------------------------------------


def test_recipes_are_those_of_the_official_file() -> None:
    recipes = Bert.recipes()
    assert len(recipes) == 13 and set(recipes) == set(OFFICIAL)
    for size, point in OFFICIAL.items():
        logged = preflight.full_log(recipes[size])
        given = dict(point.hyperparameters)
        given["opt_lamb_epsilon"] = given.pop("opt_epsilon")
        del given["gradient_accumulation_steps"]  # the reference's memory's
        assert {key: logged[key] for key in given} == given, size
        assert logged["opt_learning_rate_warmup_steps"] == given["num_warmup_steps"]
        assert recipes[size].last_sample == size * given["opt_learning_rate_training_steps"]
    assert Bert() == recipes[448]


def test_learning_rate() -> None:
    """Warm-up counts from its start step, the decay from 0; without warm-up a start step does nothing."""
    for size, recipe in Bert.recipes().items():
        rate, base, total = recipe.learning_rate(), recipe.base_lr, recipe.training_steps
        warm, start = recipe.num_warmup_steps, recipe.start_warmup_step
        after = max(0, warm + start)
        assert rate(after) == pytest.approx(base * (1 - after / total)), size
        assert rate(total - 1) == pytest.approx(base / total)
        if warm:
            assert rate(0) == pytest.approx(base * -start / warm)
            assert rate(after - 1) == pytest.approx(base * (warm - 1) / warm)
        else:
            assert rate(0) == pytest.approx(base)


@pytest.mark.parametrize(
    ("batch", "every"),
    [(256, 150_000), (1536, 150_000), (3072, 175_000), (4096, 175_000), (8192, 225_000)],
)
def test_evaluations_follow_multiples_of_samples_each_rounded_up(batch: int, every: int) -> None:
    steps = first_steps(Bert.recipes()[batch], 12)
    assert steps == [-(-k * every // batch) for k in range(1, 13)]


def test_epochs_are_counted_in_samples() -> None:
    done = {"epochs": 0.01, "samples": 336 * 448, "steps": 336}
    where = keys.position(rules.resolve("bert", "5.0.0"), **done, logged={})
    assert where["epoch_num"] == where["samples_count"] == 150_528


@pytest.mark.parametrize("division", ["closed", "open"])
def test_both_ways_of_the_official_checker_count_the_same_samples(tmp_path, division) -> None:
    """In `epoch_num`, and with `--bert_train_samples` in `train_samples`, which therefore ends the log."""
    official = pytest.importorskip("mlperf_logging.rcp_checker.rcp_checker")
    log = rehearsal.write(tmp_path / "result_0.txt", "bert", "5.0.0", division=division)
    assert compliance.check(log, "5.0.0").success
    found = [official.get_submission_epochs([log], "5.0.0", way) for way in (False, True)]
    # the second evaluation of batch 256, after 1,172 steps, meets the target
    assert found[0] == found[1] == (256, [1172 * 256], "bert")


def test_closed_refuses_another_network_by_name() -> None:
    options = benchmarks.RunOptions()
    for field, value in (
        ("clip_norm", None),
        ("dropout", 0.0),
        ("layers", 12),
        ("predictions", 80),
    ):
        with pytest.raises(UserError, match=field):
            preflight.resolve_division(Bert(dtype="float32", **{field: value}), options)
    free = Bert(dtype="float32", packed=False, weight_decay=0.1, base_lr=9.6e-4, beta_1=0.60466)
    assert preflight.resolve_division(free, options) == "closed"


# -- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", sorted(OFFICIAL))
def test_row_counts(size: int) -> None:
    """Few shapes, all for eight devices, the least of them half of the sequences and a little more."""
    recipe = Bert.recipes()[size]
    counts = recipe.row_counts()
    assert len(counts) <= 4 and list(counts) == sorted({*counts})
    assert all(rows % 8 == 0 and 0.505 * size <= rows <= size for rows in counts)
    assert counts[0] < 0.54 * size
    assert counts[-1] > 0.62 * size
    assert recipe.rows == counts[-1]
    assert recipe.replace(packed=False).row_counts() == (size,)


def test_a_batch_is_so_many_samples_whatever_its_rows(built: str) -> None:
    packed = Bert().tiny()
    seen = []
    for benchmark in (packed, packed.replace(packed=False)):
        batches = benchmark.data().train(built).batched(benchmark.rows, seed=3)
        held = [batches[number] for number in range(12)]
        assert {len(batch["tokens"]) for batch in held} == set(benchmark.row_counts())
        assert {batch["next_sentence_weights"].sum() for batch in held} == {benchmark.batch_size}
        assert benchmark.samples(12) == 12 * benchmark.batch_size
        seen.append([batch["masked_weights"].sum() for batch in held])
    assert seen[0] == seen[1]


def test_loss_and_gradients_do_not_depend_on_packing(built: str) -> None:
    """The same sequences in fewer rows, positions from 0, blind for each other."""
    packed = small()
    found = []
    for benchmark in (packed, packed.replace(packed=False)):
        batch = benchmark.data().train(built).batched(benchmark.rows, seed=3)[0]
        found.append(_gradients(benchmark, batch))
    (losses, one), (others, other) = found
    np.testing.assert_allclose(list(losses.values()), list(others.values()), rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6), one, other)


def _gradients(benchmark, batch):
    model = benchmark.model(nnx.Rngs(0))

    @nnx.jit
    def gradients(model, batch):
        return nnx.grad(loss, has_aux=True)(model, batch)

    def loss(model, batch):
        parts = benchmark.loss(model, batch, None)
        means = {name: part.total / part.weight for name, part in parts.items()}
        return sum(means.values()), means

    found, means = gradients(model, batch)
    return means, nnx.to_pure_dict(found)


# -- loss and quality ------------------------------------------------------------------------------


class Oracle:
    """Stands for the model: given logits."""

    def __init__(self, masked, following):
        self.masked, self.following = masked, following

    def hidden(self, *args, **more):
        return None

    def masked_logits(self, hidden, at):
        return self.masked

    def next_logits(self, hidden, at):
        return self.following


def oracle_batch():
    names = ("tokens", "types", "sequences", "positions", "masked_positions", "cls_positions")
    return {
        **dict.fromkeys(names),
        "masked_ids": jnp.array([[0, 2, 0], [1, 0, 0]]),
        "masked_weights": jnp.array([[1.0, 1, 0], [1, 0, 0]]),
        "next_sentence": jnp.array([[0, 1], [1, 0]]),
        "next_sentence_weights": jnp.array([[1.0, 1], [1, 0]]),
    }


def test_the_loss_is_two_means_of_their_own_weights() -> None:
    """Over masked tokens and over sequences; slots without weight count nowhere."""
    rng = np.random.default_rng(0)
    masked, following = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 2, 2))
    parts = Bert().loss(Oracle(jnp.array(masked), jnp.array(following)), oracle_batch(), None)

    def nll(logits, label):
        return np.log(np.exp(logits).sum()) - logits[label]

    tokens = nll(masked[0, 0], 0) + nll(masked[0, 1], 2) + nll(masked[1, 0], 1)
    pairs = nll(following[0, 0], 0) + nll(following[0, 1], 1) + nll(following[1, 0], 1)
    assert parts.keys() == {"masked", "next"}
    np.testing.assert_allclose(
        parts["masked"].total / parts["masked"].weight, tokens / 3, rtol=1e-5
    )
    np.testing.assert_allclose(parts["next"].total / parts["next"].weight, pairs / 3, rtol=1e-5)


def test_quality_is_over_all_masked_tokens_of_all_sequences() -> None:
    """Two of two and none of one are two thirds, not a half; rows of padding are left out."""
    logits = jax.nn.one_hot(jnp.array([[0, 2, 0], [0, 0, 0], [0, 0, 0]]), 5)
    batch = oracle_batch()
    batch = {k: v if v is None else jnp.concatenate([v, v[:1]]) for k, v in batch.items()}
    outputs = Bert().predict(Oracle(logits, None), batch, None)
    assert Bert.metric == WeightedAccuracy("mlm_accuracy")
    sums = Bert.metric.sums(outputs, jnp.array([True, True, False]))
    assert Bert.metric.result(sums) == {"mlm_accuracy": pytest.approx(2 / 3)}
    with pytest.raises(
        UserError, match="mlm_accuracy: nothing in the evaluation data is asked for"
    ):
        Bert.metric.result({"hits": 0.0, "weight": 0.0})


def test_lamb_leaves_biases_and_norms_out_of_decay_and_trust() -> None:
    """With another decay only matrices and tables move otherwise."""
    params, moved = toy_params(), []
    for decay in (0.01, 0.5):
        tx = Bert(weight_decay=decay).optimizer(ParamTree.from_params(params))
        moved.append(tx.update(jax.tree.map(jnp.sin, params), tx.init(params), params)[0])
    same = jax.tree.map(lambda a, b: bool((a == b).all()), *moved)
    flat = {jax.tree_util.keystr(path): equal for path, equal in jax.tree.leaves_with_path(same)}
    assert {path for path, equal in flat.items() if equal} == {
        path for path in flat if "bias" in path or "scale" in path
    }


def test_sizes_and_flops_are_the_fact_sheets() -> None:
    """1.020 TF of a padded sequence, and half of one, which has half of the attention, too."""
    assert Bert().replace(packed=False).flops_per_sample == pytest.approx(1.020e12, rel=1e-3)
    assert Bert().flops_per_sample == pytest.approx(0.49e12, rel=5e-3)
    shapes = {name: leaf.shape for name, leaf in Bert().example().items()}
    assert (shapes["tokens"], shapes["masked_ids"], shapes["cls_positions"]) == (
        (512,),
        (80,),
        (8,),
    )
    assert Bert().eval_example()["masked_ids"].shape == (76,)
    config = Bert().architecture()
    assert (config.max_positions, config.types, config.dropout) == (512, 2, 0.1)


# -- start -----------------------------------------------------------------------------------------


def test_a_run_starts_with_the_weights_alone(tmp_path) -> None:
    """LAMB's moments and count begin at 0, as does the step: the rate's clock starts anew."""
    benchmark = small()
    made = states.assemble(benchmark, meshes.make_mesh("data=1"))
    folder = tmp_path / benchmark.weights
    bert_huggingface.save_folder(folder, made.create(7)["params"], benchmark.architecture())
    start = benchmark.start(str(tmp_path))
    assert (start.optimizer_step, dict(start.moments)) == (0, {})
    assert all(path.startswith("params/") for path in start.weights)
    state = made.begin_from(made.create(1), start)
    jax.tree.map(np.testing.assert_array_equal, state["params"], made.create(7)["params"])
    assert int(state["step"]) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state["opt"]))


def test_start_weights_that_are_missing_or_of_another_function(tmp_path) -> None:
    benchmark = small()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        benchmark.start(str(tmp_path))
    folder = tmp_path / benchmark.weights
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_act": "gelu"}))
    with pytest.raises(UserError, match="tanh approximation"):
        benchmark.start(str(tmp_path))


def test_made_start_weights_are_kept(tmp_path, monkeypatch) -> None:
    benchmark, trained = small(), []
    assembly = states.assemble(benchmark, meshes.make_mesh("data=1"))

    def briefly(given, data_dir, steps):
        trained.append((given, steps))
        return assembly.create(0)

    monkeypatch.setattr(brief, "train_briefly", briefly)
    for _ in range(2):
        benchmark.make_start(str(tmp_path))
    ((given, steps),) = trained
    assert given == benchmark.replace(packed=False) and steps > 0
    assert benchmark.start(str(tmp_path)).weights
