"""The documentation: commands in it are real, generated pages say what the classes say, dead links are found.

The package is reached through the pages' own modules, as these tests are to run whatever has changed.
"""

import dataclasses
import doctest
import json
import pathlib
import re
import shlex
import typing

import pytest

import benchmark_pages
import dead_links
import field_comments
import generated
import passages
import plain_text
from mlperf_jax.benchmarks import registry

benchmarks, rules, cli = benchmark_pages.benchmarks, benchmark_pages.rules, generated.cli
ROOT = pathlib.Path(__file__).parent.parent
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# what stands for something of the reader's, and something that it may be
STANDS_FOR = {"NAME": "resnet", "COMMAND": "run", "$RESUME": "--resume", "…": ""}


# -- commands --------------------------------------------------------------------------------------


def commands(text: str) -> list[str]:
    """What a page tells its reader to type behind `mlperf-jax`, in blocks of code and between backticks."""
    text = re.sub(r" \\\n\s*", " ", text)
    blocks = re.findall(r"^(?:    |[^`\n]*?)(?:\S*/)?mlperf-jax ([a-z].*)$", text, re.MULTILINE)
    inline = re.findall(r"`(?:mlperf-jax |(?=data (?:build|check) \w))([a-z][^`]*)`", text)
    arguments = (
        re.sub(r'[,\[\]"]+', " ", found)
        for found in re.findall(r"args: \[(.*?)\]", text, re.DOTALL)
    )
    return [*(line for line in blocks if "`" not in line), *inline, *arguments]


def words(command: str) -> list[str]:
    """The words that a shell would pass on, something in place of what only the reader knows."""
    command = re.sub(r"\$\([^)]*\)", "host", command).partition(" # ")[0].partition(" | ")[0]
    for name, value in STANDS_FOR.items():
        command = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", value, command)
    command = re.sub(r"\$\w+", "1", command).rstrip(" &'")
    return [word.removeprefix("…") for word in shlex.split(command)]


FOUND = [
    pytest.param(command, id=f"{page.name}: {command[:50]}")
    for page in WRITTEN
    if page.name != "commands.md"
    for command in dict.fromkeys(commands(page.read_text(encoding="utf-8")))
]


class Parsed(Exception):
    """Raised where a command would begin to work."""


@pytest.mark.parametrize("command", FOUND)
def test_a_command_of_the_pages_is_one(command, monkeypatch, capsys):
    parse = cli.options.parse

    def parse_only(*args, **kwargs):
        parse(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(cli.options, "parse", parse_only)
    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.chdir(ROOT / "tests" / "benchmarks")  # where wine.py is
    given = words(command)
    if len(given) == 1:  # it is only spoken of
        assert given[0] in cli.COMMANDS
        return
    try:
        cli.main(given)
    except Parsed:
        return
    refusal = capsys.readouterr().err
    assert "…" in command and " needs " in refusal, refusal  # of what the page left out


def test_the_pages_tell_of_every_command():
    told = {" ".join(words(param.values[0])) for param in FOUND}
    missing = [name for name in cli.COMMANDS if not any(each.startswith(name) for each in told)]
    assert not missing


# -- generated pages -------------------------------------------------------------------------------


def cells_of(page: str, first: str) -> dict[str, list[str]]:
    """The rows of the tables whose header begins with `first`, by their first cell."""
    found = {}
    for table in re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE):
        header, _, *rows = map(passages.cells, table.splitlines())
        if header[0] == first:
            found |= {row[0]: row[1:] for row in rows}
    return found


def test_the_page_of_resnet_says_what_its_class_says():
    page, cls = benchmark_pages.page("resnet"), benchmarks.benchmark_class("resnet")
    full, tiny = benchmarks.get("resnet"), benchmarks.get("resnet", tiny=True)
    figures = cells_of(page, "of the defaults")
    assert figures["trained parameters"] == [f"{cls.parameters:,}"]
    assert figures["training samples"] == [f"{full.train_samples:,}"]
    recipes = cells_of(page, "batch_size")
    assert recipes.keys() == {f"{size:,}" for size in cls.recipes()}
    assert [recipes[f"{size:,}"][0] for size in cls.recipes()] == [
        f"{recipe.base_lr:g}" for recipe in cls.recipes().values()
    ]
    assert recipes["3,264"][-2:] == ["35.154 ± 0.748", "45,037,948 ± 958,738"]  # as `plan` has it
    fields = cells_of(page, "field")
    assert fields["`width`"] == [str(full.width), str(tiny.width), "a whole number, at least 1"]
    assert fields["`lr_epochs`"][:2] == [str(full.lr_epochs), str(tiny.lr_epochs)]
    assert fields["`lr_epochs`"][-1] == "warm-up included"
    assert fields["`targets`"][0] == str(full.targets[0])
    assert cells_of(page, "rounds")["0.6-4.0"][0] == str(rules.resolve("resnet").targets[0])
    assert cells_of(page, "devices").keys() >= {"v5p:2x2x2"}
    assert "ILSVRC2012_img_train.tar" in page


@pytest.mark.parametrize("name", benchmarks.names())
def test_a_page_has_all_fields_and_sections(name):
    page, cls = benchmark_pages.page(name), benchmarks.benchmark_class(name)
    named = [field.strip("`") for field in cells_of(page, "field")]
    assert sorted(named) == sorted(field.name for field in dataclasses.fields(cls))
    titles = re.findall("^## (.*)$", page, re.MULTILINE)
    assert {"Rule", "Figures", "Recipes", "Fields", "Data", "Parity", "Plan", "Measured"} <= set(
        titles
    )
    assert ("What it has not" in titles) == bool(cls.absent)
    assert cells_of(page, "batch_size").keys() == {f"{size:,}" for size in cls.recipes()}


