"""The description of a system that a submission needs, filled from the machine as far as it tells.

`systems/<system>.json` is one flat object of text. Every field of `FIELDS` must be there; what cannot be
known from inside the machine (cooling, interconnects …) is "" and is for a person to fill. On the
machine that trained, `python -m mlperf_jax.results.system_file > machine.json` keeps what there is to
read.

Reference: mlperf_logging/system_desc_checker, whose reader joins fields as text: numbers are text, too.
"""

import difflib
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from mlperf_jax.errors import UserError

FIELDS = (
    "submitter",
    "division",
    "status",
    "system_name",
    "number_of_nodes",
    "host_processors_per_node",
    "host_processor_model_name",
    "host_processor_core_count",
    "host_processor_vcpu_count",
    "host_processor_frequency",
    "host_processor_caches",
    "host_processor_interconnect",
    "host_memory_capacity",
    "host_storage_type",
    "host_storage_capacity",
    "host_networking",
    "host_networking_topology",
    "host_memory_configuration",
    "accelerators_per_node",
    "accelerator_model_name",
    "accelerator_host_interconnect",
    "accelerator_frequency",
    "accelerator_on-chip_memories",
    "accelerator_memory_configuration",
    "accelerator_memory_capacity",
    "accelerator_interconnect",
    "accelerator_interconnect_topology",
    "cooling",
    "hw_notes",
    "framework",
    "other_software_stack",
    "operating_system",
    "sw_notes",
)
COUNTS = ("number_of_nodes", "host_processors_per_node", "accelerators_per_node")
OPTIONAL = ("hw_notes", "sw_notes")  # may stay empty in a finished description
RESERVED = ("submitter", "division", "status")  # said by the caller, never by the machine

# what a log calls the category -> what the system file must say, to the letter
STATUSES = {
    "onprem": "Available on-premise",
    "cloud": "Available cloud",
    "preview": "Preview",
    "research": "Research, Development, or Internal (RDI)",
}


