"""Sets of runs that never ran: logs and run folders written with our own writers, for the result tools."""

import json
import pathlib
import shlex

import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.results import rules
from mlperf_jax.results.log import Log
from mlperf_jax.results.opening import header
from mlperf_jax.results.result import Result

RESNET = json.loads((pathlib.Path(__file__).parent / "results" / "resnet_values.json").read_text())
LLAMA = {
    "global_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "train_samples": 1_574_207_408,
    "eval_samples": 1024,
    "max_sequence_length": 8192,
    "max_steps": 1_200_000,
    "opt_name": "adamw",
    "opt_base_learning_rate": 4e-4,
    "opt_end_learning_rate": 4e-5,
    "opt_learning_rate_warmup_steps": 16,
    "opt_learning_rate_decay_steps": 1_199_984,
    "opt_learning_rate_decay_schedule": "cosine with linear warmup",
    "opt_adamw_beta_1": 0.9,
    "opt_adamw_beta_2": 0.95,
    "opt_adamw_epsilon": 1e-5,
    "opt_adamw_weight_decay": 0.1,
    "opt_gradient_clip_norm": 1.0,
    "lowest_numerical_precision_in_linear": "bfloat16",
    "lowest_numerical_precision_in_attn": "bfloat16",
    "lowest_numerical_precision_in_comm": "fp32",
    "tensor_parallelism": 1,
    "pipeline_parallelism": 1,
    "context_parallelism": 1,
    "expert_parallelism": 1,
    "micro_batch_size": 1,
    "config_filename": "config.json",
}
# benchmark -> ruleset, logged values, what an evaluation is counted in, a quality that passes
SETS = {
    "resnet": ("4.0.0", RESNET["sizes"] | RESNET["lars"], "epoch_num", 0.7591),
    "llama31_8b": ("6.1.0", LLAMA, "samples_count", 3.29),
    "cosmoflow": ("3.0.0", {"global_batch_size": 32}, "epoch_num", 0.12),
}
VERSIONS = {"python": "3.11.7", "jax": "0.10.2", "flax": "0.12.8", "mlperf-jax": "not installed"}
OPTIONS = {
    "mesh": None,
    "platform": None,
    "org": "Acme",
    "status": "onprem",
    "data_dir": "/home/me/x",
}
CONFIG = {
    "size": "full",
    "dtype": "bfloat16",
    "batch_size": 3264,
    "clip_norm": None,
    "flip": False,
    "stages": [3, 4, 6, 3],
    "targets": [{"name": "accuracy", "at_least": 0.759, "at_most": None, "above": None}],
    "optimizer": None,
}
MACHINE = {"host_processors_per_node": "2", "number_of_nodes": 1, "cooling": "air"}

# lengths whose means lie about the reference's, so the convergence test passes
ABOUT = {"resnet": [36, 35, 35, 36, 35], "llama31_8b": [172032] * 3 + [159744] * 7}


def write_run(runs, benchmark, length, seed, *, division, tiny=False, config=CONFIG, **spoil):
    """One finished rehearsal run: `spoil` are logged values to change."""
    ruleset, values, unit, quality = SETS[benchmark]
    config = {"benchmark": benchmark} | config | {"size": "tiny" if tiny else "full"}
    run = runs.create(config, OPTIONS | {"seed": seed} | spoil.pop("options", {}))
    time = 1_700_000_000_000 + 10_000_000 * spoil.pop("launched", run.index)
    status = spoil.pop("status", "success")
    with Log(run.log_path) as log:
        log.event("rehearsal", "made by a test", time_ms=time)
        header(
            log,
            rules.resolve(benchmark, ruleset),
            division=division,
            org="Acme",
            platform="8x accelerator",
            status="onprem",
            seed=seed,
        )
        log.start("init_start")
        for key, value in (values | spoil).items():
            log.event(key, value)
        log.stop("init_stop")
        log.start("run_start")
        block = {"first_epoch_num": 1, "epoch_count": length, "samples_count": length}
        log.start("block_start", **block)
        log.stop("block_stop", first_epoch_num=1, samples_count=length)
        log.start("eval_start", **{unit: length})
        log.event("eval_accuracy", quality if status == "success" else 0.5, **{unit: length})
        log.stop("eval_stop", **{unit: length})
        log.stop("run_stop", status=status)
    run.save_result(
        Result(
            benchmark=benchmark,
            tiny=tiny,
            reached=status == "success",
            quality={"quality": quality},
            samples=length,
            seconds=1.0,
            examples_per_second=1.0,
            seed=seed,
            versions=VERSIONS,
            device="TPU v5 lite",
            device_count=8,
            status=status,
            log=str(run.log_path),
            division=division,
            ruleset=ruleset,
        )
    )
    run.release()
    return run


def files(tree):
    """The files below a folder: name -> bytes."""
    return {p.relative_to(tree).as_posix(): p.read_bytes() for p in tree.rglob("*") if p.is_file()}


def command_of(script):
    """The words of the command that a script ends with."""
    words = shlex.split(script.read_text().replace("\\\n", ""), comments=True)
    return words[words.index("mlperf-jax") :]


def edit(path, old, new, count=-1):
    """Replaces what must be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def refused(pack, runs, message, tmp_path, **changes):
    """Asserts that packaging ends with this message and leaves nothing behind."""
    with pytest.raises(UserError, match=message):
        pack(runs, **changes)
    assert not (tmp_path / "out").exists()
