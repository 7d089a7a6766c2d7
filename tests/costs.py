"""What tests cost: core-seconds of processor time, in all threads and in the processes they began.

`pytest --measure FILE` adds up the cost of each part of the suite (selection.py says what a part is) and writes
it as JSON; `make durations` does so for all tests and keeps tests/durations.json, from which `make test`
plans. Processor time, as other work on the machine disturbs it little.
"""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import selection

from scripts import measuring

START = "start"  # of the processes that run tests: imports and collection


class Costs:
    """A plugin of pytest: in each process that runs tests it measures, in the first it adds up and writes."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.of_parts: collections.Counter[str] = collections.Counter()
        self.slow = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        begin = measuring.processor_seconds()
        try:
            return (yield)
        finally:
            cost = measuring.processor_seconds() - begin
            if item.get_closest_marker("slow"):  # which `make test` leaves out
                self.slow += cost
            else:
                self.of_parts[selection.part(item)] += cost

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        tested = sum(self.of_parts.values()) + self.slow
        self.of_parts[START] += max(0.0, measuring.processor_seconds() - tested) * (
            not self.is_above(session.config)
        )
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["costs"] = dict(self.of_parts)
        else:
            costs = {name: round(cost, 1) for name, cost in sorted(self.of_parts.items())}
            pathlib.Path(self.file).write_text(json.dumps(costs, indent=1) + "\n")

    @staticmethod
    def is_above(config: pytest.Config) -> bool:
        """Whether other processes run the tests; what they cost is known by them."""
        return bool(config.getoption("numprocesses", None))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.of_parts.update(getattr(node, "workeroutput", {}).get("costs", {}))
