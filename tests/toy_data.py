"""The data set of the toys in `toys.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class InMemory:
    """The data set of a toy: what its methods of such names give, whatever the folder."""

    toy: Any

    def train(self, folder):
        return self.toy.train_data(folder)

    def validation(self, folder):
        return self.toy.eval_data(folder)

    def counts(self, folder):
        return self.toy.counts(folder)

    def build(self, folder, source=None):
        """There is nothing to build."""

    def check(self, folder):
        return []
