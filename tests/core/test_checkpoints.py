"""Checkpoints survive kills, damage, full disks, donation and other meshes, bit for bit."""

import concurrent.futures
import contextlib
import pathlib
import re
import resource
import shutil
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P, SingleDeviceSharding

from mlperf_jax.core import checkpoints as module
from mlperf_jax.core.checkpoints import Checkpoints
from mlperf_jax.errors import UserError

IDENTITY = {"benchmark": "resnet", "config": "c0ffee", "optimizer": "(Count, Trace)"}


class Moments(NamedTuple):
    count: jax.Array
    mu: dict


def mesh_of(**axes):
    devices = np.array(jax.devices()[: np.prod(list(axes.values()))])
    return jax.make_mesh(
        tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes), devices=devices
    )


def placed(tree, mesh, spec):
    """The tree on a mesh: leaves of two axes cut as `spec` says, others replicated."""
    return jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, spec if x.ndim == 2 else P())), tree
    )


def host_state(seed=0, scale=80):
    generator = np.random.default_rng(seed)
    kernel = generator.normal(size=(16 * scale, 64)).astype(np.float32)
    return {
        "params": {
            "stem": {"kernel": kernel, "bias": kernel[0]},
            "half": kernel.astype(jnp.bfloat16),
            "float16": kernel.astype(np.float16),
        },
        "stats": {"seen": kernel > 0, "nothing": np.zeros((0, 8), np.float32)},
        "opt": (Moments(np.int32(seed), {"kernel": 2 * kernel}), None, ()),
        "step": np.int32(seed),
    }


def abstract(tree, mesh=None, spec=None):
    one = SingleDeviceSharding(jax.devices()[0])

    def leaf(x):
        cut = spec if x.ndim == 2 else P()
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=one if mesh is None else NamedSharding(mesh, cut)
        )

    return jax.tree.map(leaf, tree)


def assert_equal(state, expected):
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(expected)):
        one, other = np.asarray(one), np.asarray(other)
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()


@pytest.fixture
def mesh():
    return mesh_of(data=8)


@pytest.fixture
def make(tmp_path):
    """Makes Checkpoints, and closes them at the end."""
    made = []

    def make(folder=tmp_path / "checkpoints", identity=IDENTITY, **kw):
        made.append(Checkpoints(folder, identity=identity, **kw))
        return made[-1]

    yield make
    for checkpoints in made:
        checkpoints.close()


@pytest.fixture
def two(make, mesh):
    """Checkpoints of step 10 and 20, complete."""
    checkpoints = make()
    for step in (10, 20):
        checkpoints.save(step, placed(host_state(step), mesh, P("data")), {})
    checkpoints.wait()
    return checkpoints


def test_restores_what_was_saved_though_its_buffers_were_donated(make, mesh):
    checkpoints, expected = make(), host_state(5, scale=2000)
    state = placed(expected, mesh, P("data"))
    overwrite = jax.jit(
        lambda s: jax.tree.map(lambda x: x ^ True if x.dtype == bool else x + 1, s),
        donate_argnums=0,
    )
    checkpoints.save(5, state, {})
    for _ in range(3):
        state = overwrite(state)
    jax.block_until_ready(state)
    restored, meta = checkpoints.restore(abstract(expected, mesh, P("data")))
    assert_equal(restored, expected)
    assert meta["step"] == 5
    assert restored["params"]["half"].sharding == NamedSharding(mesh, P("data"))


@pytest.mark.parametrize("saved", ["data", "fsdp", "one"])
def test_restores_onto_other_meshes(make, mesh, saved):
    both = mesh_of(data=2, fsdp=4)
    layouts = {
        "data": (mesh, P()),
        "fsdp": (both, P("fsdp", "data")),
        "one": (mesh_of(data=1), P("data")),
    }
    checkpoints, expected = make(), host_state(7)
    checkpoints.save(7, placed(expected, *layouts[saved]), {})
    others = [*layouts.values(), (both, P(None, "fsdp")), (mesh, P("data")), (None, None)]
    for layout in others:
        restored, _ = checkpoints.restore(abstract(expected, *layout))
        assert_equal(restored, expected)
    assert checkpoints.warnings == []


