"""Made-up sets of runs on disk, as real folders: for the report's tests and its screenshots.

The numbers are invented (an exponential towards a plateau, seeds that differ, times that scale a
little worse than ideally); the files have the real formats. Nothing here is a measurement.
"""

import json
import math
import pathlib
import random
from typing import Any

# benchmark -> round, runs, batch per size, samples to converge, evaluations, (start, target, plateau)
KINDS: dict[str, dict[str, Any]] = {
    "resnet": {
        "round": "4.0", "runs": 5, "epoch": 1_281_167, "evals": 10, "key": "epoch_num",
        "span": (0.28, 0.759, 0.766), "settings": {"opt_name": "lars", "lars_epsilon": 0,
        "lars_opt_base_learning_rate": 10.5, "lars_opt_weight_decay": 5e-5, "model_bn_span": 204,
        "lars_opt_learning_rate_warmup_epochs": 2, "train_samples": 1281167, "eval_samples": 50000},
    },
    "bert": {
        "round": "5.0", "runs": 10, "evals": 18, "key": "epoch_num", "span": (0.34, 0.72, 0.735),
        "settings": {"opt_base_learning_rate": 0.0019, "opt_lamb_epsilon": 1e-11, "opt_lamb_beta_1": 0.61,
        "opt_lamb_beta_2": 0.78, "opt_learning_rate_training_steps": 1141, "train_samples": 156725653,
        "eval_samples": 10000},
    },
    "llama31_8b": {
        "round": "5.1", "runs": 10, "evals": 24, "key": "samples_count", "span": (6.9, 3.3, 3.22),
        "settings": {"opt_name": "adamw", "opt_base_learning_rate": 0.0008, "max_sequence_length": 8192,
        "opt_adamw_beta_1": 0.9, "opt_adamw_beta_2": 0.95, "train_samples": 1574207408,
        "eval_samples": 1024},
    },
}  # fmt: skip
VERSIONS = {
    "python": "3.12.8",
    "jax": "0.12.0",
    "flax": "0.12.8",
    "optax": "0.2.8",
    "numpy": "2.4.6",
}
EPOCH_MS = 1_790_000_000_000


def write_run(
    folder: pathlib.Path,
    index: int,
    *,
    benchmark: str,
    seed: int,
    batch: int,
    length: float,
    minutes: float,
    header: dict[str, Any],
    settings: dict[str, Any] | None = None,
    evaluations: int | None = None,
    status: str = "success",
    both: bool = False,
) -> None:
    """One `result_<index>.txt`; with `both`, evaluations count samples beside epochs, as ours do."""
    kind, rng = KINDS[benchmark], random.Random(seed)
    evaluations = evaluations or kind["evals"]
    lines: list[dict] = []

    def add(seconds: float, event: str, key: str, value: Any = None, **metadata: Any) -> None:
        metadata |= {"file": "train.py", "lineno": 10 + len(lines)}
        time_ms = EPOCH_MS + round(seconds * 1000)
        lines.append(
            {"namespace": "", "time_ms": time_ms, "event_type": event, "key": key, "value": value, "metadata": metadata}
        )  # fmt: skip

    point, begin, end = "POINT_IN_TIME", "INTERVAL_START", "INTERVAL_END"
    for key, value in {
        "submission_benchmark": benchmark,
        **header,
        "cache_clear": True,
        "seed": seed,
    }.items():
        add(0, point, key, value)
    add(0, begin, "init_start")
    logged = {"global_batch_size": batch, "gradient_accumulation_steps": 1} | kind["settings"]
    for key, value in (logged | (settings or {})).items():
        add(1, point, key, value)
    init = 140 + 60 * rng.random()
    add(init, end, "init_stop")
    start, target, plateau = kind["span"]
    add(init + 1, begin, "run_start")
    rate = 4.2 / evaluations
    reach = (target - plateau) / (start - plateau)  # what is left of the way when the target is met
    for n in range(1, evaluations + 1):
        part = n / evaluations
        position = {kind["key"]: _count(kind, length * part)}
        position |= {"samples_count": round(length * part)} if both else {}
        left = reach**part if part == 1 else reach**part * (1 + 0.16 * rng.gauss(0, 1) * rate)
        value = plateau + (start - plateau) * left
        if status != "success":
            value = start + (target - start) * 0.93 * (1 - math.exp(-3 * part))
        elif n == evaluations:
            value = target + (plateau - target) * 0.1 * rng.random()
        at = init + 1 + 60 * minutes * part
        add(at - 1, end, "block_stop", None, first_epoch_num=1, **position)
        add(at, point, "eval_accuracy", value, **position)
    add(init + 1 + 60 * minutes, end, "run_stop", None, status=status)
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(f":::MLLOG {json.dumps(line)}\n" for line in lines)
    (folder / f"result_{index}.txt").write_text(text)


def _count(kind: dict, length: float) -> float:
    return round(length / kind["epoch"]) if "epoch" in kind else round(length)


