"""The commands that ask before anything is rented: plan and doctor."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from mlperf_jax.cli import named, options
from mlperf_jax.cli.options import Option
from mlperf_jax.core.fields import Rate

DEVICES = "devices such as v5p:8x8x16, 2xv6e:16x16 or h100:8x4"
JSON = Option("json", bool, help="as JSON")
LINKS = Option("links", bool, help="ask every address that data are fetched from instead")
PLAN_OPTIONS = [
    Option("on", help=DEVICES, metavar="DEVICES", required=True),
    Option("mesh", help="as run takes it; by default one that suits", metavar="AXIS=N,..."),
    Option("optimizer", help="another optimizer, as run takes it", metavar="FILE.py:MAKE"),
    Option("price_per_chip_hour", Rate, help="of one chip, in any currency"),
    Option(
        "search", bool, help="compile other meshes, remat policies and micro-batches; rank them"
    ),
    JSON,
]


def plan(about: str, words: Sequence[str]) -> int:
    """Prints the plan; exit code 1 when it does not fit or the compiler failed."""
    given = named.parse("plan", about, words, PLAN_OPTIONS)
    from mlperf_jax import planning

    as_json = given.pop("json", False)
    made = planning.plan(given.pop("name"), **given)
    print(made.to_json() if as_json else made)
    return 0 if made.fits else 1


def doctor(about: str, words: Sequence[str]) -> int:
    """Prints the diagnosis, or how the data's addresses answer; exit code 1 when something needs mending."""
    given = options.parse("doctor", about, words, [], [LINKS, JSON])
    if given.get("links"):
        return _links(bool(given.get("json")))
    from mlperf_jax import planning

    found = planning.doctor()
    print(found.to_json() if given.get("json") else found)
    return 0 if found.healthy else 1


def _links(as_json: bool) -> int:
    from mlperf_jax.input_pipelines.downloads import links, manifest

    found = []
    for link in links.test(links.stated([manifest.load(name) for name in manifest.names()])):
        found.append(link)
        if not as_json:
            print(link, flush=True)
    bad = sum(not link.good for link in found)
    if as_json:
        print(json.dumps({"links": [dataclasses.asdict(link) for link in found]}, indent=2))
    else:
        print(f"{len(found) - bad} of {len(found)} addresses answer")
    return 1 if bad else 0
