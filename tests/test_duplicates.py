"""What stands twice: the pairs of equal blocks in the package may only become fewer."""

import pytest

from scripts import count_duplicates

MOST = 3  # lower it whenever there are fewer; 21 before the contract was revised

BLOCK = "\n".join(f"total += weight[{number}]" for number in range(6))


@pytest.fixture
def folder(tmp_path):
    """Text by file name -> the folder that holds the files."""

    def written(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        return tmp_path

    return written


@pytest.fixture
def pairs(folder):
    return lambda **files: count_duplicates.pairs(folder(**files))


@pytest.fixture
def third(folder):
    return lambda **files: count_duplicates.third_copies([folder(**files)], folder())


def test_there_are_no_more_than_there_were():
    found = count_duplicates.pairs(count_duplicates.PACKAGE)
    assert len(found) <= MOST, "\n".join(
        ["move what stands twice to the room that both may import:", *map(str, found)]
    )


def test_a_pair_is_counted_once_however_long(pairs):
    (found,) = pairs(a=f"x = 1\n{BLOCK}\ny = 2\n", b=f"{BLOCK}\ny = 2\nz = 3\n")
    assert str(found) == "7 lines: a.py:2 b.py:1"


def test_three_blocks_are_three_pairs_within_a_file_too(pairs):
    assert len(pairs(a=f"{BLOCK}\nx = 1\n{BLOCK}\ny = 2\n", b=f"{BLOCK}\n")) == 3


def test_five_lines_are_none(pairs):
    five = BLOCK.rpartition("\n")[0]
    assert pairs(a=five, b=five) == []


def test_what_is_passed_over(pairs):
    lines = BLOCK.splitlines()
    other = '"""Says what it is."""\nimport os\nfrom re import (\n    sub,\n    match,\n)\n'
    other += "\n".join(f"{line}  # {i}\n\n# more" for i, line in enumerate(lines[:3]))
    other += "\n()\n" + "\n".join(lines[3:])
    (found,) = pairs(a=BLOCK, b=other)
    assert (found.lines, found.second) == (6, 7)


def test_a_run_of_equal_lines_is_no_pair_with_itself(pairs):
    assert pairs(a="x += 1\n" * 8) == []


# -- third copies ----------------------------------------------------------------------------------

TEN = "\n".join(f"total += weight[{number}]" for number in range(12))


def test_two_copies_are_allowed(third):
    assert third(a=TEN, b=f"x = 1\n{TEN}") == []


def test_a_third_copy_is_told_once_and_where_it_begins(third):
    assert third(a=TEN, b=f"x = 1\n{TEN}\ny = 2\n{TEN}") == ["a.py:1 b.py:2 b.py:15"]


def test_nine_lines_may_stand_any_number_of_times(third):
    nine = "\n".join(TEN.splitlines()[:9])
    assert third(a=nine, b=nine, c=nine) == []


def test_the_lint_refuses_it():
    lint = (
        (count_duplicates.ROOT / "Makefile")
        .read_text()
        .partition("\nlint:")[2]
        .partition("\n\n")[0]
    )
    assert "count_duplicates.py --third mlperf_jax tests scripts" in lint
