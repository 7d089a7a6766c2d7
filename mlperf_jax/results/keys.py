"""What the keys of a log are called and which it needs, by benchmark and round.

A benchmark states its keys as the newest ruleset spells them; `data/keys.toml` says what older ones call
them, `data/closed*.toml` which ones a log needs. This file only applies the two.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.results import constraints, formulas, rules

# Keys, their value and their metadata, as `Log.event` takes them.
Line = tuple[str, Any, dict[str, Any]]

# Names of precisions in the official list, by ours.
_PRECISIONS = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class Disclosure:
    """How a run was laid out: the disclosure keys of v6.0 and later, and the machine's size in HPC.

    Attributes:
        linear, attention, communication: the lowest precision used there, as JAX names a type
            ("bfloat16") or as the official list does ("mxfp4").
        tensor, pipeline, context, expert: ways of parallelism; 1 where a dimension is not used.
        micro_batch_size: samples that one replica of the model takes at once.
        config_filename: names the configuration within the submission.
        nodes, accelerators_per_node: the machine's.
    """

    linear: str
    attention: str
    communication: str
    micro_batch_size: int
    config_filename: str
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    nodes: int = 1
    accelerators_per_node: int = 1

    def values(self) -> dict[str, Any]:
        """The official keys and their values."""
        return {
            "lowest_numerical_precision_in_linear": _precision(self.linear),
            "lowest_numerical_precision_in_attn": _precision(self.attention),
            "lowest_numerical_precision_in_comm": _precision(self.communication),
            "tensor_parallelism": self.tensor,
            "pipeline_parallelism": self.pipeline,
            "context_parallelism": self.context,
            "expert_parallelism": self.expert,
            "micro_batch_size": self.micro_batch_size,
            "config_filename": self.config_filename,
            "number_of_nodes": self.nodes,
            "accelerators_per_node": self.accelerators_per_node,
        }


def _precision(name: str) -> str:
    return _PRECISIONS.get(name, name)


def translate(
    benchmark: str,
    ruleset: str | None,
    logged: Mapping[str, Any],
    *,
    division: str = "closed",
    disclosure: Disclosure | None = None,
) -> list[Line]:
    """The configuration lines of a log, in the round's spelling and in the order the readers need.

    Example:
        >>> values = {"opt_lamb_epsilon": 1e-6, "global_batch_size": 256}
        >>> translate("bert", "1.0.0", values)
        [('global_batch_size', 256, {}), ('opt_epsilon', 1e-06, {})]

    Args:
        benchmark: its name.
        ruleset: the round; the benchmark's last one by default.
        logged: key -> value as the newest ruleset spells them, the common ones included.
        division: "closed" or "open"; only closed logs name tensors.
        disclosure: how the run is laid out; needed from ruleset 6.1.0 on and in HPC.

    Raises:
        UserError: there is no such benchmark or round, the disclosure is missing or cannot be logged, or
            names of tensors are needed and the official package, which has them, is not installed.
    """
    row, name = rules.at(benchmark, ruleset)
    values = spelled(benchmark, ruleset, logged)
    metadata: dict[str, dict[str, Any]] = {}
    for change in _changes("metadata", row, name):
        if change["key"] in values:
            of = metadata.setdefault(change["of"], {})
            of[change["name"]] = values.pop(change["key"])
    values |= _disclosed(row, name, disclosure)
    first = [key for key in rules.data("keys.toml")["first"] if key in values]
    lines = [(key, values[key], metadata.get(key, {})) for key in dict.fromkeys([*first, *values])]
    tensors = initialized_tensors(benchmark, ruleset) if division == "closed" else ()
    return lines + [("weights_initialization", None, {"tensor": tensor}) for tensor in tensors]


def spelled(benchmark: str, ruleset: str | None, logged: Mapping[str, Any]) -> dict[str, Any]:
    """The same values under the keys of a round."""
    row, name = rules.at(benchmark, ruleset)
    values = dict(logged)
    for change in _changes("copy", row, name):
        if change["from"] in values:
            values.setdefault(change["to"], values[change["from"]])
    for change in _changes("rename", row, name):
        if change["from"] in values:
            values = {change["to"] if k == change["from"] else k: v for k, v in values.items()}
    for change in _changes("set", row, name):
        if change["key"] in values:
            values[change["key"]] = change["value"]
    for key in rules.data("common.toml")[row.suite]["keys"]:
        if not in_log(key, benchmark, ruleset):
            values.pop(key, None)
    return values


def in_log(key: str, benchmark: str, ruleset: str | None = None) -> bool:
    """Whether a key of every benchmark is one of that round's log; not all are of every round."""
    row, name = rules.at(benchmark, ruleset)
    given = rules.data("common.toml")[row.suite]["keys"].get(key, [])
    return bool(of_round(given, name, row.suite))


def quality_keys(benchmark: str, ruleset: str | None, division: str) -> tuple[str, ...]:
    """The keys under which each evaluation logs its quality."""
    row, name = rules.at(benchmark, ruleset)
    own = [change["key"] for change in _changes("quality", row, name)] or ["eval_accuracy"]
    if division == "open":
        own += [change["key"] for change in _changes("open", row, name)]
    return tuple(own)


