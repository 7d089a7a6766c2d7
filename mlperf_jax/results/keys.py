"""What a run logs, spelled as the round's logs spell it: configuration, disclosure, positions.

A benchmark states its keys as the newest ruleset spells them. Its `Round` (rules.py) says what older ones
call them and which ones a log needs; this file only applies it.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.results import constraints, formulas, rules
from mlperf_jax.results.rules import Round

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
    official: Round,
    logged: Mapping[str, Any],
    *,
    division: str = "closed",
    disclosure: Disclosure | None = None,
) -> list[Line]:
    """The configuration lines of a log, in the round's spelling and in the order the readers need.

    Example:
        >>> values = {"opt_lamb_epsilon": 1e-6, "global_batch_size": 256}
        >>> translate(rules.resolve("bert", "1.0.0"), values)
        [('global_batch_size', 256, {}), ('opt_epsilon', 1e-06, {})]

    Args:
        official: the benchmark's rules.
        logged: key -> value as the newest ruleset spells them, the common ones included.
        division: "closed" or "open"; only closed logs name tensors.
        disclosure: how the run is laid out; needed from ruleset 6.1.0 on and in HPC.

    Raises:
        UserError: the disclosure is missing or cannot be logged, or names of tensors are needed and the
            official package, which has them, is not installed.
    """
    values = spelled(official, logged)
    metadata: dict[str, dict[str, Any]] = {}
    for key, where in official.spelling.metadata.items():
        if key in values:
            metadata.setdefault(where["line"], {})[where["name"]] = values.pop(key)
    values |= _disclosed(official, disclosure)
    values.pop(official.spelling.trained, None)  # known when the run ends
    first = [key for key in official.spelling.first if key in values]
    lines = [(key, values[key], metadata.get(key, {})) for key in dict.fromkeys([*first, *values])]
    tensors = initialized_tensors(official) if division == "closed" else ()
    return lines + [("weights_initialization", None, {"tensor": tensor}) for tensor in tensors]


def spelled(official: Round, logged: Mapping[str, Any]) -> dict[str, Any]:
    """The same values under the round's keys, without common ones that its logs lack."""
    spelling, values = official.spelling, dict(logged)
    for key, other in spelling.repeated.items():
        if key in values:
            values.setdefault(other, values[key])
    values = {spelling.renamed.get(key, key): value for key, value in values.items()}
    values |= {key: value for key, value in spelling.fixed.items() if key in values}
    return {key: value for key, value in values.items() if official.common.get(key) != ()}


def quality_keys(official: Round, division: str) -> tuple[str, ...]:
    """The keys under which each evaluation logs its quality."""
    spelling = official.spelling
    return (*spelling.quality, *(spelling.open_quality if division == "open" else ()))


def trained(official: Round, samples: int) -> dict[str, int]:
    """The lines of a run's end that say how many samples it trained."""
    return {official.spelling.trained: samples} if official.spelling.trained else {}


def position(
    official: Round, *, epochs: float, samples: int, steps: int, logged: Mapping[str, Any]
) -> dict[str, Any]:
    """The metadata of an evaluation line, which says where in training it stands.

    Example:
        >>> done = dict(epochs=0.1, samples=24576, steps=16)
        >>> position(rules.resolve("gpt3"), **done, logged={"max_sequence_length": 2048})
        {'epoch_num': 50331648, 'samples_count': 24576}

    Args:
        official: the benchmark's rules.
        epochs: done so far.
        samples: trained so far.
        steps: batches trained so far.
        logged: key -> value of the benchmark's lines.
    """
    names = {**logged, "epochs": epochs, "samples": samples, "steps": steps}
    epoch_num = formulas.calculate(official.spelling.epoch_num, names)
    found = {"epoch_num": epoch_num, "samples_count": samples}
    return found | ({"step_num": steps} if official.spelling.step_num else {})


def required(official: Round, logged: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The keys a closed log must have, common ones first, in the round's spelling.

    Not among them: block_start or epoch_start, and block_stop or epoch_stop, one of each pair being
    enough.

    Args:
        official: the benchmark's rules.
        logged: values already known, which decide about keys such as an optimizer's own.
    """
    lines = official.allowed(logged or {})
    return tuple(key for key, given in lines.items() if not _optional(given))


def initialized_tensors(official: Round) -> tuple[str, ...]:
    """The tensors that logs of some rounds name one by one, as the reference called them.

    They are read from the installed checker's own rule file.

    Raises:
        UserError: there are such, and the official package is not installed or lacks them.
    """
    if "weights_initialization" not in official.allowed({}):
        return ()
    folder = (
        rules.official_package() / "compliance_checker" / f"{official.suite}_{official.ruleset}"
    )
    file = folder / f"closed_{official.log_name}.yaml"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    listed = re.search(r"initialized_tensors'\]\) == sorted\(\[(.*?)\]\)", text, re.DOTALL)
    if listed is None:
        raise UserError(
            f"the installed mlperf-logging does not say which tensors a log of {official.benchmark} "
            f"v{official.round} names; install another version"
        )
    return tuple(re.findall(r"""["']([^"']+)["']""", listed[1]))


def _optional(given: tuple[constraints.Constraint, ...]) -> bool:
    return any(constraint.get("optional") for constraint in given)


def _disclosed(official: Round, disclosure: Disclosure | None) -> dict[str, Any]:
    """The disclosure lines of a round, those it has no rule for left out."""
    fields = Disclosure("", "", "", 1, "").values()
    wanted = {key: given for key, given in official.common.items() if given and key in fields}
    if disclosure is None:
        needed = [key for key, given in wanted.items() if not _optional(given)]
        if needed:
            raise UserError(
                f"a log of {official.benchmark} v{official.round} discloses {', '.join(needed)}; say how "
                "the run is laid out"
            )
        return {}
    values = disclosure.values()
    for key, given in wanted.items():
        for _, allowed in constraints.broken(values[key], given, {}):
            raise UserError(
                f"{key} is {values[key]!r}; a log of v{official.round} allows only {allowed}"
            )
    return {key: values[key] for key in wanted}
