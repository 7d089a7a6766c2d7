"""What the processes of a run say of one another; test_multiprocess.py has several of them."""

from mlperf_jax.core import processes


def test_what_differs_is_named_and_cut_to_where_it_begins_to():
    same = {"batch_size": 32, "stages": [1, 2]}
    assert processes.differences(same, dict(same)) == ""
    found = processes.differences(
        {**same, "seed": None}, {"batch_size": 64, "stages": [1, 2], "code": "a"}
    )
    assert found == "batch_size 64 against 32, code 'a' against None"
    source = "def make(tree):\n" + "    # why\n" * 50 + "    return optax.adamw({})\n" + "#" * 99
    found = processes.differences(
        {"optimizer": source.format(1e-3)}, {"optimizer": source.format(1e-1)}
    )
    assert len(found) < 200 and "adamw(0.1)" in found and "adamw(0.001)" in found
    assert found.count("…") == 4


def test_processes_that_differ_alike_are_named_together():
    error = processes._differ({7: "seed 2 against 1", 1: "seed 2 against 1", 3: "runs 3 against 1"})
    assert "(process 1, 7: seed 2 against 1; process 3: runs 3 against 1): start all" in str(error)