def write_set(
    folder: pathlib.Path,
    benchmark: str,
    *,
    chips: int,
    batch: int,
    length: float,
    minutes: float,
    platform: str,
    seed: int,
    division: str = "closed",
    org: str = "Example Lab",
    runs: int | None = None,
    spread: float = 0.02,
    settings: dict[str, Any] | None = None,
    evaluations: int | None = None,
    failing: tuple[int, ...] = (),
    both: bool = False,
) -> pathlib.Path:
    """All logs of a set, their lengths and times a little different from seed to seed."""
    rng = random.Random(seed)
    header = {
        "submission_division": division,
        "submission_org": org,
        "submission_platform": platform,
        "submission_status": "research",
    }
    for index in range(KINDS[benchmark]["runs"] if runs is None else runs):
        factor = 1 + spread * rng.gauss(0, 1)
        write_run(
            folder,
            index,
            benchmark=benchmark,
            seed=rng.randrange(2**31),
            batch=batch,
            length=length * factor,
            minutes=minutes * factor * (1 + 0.006 * rng.gauss(0, 1)),
            header=header,
            settings=settings,
            evaluations=evaluations,
            status="aborted" if index in failing else "success",
            both=both,
        )
    return folder


def add_folders(
    folder: pathlib.Path,
    *,
    tiny: bool,
    chips: int,
    device: str,
    mfu: float | None,
    config: dict,
    optimizer: str = "",
) -> None:
    """`run_<i>` beside each log, as our runs leave them."""
    for log in sorted(folder.glob("result_*.txt")):
        index = int(log.stem.split("_")[1])
        events = [json.loads(line[len(":::MLLOG ") :]) for line in log.read_text().splitlines()]
        values = {event["key"]: event for event in events}
        seconds = (values["run_stop"]["time_ms"] - values["run_start"]["time_ms"]) / 1000
        metadata = values["eval_accuracy"]["metadata"]
        samples = metadata.get("samples_count") or metadata["epoch_num"] * 1_281_167
        run = folder / f"run_{index}"
        run.mkdir()
        result = {
            "benchmark": values["submission_benchmark"]["value"],
            "tiny": tiny,
            "reached": values["run_stop"]["metadata"]["status"] == "success",
            "quality": {"accuracy": values["eval_accuracy"]["value"]},
            "samples": samples,
            "seconds": seconds,
            "examples_per_second": samples / seconds * 1.06,
            "mfu": None if mfu is None else mfu * (1 + 0.01 * (index % 3)),
            "seed": values["seed"]["value"],
            "resumed": int(index == 2),
            "versions": VERSIONS,
            "device": device,
            "mesh": {"data": chips},
            "status": values["run_stop"]["metadata"]["status"],
            "division": values["submission_division"]["value"],
            "ruleset": "4.0.0",
            "device_count": chips,
            "optimizer": optimizer,
        }
        (run / "result.json").write_text(json.dumps(result))
        (run / "config.json").write_text(json.dumps({"config_hash": "0" * 8, "config": config}))
        losses = [
            {"step": n, "samples": samples * n / 60, "loss": 2.3 * math.exp(-n / 18) + 0.4}
            for n in range(1, 61)
        ]
        (run / "scalars.jsonl").write_text("".join(json.dumps(line) + "\n" for line in losses))


def write_system(org: pathlib.Path, name: str, *, nodes: int, per_node: int, model: str) -> None:
    """`<org>/systems/<name>.json`."""
    (org / "systems").mkdir(parents=True, exist_ok=True)
    document = {
        "submitter": org.name, "division": "closed", "status": "Available on-premise",
        "system_name": name, "number_of_nodes": str(nodes), "accelerators_per_node": str(per_node),
        "accelerator_model_name": model, "framework": "JAX 0.12", "operating_system": "Debian 12",
        "host_processor_model_name": "Example 9654", "cooling": "",
    }  # fmt: skip
    (org / "systems" / f"{name}.json").write_text(json.dumps(document, indent=2))


def _resnets(root: pathlib.Path) -> list[pathlib.Path]:
    config = {"benchmark": "resnet", "size": "full", "batch_size": 3264, "base_lr": 10.5}
    found = []
    for chips, batch, epochs, minutes in (
        (8, 3264, 35, 41.2),
        (64, 4096, 36.4, 6.02),
        (256, 32768, 56.6, 2.44),
    ):
        out = root / "runs" / f"resnet-v5e-{chips}"
        platform = f"{chips}xTPU v5 lite"
        write_set(out, "resnet", chips=chips, batch=batch, length=epochs * 1_281_167, minutes=minutes,
                  platform=platform, seed=chips)  # fmt: skip
        add_folders(out, tiny=False, chips=chips, device="TPU v5 lite", mfu=0.43 - chips / 2500,
                    config=config | {"batch_size": batch})  # fmt: skip
        found.append(out)
    out = root / "runs" / "resnet-muon-v5e-8"
    settings = {"opt_name": "muon", "muon_learning_rate": 0.02, "lars_epsilon": None}
    write_set(out, "resnet", chips=8, batch=3264, length=29 * 1_281_167, minutes=36.9, seed=5,
              platform="8xTPU v5 lite", division="open", settings=settings, both=True)  # fmt: skip
    add_folders(out, tiny=False, chips=8, device="TPU v5 lite", mfu=0.41,
                config=config | {"optimizer": "optax.contrib.muon(0.02)", "opt_name": "lars"},
                optimizer="muon")  # fmt: skip
    tiny = root / "runs" / "resnet-tiny-e7884d90"
    write_set(tiny, "resnet", chips=1, batch=64, length=12 * 1_281_167, minutes=0.4, platform="1xcpu", seed=6,
              division="open", org="none", spread=0.1, settings={"train_samples": 1437, "eval_samples": 360}, both=True)  # fmt: skip
    add_folders(tiny, tiny=True, chips=1, device="cpu", mfu=None,
                config={"benchmark": "resnet", "size": "tiny", "batch_size": 64, "width": 16,
                        "targets": [{"name": "accuracy", "at_least": 0.75}]})  # fmt: skip
    return [*found, out, tiny]