def describe(
    *,
    submitter: str,
    division: str,
    status: str,
    system_name: str,
    machine: Mapping[str, Any],
    device: str,
    device_count: int,
    processes: int | None,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """The content of a system file: every field of `FIELDS`, in order, then further ones of `machine`.

    Args:
        submitter: who submits.
        division: "closed" or "open".
        status: the official text, one of `STATUSES`' values.
        system_name: how people call it.
        machine: fields by name, as `this_machine()` gives them, corrected or completed by hand. Besides
            them it may hold `devices`, a dict with `memory_bytes` of one chip.
        device: the kind of chip, as the runs recorded it; "cpu" has no accelerators.
        device_count: chips of the whole system.
        processes: how many processes a run had, one for each host; None when the platform decided.
        versions: library versions, as the runs recorded them.

    Raises:
        UserError: a field that nobody knows, or a value that the official tools cannot read.
    """
    given = dict(machine)
    devices = _devices(given.pop("devices", None))
    _check_machine(given)
    nodes = count_of(given, "number_of_nodes") or processes
    filled: dict[str, Any] = {
        "submitter": submitter,
        "division": division,
        "status": status,
        "system_name": system_name,
        "number_of_nodes": str(nodes or ""),
        **_accelerators(device, device_count, nodes, devices),
        "framework": f"JAX {versions['jax']}" if "jax" in versions else "JAX",
        "other_software_stack": {
            name: version
            for name, version in versions.items()
            if name != "jax" and version != "not installed"
        },
    }
    stack = given.pop("other_software_stack", {})
    if isinstance(stack, Mapping):
        filled["other_software_stack"] |= {str(k): str(v) for k, v in stack.items()}
    elif stack:
        filled["other_software_stack"] = str(stack)
    filled |= {name: str(value) for name, value in given.items() if value not in ("", None)}
    rest = [name for name in filled if name not in FIELDS]
    return {name: filled.get(name, "") for name in (*FIELDS, *rest)}


def to_fill(document: Mapping[str, Any]) -> list[str]:
    """The fields of a system file that are empty and that a person should fill, in order.

    Fields about accelerators do not count where there are none.
    """
    none = str(document.get("accelerators_per_node")) == "0"
    return [
        name
        for name in FIELDS
        if document.get(name) in ("", None, {})
        and name not in OPTIONAL
        and not (none and name.startswith("accelerator"))
    ]


def check_document(document: Any, where: str) -> None:
    """Refuses what the official tools cannot read in a system file.

    Raises:
        UserError: it is no object of text, or a count is not a whole number.
    """
    if not isinstance(document, dict):
        raise UserError(f"{where} is not a system description; it must be one flat JSON object")
    for name in FIELDS:
        if name not in document:
            raise UserError(f'{where} lacks the field {name!r}; add it, with "" if it is not known')
        if not isinstance(document[name], str) and name != "other_software_stack":
            raise UserError(
                f"the field {name!r} of {where} is {document[name]!r}; write it as text"
            )
    for name in COUNTS:
        count_of(document, name)


def count_of(document: Mapping[str, Any], name: str) -> int | None:
    """A field that the official summarizer reads as a whole number; None when it is empty.

    Raises:
        UserError: it is something else.
    """
    value = document.get(name)
    if value in ("", None):
        return None
    text = str(value).strip()
    least = 0 if name == "accelerators_per_node" else 1
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
        raise UserError(
            f"the field {name!r} is {value!r}; it must be a whole number, {least} or more"
        )
    return int(text)


def _devices(devices: Any) -> dict[str, Any]:
    if devices is None:
        return {}
    memory = devices.get("memory_bytes", 1) if isinstance(devices, Mapping) else None
    if not isinstance(memory, int) or memory <= 0:
        raise UserError(
            f"machine's 'devices' is {devices!r}; give a dict whose memory_bytes is a positive number"
        )
    return dict(devices)


def _check_machine(machine: Mapping[str, Any]) -> None:
    for name, value in machine.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w-]*", name):
            raise UserError(
                f"the machine's field {name!r} is not a name; use letters and underscores"
            )
        if name in RESERVED:
            raise UserError(f"the machine says {name!r}; give it to package() as {name}=… instead")
        close = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.85)
        if name not in FIELDS and close:
            raise UserError(f"the machine has no field {name!r} (did you mean {close[0]!r}?)")
        is_plain = isinstance(value, str | int | float) or value is None
        if not is_plain and not (name == "other_software_stack" and isinstance(value, Mapping)):
            raise UserError(f"the machine's field {name!r} is {value!r}; give text or a number")
        if isinstance(value, str) and any(ord(c) < 32 or ord(c) == 127 for c in value):
            raise UserError(f"the machine's field {name!r} holds control characters; remove them")
    for name in COUNTS:
        count_of(machine, name)


