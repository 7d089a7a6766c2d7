"""Checkpoints survive SIGKILL at any moment, and two processes write and read one together."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from test_checkpoints import IDENTITY, abstract, assert_equal, host_state, mesh_of, placed

from mlperf_jax.core.checkpoints import Checkpoints

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent

# One child, forked again for each moment: the kill comes from within, at a named place.
KILLED = """
import os, pathlib, signal, sys
import jax, numpy as np
from mlperf_jax.core import checkpoints
from mlperf_jax.core.checkpoints import folder as folders

root, moments = pathlib.Path(sys.argv[1]), sys.argv[2:]
def kill(*_, **__): os.kill(os.getpid(), signal.SIGKILL)

def watch(folder):  # kill once half of the bytes are on the disk
    import threading
    def look():
        while sum(p.stat().st_size for p in folder.rglob("d/*") if p.exists()) < 12_000_000: pass
        kill()
    threading.Thread(target=look, daemon=True).start()

def arm(moment, folder):
    if moment == "writing": watch(folder / "step_00000020" / "arrays")
    if moment == "started": checkpoints.Checkpoints._finish = kill
    if moment == "parted": checkpoints.Checkpoints._complete = kill
    if moment == "joined": folders.Folder.commit = kill
    if moment == "half meta":
        replace = os.replace
        os.replace = lambda a, b: kill() if str(b).endswith("meta.json") else replace(a, b)
    if moment == "committed": checkpoints.Checkpoints._retain = kill
    if moment == "deleting":
        rmtree = folders.shutil.rmtree
        folders.shutil.rmtree = lambda path, **kw: kill(rmtree(path / "arrays"))

for moment in moments:
    child = os.fork()
    if child == 0:
        folder = root / moment
        ckpt = checkpoints.Checkpoints(folder, keep=1, identity={"benchmark": "resnet"})
        for step in (10, 20):
            if step == 20: arm(moment, folder)
            w = np.random.default_rng(step).normal(size=(6_000_000,)).astype(np.float32)
            ckpt.save(step, {"params": {"w": jax.device_put(w)}}, {})
            ckpt.wait()
        os._exit(3)
    print(moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_sigkill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    before = ["writing", "started", "parted", "joined", "half meta"]
    after = ["committed", "deleting"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), *before, *after],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == [f"{m} {-signal.SIGKILL}" for m in before + after], (
        done.stderr
    )
    for moment in before + after:
        checkpoints = Checkpoints(tmp_path / moment, identity={"benchmark": "resnet"}, keep=1)
        shape = jax.ShapeDtypeStruct((6_000_000,), np.float32)
        restored, meta = checkpoints.restore({"params": {"w": shape}})
        assert meta["step"] == (10 if moment in before else 20), moment
        expected = np.random.default_rng(meta["step"]).normal(size=(6_000_000,)).astype(np.float32)
        assert_equal(restored, {"params": {"w": expected}})
        assert checkpoints.warnings == []
        assert moment != "deleting" or checkpoints.steps() == [20]
        checkpoints.save(30, restored, {})
        checkpoints.save(40, restored, {})
        checkpoints.close()
        left = [path.name for path in checkpoints.folder.glob("step_*")]
        assert left == ["step_00000040"]  # the rubbish is swept


# Two processes of four devices each, over loopback. Prints what each has seen, as JSON.
PAIR = """
import json, pathlib, resource, sys
import jax
port, process, folder, tests = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]), sys.argv[4]
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("127.0.0.1:" + port, 2, process)
from jax.experimental import multihost_utils
sys.path.insert(0, tests)
from test_checkpoints import *

mesh, both = mesh_of(data=8), mesh_of(data=2, fsdp=4)
seen = {}

def check(ckpt, mesh, spec, scale=80):
    state, meta = ckpt.restore(abstract(host_state(0, scale), mesh, spec))
    expected = host_state(meta["step"], scale)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        for shard in one.addressable_shards:
            assert np.asarray(shard.data).tobytes() == np.asarray(other[shard.index]).tobytes()
    return meta["step"]

def slowly(path, text, write=module.write_whole):  # process 0 is there long before process 1
    while process == 1 and not (folder / "waiting").exists(): pass
    write(path, text)

def telling(self, number, phase, barrier=Checkpoints._barrier):
    if process == 0: (folder / "waiting").touch()
    barrier(self, number, phase)

def failing(*_):
    module.arrays.read = read
    raise OSError("no such network")

module.write_whole, Checkpoints._barrier = slowly, telling
read = module.arrays.read

with Checkpoints(folder, keep=2, identity=IDENTITY) as ckpt:
    seen["one process, read by two"] = check(ckpt, mesh, P("data"))
    donate = jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0)
    for step in (10, 20):
        state = placed(host_state(step), mesh, P("data"))
        ckpt.save(step, state, {})
        donate(state)
    ckpt.wait()
    seen["steps"] = ckpt.steps()
    seen["own shards"] = (ckpt.folder / f"step_00000020/arrays/ocdbt.process_{process}").exists()
    seen["same mesh"] = check(ckpt, mesh, P("data"))
    seen["other mesh"] = check(ckpt, both, P("fsdp", "data"))
    if process == 1:
        module.arrays.read = failing
    seen["one cannot read"] = check(ckpt, mesh, P("data"))
    if process == 1:
        flip_largest(folder / "step_00000020/arrays/ocdbt.process_1")
    multihost_utils.sync_global_devices("flipped")
    seen["fell back"] = check(ckpt, both, P("fsdp", "data"))
    seen["warnings"] = ckpt.warnings
    big = placed(host_state(30, 100), mesh, P("data"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if process == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    ckpt.save(30, big, {})
    try:
        ckpt.wait()
    except UserError as error:
        seen["error"] = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    seen["after the error"] = ckpt.steps()
    ckpt.save(30, big, {}, sealed=True)
    ckpt.wait()
    seen["end"] = [ckpt.steps(), ckpt.sealed_steps(), check(ckpt, mesh, P(None, "data"), 100)]
print(json.dumps(seen))
"""


def test_two_processes(tmp_path):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, identity=IDENTITY) as checkpoints:
        checkpoints.save(5, placed(host_state(5), mesh_of(data=8), P()), {})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", PAIR, port, str(process), str(folder), str(HERE)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for process in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], outputs
    for process, (out, _) in enumerate(outputs):
        seen = json.loads(out.splitlines()[-1])
        assert seen["one process, read by two"] == 5
        assert seen["steps"] == [10, 20]
        assert seen["own shards"]
        assert seen["same mesh"] == seen["other mesh"] == 20
        assert seen["fell back"] == 10
        why = ("another process cannot read its shards", "no such network")[process]
        assert seen["one cannot read"] == 10
        assert f"step_00000020 is damaged: {why}" in seen["warnings"][0]
        assert "step_00000020 is damaged: the values of" in seen["warnings"][1]
        assert "checkpoint of step 30 could not be written" in seen["error"]
        assert ("process 1 has not written its part" in seen["error"]) == (process == 0)
        assert seen["after the error"] == [10, 20]
        assert seen["end"] == [[10, 30], [30], 30]
    restored, meta = checkpoints.restore(abstract(host_state(0, 100)))
    assert (meta["step"], meta["processes"]) == (30, 2)
    assert_equal(restored, host_state(30, 100))
