"""What a benchmark lacks is named before its run has a folder."""

import itertools

import jax.numpy as jnp
import pytest
import toys

from mlperf_jax import benchmarks
from mlperf_jax.core import members, preflight
from mlperf_jax.core.benchmark import Benchmark, Target, Weighted
from mlperf_jax.errors import UserError
from mlperf_jax.metrics import Mean


def without(name):
    """A toy that does not state this member, as one written by a newcomer."""
    base = toys.SelfMade if name == "generated_data" else toys.Toy
    return type("Wine", (base,), {name: Benchmark.__dict__[name]})


@pytest.mark.parametrize(
    "name",
    [
        "example",
        "model",
        "optimizer",
        "loss",
        "predict",
        "eval_steps",
        "data",
        "flops_per_sample",
        "lookups",  # of a toy with a table
        "generated_data",  # of one that makes its data
    ],
)
def test_a_missing_member_is_named_and_nothing_is_touched(name, tmp_path):
    with pytest.raises(UserError, match=rf"Wine does not state {name}, .*see Benchmark\.{name}"):
        preflight.preflight(without(name)(), toys.options(tmp_path / "output"), "data")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("name", ["lookups", "generated_data"])
def test_what_a_benchmark_does_not_use_it_need_not_state(name):
    members.check_members(type("Wine", (toys.Plain,), {name: Benchmark.__dict__[name]})())


def test_a_metric_must_be_stated():
    class Bare(Benchmark):
        name = "resnet"
        ruleset = "4.0.0"

    bare = Bare(
        batch_size=8, train_samples=8, eval_samples=8, targets=(Target("accuracy", at_least=0.5),)
    )
    with pytest.raises(UserError, match="Bare does not state metric"):
        members.check_members(bare)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"eval_steps": lambda self: iter([4, 8])},
            r"Wine\.eval_steps gives \[4, 8\].*without end",
        ),
        ({"eval_steps": lambda self: itertools.count(0, 4)}, r"gives \[0, 4, .*increasing"),
        ({"eval_steps": lambda self: itertools.repeat(4)}, "increasing steps from 1 on"),
        ({"flops_per_sample": None}, r"Wine\.flops_per_sample gives None: it must be a number"),
        ({"flops_per_sample": float("nan")}, "flops_per_sample gives nan"),
        ({"last_sample": 0}, r"last_sample gives 0"),
        ({"position": lambda self, step: {"epoch_num": 1}}, "samples_count by name"),
        ({"log": lambda self: {"opt_name": {1, 2}}}, r"log gives {'opt_name': {1, 2}}.*JSON"),
        ({"optimizer_log": lambda self: {"opt_name": jnp}}, r"optimizer_log gives .*JSON"),
        ({"tables_log": lambda self: {"rate": float("nan")}}, r"tables_log gives .*JSON"),
        ({"quality_lines": lambda self, quality: [0.5]}, "pairs of a value and its metadata"),
        ({"quality_lines": lambda self, quality: []}, "quality_lines gives"),
        ({"metric": toys.Slow(mode="sometime")}, "metric.mode gives 'sometime'.*offline"),
    ],
)
def test_what_a_member_gives_is_looked_at(changes, says):
    with pytest.raises(UserError, match=says):
        members.check_members(type("Wine", (toys.Toy,), changes)())


def test_a_target_of_another_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"gives no 'acuracy'.*did you mean 'accuracy'"):
        toys.Toy(targets=(Target("acuracy", at_least=0.5),))


def test_start_weights_are_asked_for_before_the_run_has_a_folder(tmp_path):
    class Weightless(toys.Started):
        def start(self, data_dir):
            raise UserError(f"{data_dir}/weights is missing")

    with pytest.raises(UserError, match="data/weights is missing"):
        preflight.preflight(Weightless(), toys.options(tmp_path / "output"), "data")
    assert not (tmp_path / "output").exists()


# -- what its functions give, known once they are traced -------------------------------------------


@pytest.mark.parametrize("member", ["mode", "ranges", "sums", "result"])
def test_a_metric_lacks_nothing(member):
    given = {"mode": "inline", "rows": False, "ranges": {"accuracy": (0, 1)}}
    given |= {"sums": lambda self, outputs, mask: outputs, "result": lambda self, total: {}}
    del given[member]
    metric = type("R2", (), given)()
    with pytest.raises(UserError, match=f"the metric R2 has no {member}: see Metric in"):
        type("Wine", (toys.Plain,), {"metric": metric})()


def test_tiny_is_asked_for_by_name():
    with pytest.raises(UserError, match=r"resnet states no tiny\(\)"):
        type("Wine", (toys.Plain,), {"tiny": Benchmark.tiny})().tiny()


@pytest.mark.parametrize("tiny", [lambda self: self, lambda self: toys.Toy(size="tiny")])
def test_tiny_is_the_same_benchmark_made_small(tiny):
    wine = type("Wine", (toys.Plain,), {"tiny": tiny, "name": "wine", "ruleset": ""})
    with pytest.raises(UserError, match=r'Wine\.tiny\(\) must give a Wine of size "tiny"'):
        benchmarks.get(wine(), tiny=True)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda given: given[None], r"loss gives 'loss' as \[1\]: it must be one number"),
        (lambda given: Weighted(given, jnp.ones(3)), r"loss gives 'loss' as \[3\]"),
        (lambda given: {"a": given, "b": given[None]}, r"loss gives 'b' as \[1\]"),
        (lambda given: (given, {"mae": jnp.ones(4)}), r"loss gives 'mae' as \[4\]"),
    ],
)
def test_a_loss_and_its_scalars_are_single_numbers(loss, says):
    own = {"loss": lambda self, *args: loss(toys.Plain.loss(self, *args))}
    with pytest.raises(UserError, match=says):
        toys.stepped(type("Wine", (toys.Plain,), own)(), steps=1)


@pytest.mark.parametrize(
    ("predict", "says"),
    [
        (lambda right: right.mean(), r"a row for each of a batch's 32, and gives \[\]"),
        (lambda right: {"a": right, "b": right[:5]}, r"a batch's 32, and gives \[5\]"),
        (lambda right: right[:, None], r"accuracy is a mean over rows: .* \[B\], not \[32, 1\]"),
    ],
)
def test_predictions_are_rows(predict, says, tmp_path):
    own = {"predict": lambda self, *args: predict(toys.Plain.predict(self, *args))}
    with pytest.raises(UserError, match=says):
        toys.run(type("Wine", (toys.Plain,), own)(), tmp_path)


@pytest.mark.parametrize("given", [3, float("inf")])
def test_a_quality_lies_in_its_range(given, tmp_path):
    own = {"metric": Mean("accuracy", (0, 1))}
    own["predict"] = lambda self, *args: given + toys.Plain.predict(self, *args)
    says = rf"gives accuracy ({given}|3\S*|4), and its ranges say from 0 to 1"
    with pytest.raises(UserError, match=says):
        toys.run(type("Wine", (toys.Plain,), own)(), tmp_path)