def test_keys_of_random_numbers_come_back_on_other_meshes(make, mesh):
    checkpoints = make()
    keys = {"fry": jax.random.split(jax.random.key(3), 8), "rbg": jax.random.key(4, impl="rbg")}
    state = jax.device_put({**keys, "raw": jax.random.PRNGKey(5)}, NamedSharding(mesh, P()))
    state["fry"] = jax.device_put(state["fry"], NamedSharding(mesh, P("data")))
    checkpoints.save(1, state, {})
    everywhere = NamedSharding(mesh_of(data=2, fsdp=4), P())
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state
    )
    for abstract_state in (state, wanted):
        restored, meta = checkpoints.restore(abstract_state)
        for name, key in state.items():
            assert restored[name].dtype == key.dtype
            assert restored[name].sharding.is_equivalent_to(abstract_state[name].sharding, key.ndim)
            bits = [
                jax.random.bits(k if k.ndim == 0 or name == "raw" else k[7])
                for k in (key, restored[name])
            ]
            assert bits[0] == bits[1]
    generators = {name: meta["leaves"][name].get("key") for name in state}
    assert generators == {"fry": "threefry2x32", "rbg": "rbg", "raw": None}
    for name, other in (("rbg", jax.random.key(4)), ("fry", jax.random.key_data(state["fry"]))):
        sentence = (
            rf"has {name} as a \w+ key of uint32\[.*\], not (a threefry2x32 key of )?uint32\["
        )
        with pytest.raises(UserError, match=sentence):
            checkpoints.restore({**state, name: other})


def test_what_was_saved_before_small_leaves_had_a_file_is_read(make, mesh, monkeypatch):
    def commit(folder, place, meta):
        leaves = {name: {**leaf} for name, leaf in meta["leaves"].items()}
        assert not any(leaf.pop("small") for leaf in leaves.values())
        as_before(folder, place, {**meta, "format": 1, "leaves": leaves})

    as_before, expected = module.Folder.commit, host_state(3)
    with monkeypatch.context() as patch:
        patch.setattr(module.Folder, "commit", commit)
        patch.setattr(module.packed, "is_small", lambda leaf: False)
        patch.setattr(module.packed, "write", lambda *_: None)
        checkpoints = make()
        checkpoints.save(3, placed(expected, mesh, P("data")), {})
        checkpoints.wait()
    for layout in ((mesh, P("data")), (None, None)):
        restored, meta = checkpoints.restore(abstract(expected, *layout))
        assert meta["format"] == 1
        assert_equal(restored, expected)
    flip_largest(checkpoints.folder)
    with pytest.raises(UserError, match="the values of"):
        checkpoints.restore(abstract(expected))


@pytest.mark.parametrize("parts", [["params"], []])
def test_a_state_of_small_leaves_alone_and_one_of_none(make, mesh, parts):
    expected = {part: host_state(4, scale=1)[part] for part in parts}
    checkpoints = make()
    checkpoints.save(4, placed(expected, mesh, P("data")), {})
    restored, _ = checkpoints.restore(abstract(expected, mesh_of(data=2), P("data")))
    assert_equal(restored, expected)