def position(
    benchmark: str,
    ruleset: str | None,
    *,
    epochs: float,
    samples: int,
    steps: int,
    logged: Mapping[str, Any],
) -> dict[str, Any]:
    """The metadata of an evaluation line, which says where in training it stands.

    Example:
        >>> position("gpt3", None, epochs=0.1, samples=24576, steps=16, logged={"max_sequence_length": 2048})
        {'epoch_num': 50331648, 'samples_count': 24576}

    Args:
        benchmark: its name.
        ruleset: the round; the benchmark's last one by default.
        epochs: done so far.
        samples: trained so far.
        steps: batches trained so far.
        logged: key -> value of the benchmark's lines.
    """
    row, name = rules.at(benchmark, ruleset)
    names = {**logged, "epochs": epochs, "samples": samples, "steps": steps}
    epoch_num = epochs
    for change in _changes("epoch_num", row, name):
        epoch_num = formulas.calculate(change["is"], names)
    found = {"epoch_num": epoch_num, "samples_count": samples}
    if next(_changes("step_num", row, name), None):
        found["step_num"] = steps
    return found


def required(
    benchmark: str, ruleset: str | None = None, *, log_values: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """The keys a closed log must have, common ones first, in the round's spelling.

    Not among them: block_start or epoch_start, and block_stop or epoch_stop, one of each pair being
    enough.

    Args:
        benchmark: its name.
        ruleset: the round; the benchmark's last one by default.
        log_values: values already known, which decide about keys such as an optimizer's own.
    """
    _, name = rules.at(benchmark, ruleset)
    return tuple(
        key
        for key, given in keys(benchmark, name, log_values or {}).items()
        if not any(constraint.get("optional") for constraint in given)
    )


def keys(
    benchmark: str, ruleset: str | None, values: Mapping[str, Any], *, common: bool = True
) -> dict[str, list[constraints.Constraint]]:
    """The keys of a round's closed log and the constraints of each.

    Args:
        benchmark: its name.
        ruleset: the round; the benchmark's last one by default.
        values: what is logged, in the round's spelling: some keys depend on others.
        common: with the keys of every benchmark.
    """
    row, name = rules.at(benchmark, ruleset)
    rule = closed_rule(benchmark, name) or {}
    given: dict[str, Any] = {}
    if common:
        given |= rules.data("common.toml")[row.suite]["keys"]
        given = {key: v for key, v in given.items() if key not in rule.get("not_required", ())}
    given |= rule.get("keys", {})
    for key, cases in rule.get("when", {}).items():
        given |= cases.get(str(values.get(key)), {})
    found = {key: of_round(value, name, row.suite) for key, value in given.items()}
    return {key: value for key, value in found.items() if value}


def closed_rule(benchmark: str, ruleset: str | None = None) -> dict[str, Any] | None:
    """What is written of a benchmark in the data of the closed division; None for other rounds."""
    row = rules.entry(benchmark)
    rule = rules.data(_closed_file(row.suite)).get(benchmark)
    if rule is None or row.round(ruleset) not in rules.span(rule["rounds"], row.suite):
        return None
    return rule


def of_round(given: Any, name: str, suite: str) -> list[constraints.Constraint]:
    """The constraints of a key that are of this round."""
    listed: Sequence[constraints.Constraint] = given if isinstance(given, list) else [given]
    return [c for c in listed if "rounds" not in c or name in rules.span(c["rounds"], suite)]


def initialized_tensors(benchmark: str, ruleset: str | None = None) -> tuple[str, ...]:
    """The tensors that logs of some rounds name one by one, as the reference called them.

    They are read from the installed checker's own rule file.

    Raises:
        UserError: there are such, and the official package is not installed or lacks them.
    """
    row, name = rules.at(benchmark, ruleset)
    if "weights_initialization" not in keys(benchmark, name, {}, common=False):
        return ()
    folder = rules.official_package() / "compliance_checker" / f"{row.suite}_{name}.0"
    file = folder / f"closed_{row.log_name(name)}.yaml"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    listed = re.search(r"initialized_tensors'\]\) == sorted\(\[(.*?)\]\)", text, re.DOTALL)
    if listed is None:
        raise UserError(
            f"the installed mlperf-logging does not say which tensors a log of {benchmark} v{name} names; "
            "install another version."
        )
    return tuple(re.findall(r"""["']([^"']+)["']""", listed[1]))


def _closed_file(suite: str) -> str:
    return "closed.toml" if suite == "training" else f"closed_{suite}.toml"


def _changes(kind: str, row: rules.Entry, name: str) -> Iterator[dict[str, Any]]:
    """The changes of a kind that apply to a benchmark in a round."""
    changes = rules.data("keys.toml").get(kind, [])
    for change in (change for change in changes if change["benchmark"] == row.name):
        if name in rules.span(change.get("rounds", row.rounds), row.suite):
            yield change


def _disclosed(row: rules.Entry, name: str, disclosure: Disclosure | None) -> dict[str, Any]:
    """The disclosure lines of a round, those it has no rule for left out."""
    of_suite = rules.data("common.toml")[row.suite]["keys"]
    fields = dict.fromkeys(Disclosure("", "", "", 1, "").values())
    wanted = {key: of_round(of_suite[key], name, row.suite) for key in fields if key in of_suite}
    wanted = {key: given for key, given in wanted.items() if given}
    if disclosure is None:
        needed = [key for key, given in wanted.items() if not any(c.get("optional") for c in given)]
        if needed:
            raise UserError(
                f"a log of {row.name} v{name} discloses {', '.join(needed)}; say how the run is laid out."
            )
        return {}
    values = disclosure.values()
    for key, given in wanted.items():
        for _, allowed in constraints.broken(values[key], given, {}):
            raise UserError(f"{key} is {values[key]!r}; a log of v{name} allows only {allowed}.")
    return {key: values[key] for key in wanted}