def test_files_that_pages_name_for_parity_are_there():
    files = [path for paths in benchmark_pages.PARITY.values() for path in paths]
    assert not [path for path in files if not (ROOT / path).is_file()]
    assert benchmark_pages.PARITY.keys() == set(benchmarks.names())


def test_absences_have_words():
    assert benchmark_pages.ABSENT.keys() == set(typing.get_args(benchmark_pages.Absence))


def test_comments_beside_fields():
    found = field_comments.comments(benchmarks.benchmark_class("unet3d"))
    assert found["base_lr"].group == "hyperparameters"
    assert found["filters"].group == "sizes: what tiny() shrinks"
    assert found["eval_shape"].note == "holds the largest volume, 456 x 416 x 416"


# -- the README ------------------------------------------------------------------------------------


def test_the_table_of_the_readme_is_that_of_list():
    """Model and data are told there in more words; what is a number or a status must agree."""
    rows = cells_of(passages.section((ROOT / "README.md").read_text(), "Benchmarks"), "benchmark")
    assert rows.keys() == set(benchmarks.names())
    for name, (_, _, target, *rest) in rows.items():
        assert rest[:2] == benchmark_pages.listed(name)[4:]  # rounds and status
        bounds = {b for t in benchmarks.get(name).targets for b in (t.at_least, t.at_most) if b}
        assert {float(number) for number in re.findall(r"[\d.]+", target)} == bounds


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_relative_links_of_a_page_lead_to_files_and_headings(path):
    text = path.read_text(encoding="utf-8")
    for target, fragment in re.findall(r"\]\(([^):\s#]*)(#[^)\s]*)?\)", text):
        file = path.parent / target if target else path
        made = (
            file.relative_to(ROOT / "docs").parts if file.is_relative_to(ROOT / "docs") else ("",)
        )
        if made[0] in ("benchmarks", "api", "commands.md"):  # made when the site is, which looks
            continue
        assert file.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment[1:] in map(passages.anchor, headings), f"{target}{fragment}"


# -- what makes the site ---------------------------------------------------------------------------


@pytest.mark.parametrize("module", [passages, plain_text], ids=lambda module: module.__name__)
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def test_a_section_ends_with_the_next_heading_and_not_with_a_comment():
    text = "# T\n\nopening\n\n## A\n\n```\n# no heading\n```\n\n### A.1\n\nx\n\n## B\n\ny\n"
    assert passages.section(text, "A") == "```\n# no heading\n```\n\n### A.1\n\nx\n"
    assert passages.opening(text) == "opening\n"
    with pytest.raises(KeyError, match="no heading ## C"):
        passages.section(text, "C")


def test_links_move_along():
    docs = ROOT / "docs"
    moved = passages.moved("[a](docs/plan.md#time) [b](mlperf_jax/errors.py) [c](x.md)", ROOT, docs)
    assert moved == "[a](plan.md#time) [b](../mlperf_jax/errors.py) [c](x.md)"
    own = passages.moved("[a](../README.md#install)", docs, docs / "benchmarks")
    assert own == "[a](../install.md)"
    notebook = passages.moved("[a](notebooks/1_first_run.ipynb)", ROOT, docs)
    assert notebook == "[a](notebooks/1_first_run.md)"
    fenced = "```\n[a](docs/plan.md)\n```\n"
    assert passages.moved(fenced, ROOT, docs) == fenced


def test_docstrings_become_restructured_text():
    lines = [
        "Adds.",
        "",
        "    f(1)",
        "    g(2)",
        "",
        "Args:",
        "    x: a number, |x| < 1,",
        "        or `None`s.",
        "    **more: others.",
        "    rows: B. And more.",
        "",
        "Example:",
        "    run()",
        "",
        "Done.",
    ]
    assert list(plain_text.marked(lines)) == [
        "Adds.",
        "",
        ".. code-block:: python",
        "",
        "    f(1)",
        "    g(2)",
        "",
        "Args:",
        "    x: a number, \\|x\\| < 1,",
        "        or `None`\\ s.",
        "    **more: others.",
        "    rows: \\B. And more.",
        "",
        "Example:",
        "    .. code-block:: python",
        "",
        "        run()",
        "",
        "Done.",
    ]


def test_a_notebook_becomes_a_page(tmp_path):
    sources = [
        ("markdown", ["See [plan](docs/plan.md).\n", "Then:"]),
        ("code", ["!pip install x\n", "import x"]),
        ("code", ["import os"]),
    ]
    cells = [{"cell_type": kind, "source": lines, "outputs": []} for kind, lines in sources]
    (tmp_path / "first.ipynb").write_text(json.dumps({"cells": cells}))
    assert generated.notebook(tmp_path / "first.ipynb") == (
        "# first\n\nSee [plan](docs/plan.md).\nThen:\n\n"
        "```text\n!pip install x\nimport x\n```\n\n```python\nimport os\n```\n"
    )


def test_the_page_of_commands_has_their_help():
    page = generated.commands()
    assert "\n## data build\n\n```\nusage: mlperf-jax data build NAME [options]\n" in page
    assert "--resume" in passages.section(page, "run")


def test_dead_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#there">1</a> <a href="b.html#not">2</a>')
    (tmp_path / "b.html").write_text('<p id="there"><img src="c.png"><a href="http://x y">3</a>')
    assert list(dead_links.dead(tmp_path)) == [
        "a.html links to b.html#not, and that page has no such place",
        "b.html links to c.png, which is not there",
        "b.html links to http://x y, which is no address",
    ]
