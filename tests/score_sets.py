"""Small logs for the tests of scores: as many lines as a score needs."""

import json

from mlperf_jax.results import rules

MINUTE = 60_000


def line(key, value=None, time_ms=0, **metadata):
    members = {
        "namespace": "",
        "time_ms": time_ms,
        "event_type": "POINT_IN_TIME",
        "key": key,
        "value": value,
        "metadata": {"file": "train.py", "lineno": 1} | metadata,
    }
    return f":::MLLOG {json.dumps(members)}"


def lines(
    minutes=10.0,
    *,
    benchmark="resnet",
    division="closed",
    batch=3264,
    seed=0,
    field="epoch_num",
    length=36.0,
    values=(0.5, 0.76),
    status="success",
    init_minutes=2,
):
    """The lines of a small log; one evaluation half way, one at the end."""
    start = init_minutes * MINUTE
    stop = start + minutes * MINUTE
    half = length / 2 if length is not None else None
    evaluations = [
        line("eval_accuracy", value, time, **({} if at is None else {field: at}))
        for value, time, at in zip(values, ((start + stop) / 2, stop), (half, length))
    ]
    return [
        line("submission_benchmark", benchmark),
        line("submission_division", division),
        line("submission_org", "a lab"),
        line("submission_platform", "8 x chip"),
        line("cache_clear", True),
        line("init_start", time_ms=0),
        line("global_batch_size", batch),
        line("train_samples", 1281167),
        line("seed", seed),
        line("opt_name", "lars"),
        line("init_stop", time_ms=start),
        line("run_start", time_ms=start),
        *evaluations,
        line("run_stop", None, stop, status=status),
    ]


def write(path, *logs):
    """Writes logs, given as lists of lines, as text or as bytes, and returns their folder."""
    path.mkdir(parents=True, exist_ok=True)
    for i, log in enumerate(logs):
        log = "\n".join(log) + "\n" if isinstance(log, list) else log
        log = log.encode() if isinstance(log, str) else log
        (path / f"result_{i}.txt").write_bytes(log)
    return path


def resnet_set(*minutes, **changes):
    return [lines(m, seed=i, **changes) for i, m in enumerate(minutes)]


def said(found):
    return "\n".join(str(finding) for finding in found.findings)


def eval_lines(name, ruleset, length):
    """Keyword arguments that make a log of a benchmark pass its target at `length`."""
    field = rules.resolve(name, ruleset).length_field
    target = rules.resolve(name, ruleset).targets
    if name == "stable_diffusion":
        return {"field": field, "length": length, "values": ()}
    if len(target) > 1:
        value = {t.name: t.at_least + 0.001 for t in target}
    elif target[0].at_most is not None:
        value = target[0].at_most - 0.001
    else:
        bound = target[0].at_least if target[0].at_least is not None else target[0].above
        value = bound + 0.001
    return {"field": field, "length": length, "values": (0.0, value)}


def log_of(name, ruleset, batch, length, seed, status="success"):
    log = lines(
        10 + seed,
        benchmark=rules.resolve(name, ruleset).log_name,
        batch=batch,
        seed=seed,
        status=status,
        **eval_lines(name, ruleset, length),
    )
    if name == "stable_diffusion":
        field = eval_lines(name, ruleset, length)["field"]
        stop = log.pop()
        for count, fid in ((length * 2, 50.0), (length, 80.0), (length / 2, 120.0)):
            log.append(line("eval_accuracy", fid, 5, metric="FID", **{field: count}))
            log.append(line("eval_accuracy", 0.2, 5, metric="CLIP", **{field: count}))
        log.append(stop)
    return log