def test_meta_reads_without_arrays(make, mesh):
    checkpoints = make()
    given = {"log_offset": 123, "scalars": np.int64(7), "generation": 0, "nonfinite": False}
    checkpoints.save(3, placed(host_state(3), mesh, P("data")), given)
    checkpoints.wait()
    shutil.rmtree(checkpoints.folder / "step_00000003" / "arrays")
    meta = checkpoints.latest_meta()
    assert meta == checkpoints.meta(3)
    assert {name: meta[name] for name in given} == given
    assert meta["step"] == 3
    assert meta["identity"] == IDENTITY
    assert meta["processes"] == 1
    assert meta["versions"]["jax"] == jax.__version__
    assert meta["leaves"]["opt/0/mu/kernel"]["shape"] == [1280, 64]
    assert meta["leaves"]["params/half"]["dtype"] == "bfloat16"
    file = checkpoints.folder / "step_00000003" / "meta.json"
    file.write_text(file.read_text().replace('"log_offset": 123', '"log_offset": 124'))
    assert checkpoints.latest_meta() is None
    with pytest.raises(UserError, match=r"step_00000003 is damaged \(meta.json is not what was"):
        checkpoints.meta(3)


def test_an_empty_folder_holds_nothing(make):
    checkpoints = make()
    assert checkpoints.restore(abstract(host_state())) is None
    assert checkpoints.latest_meta() is None
    assert checkpoints.steps() == checkpoints.sealed_steps() == []
    with pytest.raises(UserError, match="no checkpoint of step 4; it has: none"):
        checkpoints.restore(abstract(host_state()), 4)
    with pytest.raises(UserError, match="keep at least 1"):
        make(keep=0)


