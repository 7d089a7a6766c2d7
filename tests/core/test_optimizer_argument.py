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
    again = dict(optimizer=f"{path}:make", seed=2, **short)
    toys.run(toys.Plain(targets=HARD), tmp_path / "make", **again)
    path.write_text(FILE.replace("0.05", "0.06"))
    with pytest.raises(UserError, match=r"optimizer was '.*' and is now"):
        toys.run(toys.Plain(targets=HARD), tmp_path / "make", **again | {"seed": 3})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("adamw", "'adamw' needs a learning rate: write adamw:1e-3"),
        ("adamw:fast", "'adamw' needs a learning rate"),
        ("sgd:0.5+sam=0.05", "write --optimizer sgd:0.5 --levers sam=0.05"),
        ("adamw:nan", "the learning rate nan of 'adamw' is none: give a positive number"),
        ("adamw:-1", "the learning rate -1 of 'adamw' is none"),
        ("adamw:1e39", "the learning rate 1e39 of 'adamw' is none"),
        ("adamw:1e-50", "the learning rate 1e-50 of 'adamw' is none"),
        ("adamv:1e-3", "no optimizer 'adamv': did you mean 'adam"),
        (
            "adamw:1e-3,b1",
            "'b1' is no setting of the optimizer 'adamw': write adamw:1e-3,NAME=VALUE",
        ),
        ("adamw:1e-3,b1=", "'b1=' is no setting"),
        ("adamw:1e-3,b1=0.9,b1=0.8", "b1 is given twice"),
        ("adamw:1e-3,b1=high", "b1=high of the optimizer is neither a number nor true or false"),
        ("adamw:1e-3,b1=nan", "b1=nan of the optimizer is neither"),
        ("adamw:1e-3,bb1=0.9", "adamw:1e-3 takes no 'bb1': did you mean 'b1'"),
        ("adamw:1e-3,learning_rate=0.9", "adamw:1e-3 takes no 'learning_rate'"),
        ("{path}:make,learning_rat=1", "takes no 'learning_rat'"),
        ("{path}:ready,rate=1", "mine.py:ready is no function, so it takes no rate"),
        ("nowhere.py:make", "no file nowhere.py"),
        ("{path}", r"say what in .*mine.py is the optimizer: write .*mine.py:make"),
        ("{path}:mak", "mine.py has no 'mak': did you mean 'make'"),
        ("{broken}:make", "broken.py failed to load: ModuleNotFoundError: No module named 'nope'"),
    ],
)
def test_what_is_missing_is_named(text, sentence, tmp_path):
    (tmp_path / "mine.py").write_text(f"{FILE}\nready = optax.sgd(1.0)\n")
    (tmp_path / "broken.py").write_text("import nope")
    text = text.format(path=tmp_path / "mine.py", broken=tmp_path / "broken.py")
    with pytest.raises(UserError, match=sentence):
        load_optimizer(text)


def test_settings_behind_the_learning_rate_reach_the_optimizer(tmp_path):
    gradients = {"w": jax.numpy.ones(3)}
    tree = toys.prepared(toys.Plain()).tree
    (tmp_path / "mine.py").write_text(
        "import optax\ndef make(tree, rate=1.0, turned=True): return optax.sgd(rate if turned else -rate)\n"
    )
    given = {
        "sgd:0.5,momentum=0,nesterov=false": -0.5,
        "sgd:0.5": -0.5,
        f"{tmp_path}/mine.py:make": -1.0,
        f"{tmp_path}/mine.py:make,rate=0.25": -0.25,
        f"{tmp_path}/mine.py:make,rate=0.25,turned=false": 0.25,
    }
    for text, wanted in given.items():
        tx = load_optimizer(text)(tree)
        updates, _ = tx.update(gradients, tx.init(gradients), gradients)
        assert updates["w"].tolist() == [wanted] * 3, text
    plain, heavy = (load_optimizer(f"sgd:0.5,momentum={m}")(tree) for m in (0, 0.9))
    state = heavy.update(gradients, heavy.init(gradients))[1]
    assert heavy.update(gradients, state)[0]["w"][0] == pytest.approx(-0.95)
    state = plain.update(gradients, plain.init(gradients))[1]
    assert plain.update(gradients, state)[0]["w"][0] == -0.5
