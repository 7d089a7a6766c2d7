"""Rehearsal: writes the log of a run that never was, to try it on the official tools.

The recipes are `rehearsal.toml`'s; everything else is done as a run does it: the header, the map of keys,
the schedule and the positions come from `mlperf_jax.results`.
"""

import itertools
import pathlib
import tomllib

from mlperf_jax.results import keys, rules
from mlperf_jax.results.log import Log
from mlperf_jax.results.opening import header

RECIPES = tomllib.loads((pathlib.Path(__file__).parent / "rehearsal.toml").read_text())

# Every benchmark in every round whose logs are of today's form.
OLDEST = {"training": "0.7", "hpc": "1.0"}
ROUNDS = [
    (row.name, name)
    for row in rules.entries().values()
    for name in row.rounds
    if name >= OLDEST[row.suite]
]

DISCLOSURE = keys.Disclosure(
    linear="bfloat16",
    attention="bfloat16",
    communication="float32",
    micro_batch_size=1,
    config_filename="rehearsal.toml",
    tensor=2,
    accelerators_per_node=8,
)


def values(name):
    """What the benchmark logs, in its newest spelling."""
    return dict(RECIPES[name]["values"])


def settings(name):
    """The benchmark's fields that no log shows."""
    unset = dict.fromkeys(("clip_norm", "ema_decay", "base_bits", "adapter"))
    return unset | RECIPES[name].get("settings", {})


def schedule(name, ruleset):
    """The first evaluations, in steps; a generation of Go is 600 steps."""
    evaluation = rules.resolve(name, ruleset).evaluation
    logged = values(name)
    steps = evaluation.steps(logged["global_batch_size"], logged["train_samples"])
    return list(itertools.islice(steps, 4)) or [600, 1200, 1800, 2400]


def lines(name, quality):
    """An evaluation's values and metadata: Stable Diffusion has two lines, Mask R-CNN a pair."""
    if name == "stable_diffusion":
        return [(value, {"metric": metric}) for metric, value in quality.items()]
    return [(quality, {})]


def write(path, name, ruleset, *, division="closed", qualities=None, logged=None):
    """Writes a log, of what the recipe logs or something else, and returns its path."""
    official = rules.resolve(name, ruleset)
    logged = logged or values(name)
    batch, epoch = (
        logged["global_batch_size"],
        logged["train_samples"] // values(name)["global_batch_size"],
    )

    def position(step):
        epochs = step / max(epoch, 1)
        where = {"epochs": epochs, "samples": step * batch, "steps": step}
        return keys.position(official, **where, logged=logged)

    with Log(path) as log:
        header(
            log,
            official,
            division=division,
            org="nobody",
            platform="rehearsal",
            status="research",
            seed=7,
        )
        log.start("init_start")
        for key, value, metadata in keys.translate(
            official, logged, division=division, disclosure=DISCLOSURE
        ):
            log.event(key, value, **metadata)
        log.stop("init_stop")
        log.start("run_start")
        begin = 0
        ends = schedule(name, ruleset)
        for end, quality in zip(ends, qualities or RECIPES[name]["qualities"], strict=False):
            block = {"first_epoch_num": begin / max(epoch, 1) + 1, "epoch_count": (end - begin)}
            log.start("block_start", **block, samples_count=begin * batch)
            if name == "minigo":
                log.event("actual_selfplay_games_per_generation", 8192 + end)
            log.stop("block_stop", first_epoch_num=block["first_epoch_num"])
            log.start("eval_start", **position(end))
            for key in keys.quality_keys(official, division):
                for value, metadata in lines(name, quality):
                    log.event(key, value, **position(end), **metadata)
            log.stop("eval_stop", **position(end))
            begin = end
        for key, samples in keys.trained(official, begin * batch).items():
            log.event(key, samples)
        log.stop("run_stop", status="success", **position(begin))
    return path