def _accelerators(
    device: str, count: int, nodes: int | None, devices: Mapping[str, Any]
) -> dict[str, str]:
    if device.lower() == "cpu":
        return {"accelerators_per_node": "0"}
    fields = {"accelerator_model_name": device}
    if nodes and count % nodes == 0:
        fields["accelerators_per_node"] = str(count // nodes)
    if devices.get("memory_bytes"):
        fields["accelerator_memory_capacity"] = _gib(devices["memory_bytes"])
    return fields


# ---- reading the machine


def this_machine(root: os.PathLike | str = "/") -> dict[str, Any]:
    """What Linux says about this host; a field that it does not tell is left out.

    Args:
        root: the folder that holds `proc`, `sys` and `etc`.

    Returns:
        Fields of `FIELDS`. Core and thread counts are those of one processor.
    """
    base = pathlib.Path(root)
    readers: tuple[Callable[[pathlib.Path], dict[str, Any]], ...] = (
        _processors,
        _memory,
        _storage,
        _network,
        _software,
    )
    found: dict[str, Any] = {}
    for reader in readers:
        found |= {name: value for name, value in reader(base).items() if value}
    return found


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # not there; or a network card that is down
        return ""


def _processors(base: pathlib.Path) -> dict[str, Any]:
    info = _read(base / "proc/cpuinfo")
    folders = (base / "sys/devices/system/cpu").glob("cpu[0-9]*")
    threads = [
        (_read(f / "topology/physical_package_id"), _read(f / "topology/core_id")) for f in folders
    ]
    threads = [ids for ids in threads if all(ids)]
    if not threads:
        packages = re.findall(r"^physical id\s*: (\S+)", info, re.MULTILINE)
        cores = re.findall(r"^core id\s*: (\S+)", info, re.MULTILINE)
        threads = list(zip(packages, cores))
    packages = len({package for package, _ in threads})
    model = re.search(r"^model name\s*: (.+)", info, re.MULTILINE)
    top = _read(base / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")  # kHz
    return {
        "host_processors_per_node": str(packages) if packages else "",
        "host_processor_model_name": model[1].strip() if model else "",
        "host_processor_core_count": str(len(set(threads)) // packages) if packages else "",
        "host_processor_vcpu_count": str(len(threads) // packages) if packages else "",
        "host_processor_frequency": f"{int(top) / 1e6:.2f} GHz (max)" if top.isdigit() else "",
        "host_processor_caches": _caches(base),
    }


def _caches(base: pathlib.Path) -> str:
    letters = {"Data": "d", "Instruction": "i"}
    found = []
    for folder in sorted((base / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, size = _read(folder / "level"), _read(folder / "size")
        if level and size:
            found.append(f"L{level}{letters.get(_read(folder / 'type'), '')} {size}")
    return ", ".join(found)


def _memory(base: pathlib.Path) -> dict[str, Any]:
    total = re.search(r"^MemTotal:\s+(\d+) kB", _read(base / "proc/meminfo"), re.MULTILINE)
    return {"host_memory_capacity": _gib(int(total[1]) * 1024) if total else ""}


def _storage(base: pathlib.Path) -> dict[str, Any]:
    kinds, total = set(), 0
    for folder in (base / "sys/block").glob("*"):
        size = _read(folder / "size")  # in sectors of 512 bytes, whatever the disk's own are
        if re.match(r"(loop|ram|zram|dm-|md|sr|fd)", folder.name) or not size.isdigit():
            continue
        if int(size) > 0:
            total += int(size) * 512
            kinds.add(_kind_of_disk(folder))
    return {
        "host_storage_type": ", ".join(sorted(kinds)),
        "host_storage_capacity": _gib(total) if total else "",
    }


def _kind_of_disk(folder: pathlib.Path) -> str:
    if re.match(r"x?vd", folder.name):
        return "virtual disk"  # what lies behind it is not told, though it says that it spins
    if folder.name.startswith("nvme"):
        return "NVMe"
    return "HDD" if _read(folder / "queue/rotational") == "1" else "SSD"


def _network(base: pathlib.Path) -> dict[str, Any]:
    rates = [
        f"InfiniBand {_read(path)}"
        for path in (base / "sys/class/infiniband").glob("*/ports/*/rate")
        if _read(path)
    ]
    for folder in (base / "sys/class/net").glob("*"):
        speed = _read(folder / "speed")  # Mb/s; -1 when the card does not know
        if (folder / "device").exists() and speed.isdigit() and int(speed) > 0:
            rates.append(f"Ethernet {int(speed) / 1000:g} Gb/s")
    return {"host_networking": ", ".join(f"{rates.count(r)}x {r}" for r in sorted(set(rates)))}


def _software(base: pathlib.Path) -> dict[str, Any]:
    release = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read(base / "etc/os-release"), re.MULTILINE)
    kernel = _read(base / "proc/sys/kernel/osrelease")
    parts = [release[1] if release else "", f"Linux {kernel}" if kernel else ""]
    driver = re.search(r"Module\s+([\d.]+)", _read(base / "proc/driver/nvidia/version"))
    return {
        "operating_system": ", ".join(part for part in parts if part),
        "other_software_stack": {"nvidia driver": driver[1]} if driver else {},
    }


def _gib(size: int) -> str:
    value = size / 2**30
    return f"{math.floor(value)} GiB" if value >= 100 else f"{value:.1f} GiB"


if __name__ == "__main__":
    print(json.dumps(this_machine(), indent=2))
