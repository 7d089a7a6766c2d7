"""`--optimizer`: short names, functions in files, and what is written down about them."""

import json

import jax
import pytest
import toys

from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.optimizer_argument import (
    SHORT,
    TENSORWISE,
    load_optimizer,
)
from mlperf_jax.errors import UserError

HARD = (Target("accuracy", above=1.0),)


@pytest.mark.parametrize("name", SHORT)
def test_short_names_are_optimizers_that_see_one_layer(name):
    assembly = toys.prepared(toys.Layered(), optimizer=load_optimizer(f"{name}:1e-2"))
    assert assembly.traced.notes == ()
    by_layer = "PerLayerState" in str(jax.tree.structure(assembly.abstract["opt"]))
    assert by_layer is (name in TENSORWISE)


def test_muon_trains_the_toy(tmp_path):
    target = (Target("accuracy", at_least=0.6),)
    result = toys.run(
        toys.Toy(targets=target, sample_limit=32 * 80), tmp_path, optimizer="muon:3e-2"
    )
    assert result.reached
    config = json.loads((tmp_path / "run_0" / "config.json").read_text())
    assert config["options"]["optimizer"] == "muon:3e-2"


FILE = """
import dataclasses, optax

@dataclasses.dataclass
class Settings:
    rate: float = 0.05

def make(tree):
    assert tree["head/kernel"].kind == "head"
    return optax.masked(optax.sgd(Settings().rate), tree.heads)

ready = optax.adam(1e-2)
"""


def test_a_file_gives_a_function_of_the_tree_or_an_optimizer(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    short = dict(max_samples=320)
    for name in ("make", "ready"):
        result = toys.run(
            toys.Plain(targets=HARD), tmp_path / name, optimizer=f"{path}:{name}", **short
        )
        assert result.samples == 320
    path.write_text(FILE + "\n# a word\n")
    toys.run(toys.Plain(targets=HARD), tmp_path / "make", optimizer=f"{path}:make", **short)
    path.write_text(FILE.replace("0.05", "0.06"))
    with pytest.raises(UserError, match=r"optimizer was '.*' and is now"):
        toys.run(toys.Plain(targets=HARD), tmp_path / "make", optimizer=f"{path}:make", **short)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("adamw", "'adamw' needs a learning rate: write adamw:1e-3"),
        ("adamw:fast", "'adamw' needs a learning rate"),
        ("adamw:nan", "the learning rate nan of 'adamw' is none: give a positive number"),
        ("adamw:-1", "the learning rate -1 of 'adamw' is none"),
        ("adamw:1e39", "the learning rate 1e39 of 'adamw' is none"),
        ("adamw:1e-50", "the learning rate 1e-50 of 'adamw' is none"),
        ("adamv:1e-3", "no optimizer 'adamv': did you mean 'adam"),
        ("nowhere.py:make", "no file nowhere.py"),
        ("{path}", r"say what in .*mine.py is the optimizer: write .*mine.py:make"),
        ("{path}:mak", "mine.py has no 'mak': did you mean 'make'"),
        ("{broken}:make", "broken.py failed to load: ModuleNotFoundError: No module named 'nope'"),
    ],
)
def test_what_is_missing_is_named(text, sentence, tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "broken.py").write_text("import nope")
    text = text.format(path=tmp_path / "mine.py", broken=tmp_path / "broken.py")
    with pytest.raises(UserError, match=sentence):
        load_optimizer(text)
