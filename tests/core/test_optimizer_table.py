"""docs/optimizers.md says of every optimizer that is public in optax and here what a run says of it."""

import pathlib
import re
import sys

import optax
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import optimizer_table  # noqa: E402

PAGE = (ROOT / "docs" / "optimizers.md").read_text()
ROWS = dict(re.findall(r"^(\| ([^|]+) \| `.*)$", PAGE, re.MULTILINE))
WRITTEN = {name: row for row, name in ROWS.items()}


@pytest.mark.skipif(
    f"optax {optax.__version__} " not in PAGE, reason="the page is of another optax"
)
def test_the_page_says_what_preflight_says():
    made = {name: optimizer_table.row(name, maker) for name, maker in optimizer_table.names()}
    assert made == WRITTEN


def test_the_page_tells_of_all_three_verdicts():
    verdicts = [row.removesuffix(" |").rpartition(" | ")[2] for row in ROWS]
    kinds = {verdict.partition(":")[0] for verdict in verdicts}
    assert kinds == {"works", "works, said", "refused"}
