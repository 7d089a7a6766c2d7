"""Every recipe's log tells of the schedule that runs: where the rate stops rising, where it stops falling."""

import jax
import numpy as np
import pytest

from mlperf_jax import benchmarks

RECIPES = [
    pytest.param(recipe, id=f"{name}-{size}")
    for name in benchmarks.names()
    for size, recipe in [
        *benchmarks.benchmark_class(name).recipes().items(),
        ("tiny", benchmarks.get(name, tiny=True)),
    ]
]


CONSTANT = ("dlrm_dcnv2", "rgat")


def logged(recipe) -> tuple[float, int, float, int | None]:
    """Of a recipe's log: base rate, the count at which it has it first, the last rate and its first count."""
    log, epoch = dict(recipe.optimizer_log()), recipe.epoch_steps
    said = {key.partition("opt_")[2]: value for key, value in log.items() if "opt_" in key}
    base = said["base_learning_rate"]
    match recipe.name:
        case "resnet":
            total, first = said["learning_rate_decay_steps"], int(recipe.convention == "mxnet")
            warm = said["learning_rate_warmup_epochs"] * total // recipe.lr_epochs
            return base, warm - first, said["end_learning_rate"], total + 1 - first
        case "stable_diffusion":
            return base, said["learning_rate_warmup_steps"], base, None
        case "unet3d" | "retinanet":
            warm = said["learning_rate_warmup_epochs"]
            # of unet3d whole epochs have one rate, and the first is number 1
            return base, max(0, warm - (recipe.name == "unet3d")) * epoch, base, None
        case "llama2_70b_lora":
            total = said["learning_rate_training_steps"]
            return base, round(said["learning_rate_warmup_factor"] * total), 0.0, total
        case "gpt3" | "llama31_8b" | "llama31_405b":
            warm, decay = said["learning_rate_warmup_steps"], said["learning_rate_decay_steps"]
            end = decay if recipe.name == "gpt3" else warm + decay
            return base, warm, said["end_learning_rate"], end
    raise AssertionError(f"say here what {recipe.name} logs of its schedule")


# of bert the warm-up ends on the decay, below the base rate: see test_bert.py
@pytest.mark.parametrize(
    "recipe", [p for p in RECIPES if p.values[0].name not in ("bert", *CONSTANT)]
)
def test_the_log_tells_of_the_schedule_that_runs(recipe) -> None:
    base, warm, last, end = logged(recipe)
    with jax.enable_x64(True):
        rate = recipe.learning_rate()
        np.testing.assert_allclose(rate(warm), base, rtol=1e-12)
        if warm:
            assert rate(warm - 1) < base
        if end is None:
            assert rate(recipe.epoch_steps * 1_000_000) == rate(warm)
        else:
            np.testing.assert_allclose([rate(end), rate(end + 9)], last, rtol=1e-12, atol=1e-30)
            assert rate(end - 1) > rate(end)


@pytest.mark.parametrize("recipe", [p for p in RECIPES if p.values[0].name in CONSTANT])
def test_a_constant_rate_is_logged_as_one(recipe) -> None:
    log = recipe.optimizer_log()
    assert not hasattr(recipe, "learning_rate")
    assert log["opt_base_learning_rate"] == recipe.base_lr
    assert {value for key, value in log.items() if "warmup" in key or "decay" in key} <= {0}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_limit_on_samples_comes_before_the_schedules_end(recipe) -> None:
    limited = recipe.replace(sample_limit=recipe.samples(3))
    assert limited.last_sample == recipe.samples(3)
    assert recipe.replace(sample_limit=None).last_sample == recipe.schedule_end


@pytest.mark.parametrize("recipe", [p for p in RECIPES if p.values[0].name == "resnet"])
def test_resnets_loop_ends_with_the_first_evaluation_past_its_schedule(recipe) -> None:
    end, steps = recipe.optimizer_log()["lars_opt_learning_rate_decay_steps"], recipe.eval_steps()
    last = next(step for step in steps if step >= end)
    assert recipe.schedule_end == last * recipe.batch_size
    assert last - end < recipe.eval_every * recipe.epoch_steps