def _submission(root: pathlib.Path) -> pathlib.Path:
    org = root / "training_results_v5.0" / "ExampleOrg"
    for name, nodes, model, minutes, batch, length in (
        ("h200_n1_jax", 1, "NVIDIA H200-SXM-141GB", 5.2, 448, 2.43e6),
        ("h200_n8_jax", 8, "NVIDIA H200-SXM-141GB", 0.86, 3072, 2.79e6),
        ("b200_n64_jax", 64, "NVIDIA B200-SXM-180GB", 0.16, 6144, 3.35e6),
    ):
        write_system(org, name, nodes=nodes, per_node=8, model=model)
        write_set(org / "results" / name / "bert", "bert", chips=8 * nodes, batch=batch, length=length,
                  minutes=minutes, platform=name, seed=nodes, org="ExampleOrg", spread=0.035)  # fmt: skip
    return org.parent


def _llamas(root: pathlib.Path) -> pathlib.Path:
    top = root / "training_results_v5.1"
    for org, name, nodes, model, minutes, batch, length in (
        ("ExampleOrg", "h200_n1_jax", 1, "NVIDIA H200-SXM-141GB", 122.0, 32, 178_000),
        ("ExampleOrg", "b200_n1_jax", 1, "NVIDIA B200-SXM-180GB", 79.5, 32, 179_500),
        ("ExampleOrg", "b200_n8_jax", 8, "NVIDIA B200-SXM-180GB", 13.4, 64, 231_000),
        ("Another Lab", "trillium_256", 64, "TPU v6e", 11.9, 128, 338_000),
        ("ExampleOrg", "b200_n64_jax", 64, "NVIDIA B200-SXM-180GB", 5.1, 128, 347_000),
    ):
        per_node = 4 if "v6e" in model else 8
        write_system(top / org, name, nodes=nodes, per_node=per_node, model=model)
        write_set(top / org / "results" / name / "llama31_8b", "llama31_8b", chips=per_node * nodes,
                  batch=batch, length=length, minutes=minutes, platform=name, seed=nodes, org=org,
                  spread=0.03)  # fmt: skip
    return top


def write_demo(root: pathlib.Path) -> list[pathlib.Path]:
    """Fifteen sets of every kind: several systems, divisions and sizes, and some that went wrong.

    Returns:
        The folders to report on.
    """
    _resnets(root)
    _submission(root)
    _llamas(root)
    broken = write_set(root / "runs" / "bert-broken", "bert", chips=8, batch=448, length=2.4e6, minutes=5.4,
                       platform="8xNVIDIA H200", seed=31)  # fmt: skip
    log = broken / "result_4.txt"
    text = log.read_text()
    log.write_text(text[: len(text) * 2 // 3])  # killed in the middle of a line
    (broken / "result_7.txt").write_text("srun: error: node 3 went away\n")
    write_set(root / "runs" / "llama-half", "llama31_8b", chips=8, batch=32, length=180_000, minutes=126,
              platform="8xNVIDIA H200", seed=32, runs=4, org="Example Lab")  # fmt: skip
    write_set(root / "runs" / "llama-open-diverges", "llama31_8b", chips=64, batch=64, length=250_000,
              minutes=14.8, platform="64xNVIDIA H200", seed=33, division="open", failing=(1, 6),
              settings={"opt_name": "muon"})  # fmt: skip
    return [root / "runs", root / "training_results_v5.0", root / "training_results_v5.1"]


def write_large(
    root: pathlib.Path, *, runs: int = 200, evaluations: int = 500
) -> list[pathlib.Path]:
    """Twenty sets with `runs` runs in all: the load that the page is measured with."""
    for n in range(20):
        name = ("llama31_8b", "bert", "resnet")[n % 3]
        length = {"llama31_8b": 2e5, "bert": 2.6e6, "resnet": 36 * 1_281_167}[name]
        chips = 8 * 2 ** (n // 3)
        write_set(root / f"set_{n}", name, chips=chips, batch=64, length=length, minutes=400 / chips,
                  platform=f"{chips}xTPU v5 lite", seed=n, runs=runs // 20, evaluations=evaluations)  # fmt: skip
    return [root]