def test_what_the_disk_would_not_delete_is_deleted_when_the_run_has_ended(make, mesh, monkeypatch):
    def fail(*_):
        raise OSError(30, "Read-only file system")

    def steps():
        return make(identity=None).steps()

    first = make(keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(type(first._files), "delete", fail)
        for step in (1, 2, 3, 4):
            first.save(step, placed(host_state(step), mesh, P("data")), {}, sealed=step == 1)
        first.close()
    assert steps() == [1, 2, 3, 4]
    again = make(keep=2)
    assert again.latest_meta() is not None
    again.tidy()
    assert steps() == [1, 3, 4]
    again.tidy()
    assert steps() == [1, 3, 4]


def test_retention_keeps_the_newest_and_the_sealed(make, mesh):
    checkpoints = make(keep=2)
    for step in range(1, 9):
        state = placed(host_state(step), mesh, P("data"))
        checkpoints.save(step, state, {}, sealed=step in (4, 5))
    checkpoints.wait()
    assert checkpoints.steps() == [4, 5, 7, 8]
    assert checkpoints.sealed_steps() == [4, 5]
    times = [checkpoints.meta(step)["time_ms"] for step in checkpoints.sealed_steps()]
    assert times == sorted(times)
    for step in checkpoints.sealed_steps():
        weights = {"params": abstract(host_state())["params"]}
        restored, _ = checkpoints.restore(weights, step, partial=True)
        assert_equal(restored, {"params": host_state(step)["params"]})
    with pytest.raises(UserError, match="no checkpoint of step 6; it has: 4, 5, 7, 8"):
        checkpoints.meta(6)


def test_a_note_that_a_killed_run_left_half_written_is_deleted_by_who_goes_on(two, make):
    half = two.folder / "newest.half"
    half.write_text("step_000")
    weights = {"params": abstract(host_state())["params"]}
    make(identity=None).restore(weights, partial=True)
    assert half.exists(), "whoever only reads changes nothing"
    with pytest.raises(UserError, match=r"another benchmark|config|optimizer"):
        make(identity={**IDENTITY, "benchmark": "other"}).restore(weights, partial=True)
    assert half.exists(), "who is refused changes nothing"
    two.restore(weights, partial=True)
    assert not half.exists()


def test_a_write_under_way_never_leaves_the_folder_without_a_checkpoint(make, mesh, monkeypatch):
    checkpoints, seen = make(keep=1), []
    commit = module.Folder.commit

    def looking(folder, place, meta):
        seen.append([p.step for p in folder.places()])
        commit(folder, place, meta)

    monkeypatch.setattr(module.Folder, "commit", looking)
    for step in (1, 2, 2, 3):
        checkpoints.save(step, placed(host_state(step), mesh, P()), {})
    checkpoints.wait()
    assert seen == [[], [1], [2], [2]]  # and each save waited for the one before
    assert [path.name for path in checkpoints.folder.glob("step_*")] == ["step_00000003"]


def test_an_older_step_restored_gives_up_the_later_ones(two, make, mesh):
    _, meta = two.restore(abstract(host_state()), 10)
    assert meta["step"] == 10
    two.save(15, placed(host_state(15), mesh, P()), {})
    two.wait()
    assert two.steps() == [10, 15]


def test_damage_to_any_file_falls_back_or_does_no_harm(two, make, capsys):
    """Deleted, emptied, cut short, one byte flipped: never other values than those saved."""
    original, fell_back = pathlib.Path(two.folder.parent / "original"), set()
    shutil.copytree(two.folder, original)
    newest = original / "step_00000020"
    wanted = abstract(host_state())
    for path in sorted(p for p in newest.rglob("*") if p.is_file()):
        for damage in ("delete", "empty", "cut", "first", "middle", "last"):
            folder = original.parent / "damaged"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(original, folder)
            victim = folder / path.relative_to(original)
            data = bytearray(victim.read_bytes())
            if damage in ("first", "middle", "last"):
                data[{"first": 0, "middle": len(data) // 2, "last": -1}[damage]] ^= 4
            kept = {"empty": 0, "cut": len(data) // 2}.get(damage, len(data))
            victim.unlink() if damage == "delete" else victim.write_bytes(bytes(data[:kept]))
            checkpoints = make(folder)
            restored, meta = checkpoints.restore(wanted)
            assert_equal(restored, host_state(meta["step"]))
            if meta["step"] == 10:
                fell_back.add((path.name, damage))
                if path.name != "meta.json" or damage != "delete":
                    assert "step_00000020 is damaged" in checkpoints.warnings[0]
                    assert "step_00000020 is damaged" in capsys.readouterr().err
    largest = max(newest.rglob("ocdbt.process_0/d/*"), key=lambda p: p.stat().st_size)
    for damage in ("delete", "empty", "cut", "middle"):
        for name in (largest.name, "small_00000", "meta.json"):
            assert (name, damage) in fell_back


def flip_largest(folder):
    """Flips one bit of the values in a checkpoint's folder."""
    path = max(pathlib.Path(folder).rglob("d/*"), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_a_flipped_bit_is_found_on_another_mesh_and_names_its_leaf(two):
    flip_largest(two.folder / "step_00000020")
    wanted = abstract(host_state(), mesh_of(data=2, fsdp=4), P("fsdp", "data"))
    restored, meta = two.restore(wanted)
    assert meta["step"] == 10
    assert_equal(restored, host_state(10))
    assert "are not those that were saved" in two.warnings[0]
    with pytest.raises(UserError, match="step_00000020: the values of"):
        two.restore(wanted, 20)


def test_damaged_ones_are_replaced_and_do_not_count_as_kept(two, mesh):
    flip_largest(two.folder / "step_00000020")
    _, meta = two.restore(abstract(host_state()))
    assert meta["step"] == 10
    two.save(20, placed(host_state(20), mesh, P()), {})
    two.wait()
    assert sorted(path.name for path in two.folder.glob("step_*")) == [
        "step_00000010",
        "step_00000020_1",
    ]
    restored, _ = two.restore(abstract(host_state()))
    assert_equal(restored, host_state(20))


def test_nothing_that_verifies_is_an_error_and_not_a_new_start(two):
    for step in (10, 20):
        flip_largest(two.folder / f"step_{step:08d}")
    with pytest.raises(UserError, match=r"step_00000020: .*step_00000010: .*move the folder away"):
        two.restore(abstract(host_state()))


@pytest.mark.parametrize("field", ["benchmark", "config", "optimizer"])
def test_another_runs_checkpoints_are_refused_and_left_alone(two, make, mesh, field):
    other = make(two.folder, identity=IDENTITY | {field: "other"})
    message = f"saved with {field} {re.escape(repr(IDENTITY[field]))}, .*run has {field} 'other'"
    with pytest.raises(UserError, match=message):
        other.restore(abstract(host_state()))
    with pytest.raises(UserError, match=message):
        other.save(30, placed(host_state(), mesh, P()), {})
    assert two.steps() == [10, 20]


def test_trees_that_differ_are_refused_by_path(two):
    wanted = abstract(host_state())
    del wanted["params"]["stem"]["bias"]
    wanted["params"]["head"] = wanted["step"]
    with pytest.raises(UserError, match="lacks params/head; it has besides params/stem/bias"):
        two.restore(wanted)
    wanted = abstract(host_state())
    wanted["step"] = jax.ShapeDtypeStruct((2,), jnp.float32)
    with pytest.raises(UserError, match=r"has step as int32\[\], not float32\[2\]"):
        two.restore(wanted)
    with pytest.raises(TypeError, match="step is int"):
        two.save(30, {"step": 3}, {})


def test_a_full_disk_is_told_at_the_next_call_and_harms_nothing(two, make, mesh):
    expected = host_state(30, scale=100)
    state = placed(expected, mesh, P("data"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))  # writes beyond it fail
    try:
        two.save(30, state, {})
        with pytest.raises(
            UserError,
            match=r"checkpoint of step 30 could not be written to .*: (File too large|.* was cut short); .*unharmed",
        ):
            two.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_equal(state, expected)
    assert [path.name for path in sorted(two.folder.glob("step_*"))] == [
        "step_00000010",
        "step_00000020",
    ]
    two.save(40, state, {})
    restored, meta = two.restore(abstract(expected))
    assert meta["step"] == 40
    assert_equal(restored, expected)


def test_writers_that_go_on_after_a_failure_leave_nothing_behind(two, mesh, monkeypatch):
    """Orbax's other writes do, for a moment, and make their folders anew."""

    def start_writing(handler, path, leaves):
        def write_on():
            for part in range(10):
                with contextlib.suppress(FileNotFoundError):  # deleted between the two
                    (path / "late").mkdir(parents=True, exist_ok=True)
                    (path / "late" / str(part)).write_text("")
                time.sleep(0.01)

        late.append(threading.Thread(target=write_on))
        late[0].start()
        failed = concurrent.futures.Future()
        failed.set_exception(OSError(28, "No space left on device"))
        return [failed]

    late = []
    monkeypatch.setattr(module.arrays, "start_writing", start_writing)
    two.save(30, placed(host_state(), mesh, P()), {})
    with pytest.raises(UserError, match="No space left on device"):
        two.wait()
    late[0].join()
    names = sorted(path.name for path in two.folder.glob("step_*"))
    assert names == ["step_00000010", "step_00000020"]


def test_a_folder_that_cannot_be_made_is_a_user_error(make, mesh, tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = make(tmp_path / "file" / "checkpoints")
    with pytest.raises(UserError, match=r"no checkpoint can be written to .*file/checkpoints"):
        checkpoints.save(1, placed(host_state(), mesh, P()), {})


def test_a_relative_folder(make, mesh, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = make("here")
    checkpoints.save(1, placed(host_state(1), mesh, P()), {})
    checkpoints.wait()
    assert (tmp_path / "here" / "step_00000001" / "meta.json").exists()


def test_a_checkpoint_that_was_taken_away_is_named(two):
    wanted = abstract(host_state())
    assert two.restore(wanted) is not None
    for place in two.folder.glob("step_*"):
        (place / "meta.json").unlink()
    with pytest.raises(UserError, match=r"step_0000\d+/meta.json is gone, without which"):
        two.restore(wanted)
