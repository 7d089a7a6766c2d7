"""The commands that ask before anything is rented: plan and doctor."""

from __future__ import annotations

from collections.abc import Sequence

from mlperf_jax.cli import options
from mlperf_jax.cli.options import Option
from mlperf_jax.errors import UserError

PLAN_OPTIONS = [
    Option("on", help="the devices: v5p:8x8x16, 2xv6e:16x16, h100:8x4 …", metavar="DEVICES"),
    Option("mesh", help="as run takes it; by default one that suits", metavar="AXIS=N,..."),
    Option("optimizer", help="another optimizer, as run takes it", metavar="FILE.py:MAKE"),
    Option("price_per_chip_hour", float, help="of one chip, in any currency"),
    Option(
        "search", bool, help="compile other meshes, remat policies and micro-batches; rank them"
    ),
    Option("json", bool, help="as JSON"),
]

ABOUT = {
    "plan": "say whether a benchmark fits devices that are not here, how long it takes, what it costs",
    "doctor": "say what is installed, what is missing, and what mends it",
}


def plan_command(words: Sequence[str]) -> int:
    """Prints the plan; exit code 1 when it does not fit or the compiler failed."""
    given = options.parse_benchmark("plan", ABOUT["plan"], words, PLAN_OPTIONS)
    if "on" not in given:
        raise UserError(f"plan needs --on DEVICES, such as: plan {given['name']} --on v5p:4x4x4")
    from mlperf_jax.planning import plan

    as_json = given.pop("json", False)
    made = plan(given.pop("name"), **given)
    print(made.to_json() if as_json else made)
    return 0 if made.fits else 1


def doctor_command(words: Sequence[str]) -> int:
    """Prints the diagnosis; exit code 1 when something needs mending."""
    own = [Option("json", bool, help="as JSON")]
    about = f"{ABOUT['doctor'][0].upper()}{ABOUT['doctor'][1:]}."
    given = options.parse("mlperf-jax doctor", about, words, [], {"doctor": own})
    from mlperf_jax.planning import doctor

    found = doctor()
    print(found.to_json() if given.get("json") else found)
    return 0 if found.healthy else 1
