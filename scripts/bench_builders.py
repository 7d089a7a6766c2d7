"""What preparing data costs: samples a second and core that the builders write, and hours at full size.

    python scripts/bench_builders.py --cores 1                 # three minutes, 1 GB of temporary disk
    python scripts/bench_builders.py --cores 1 resnet unet3d

Each builder makes its files anew in each round, from small sources of the real form: photographs of 500 x 375 in
class folders for resnet, of 1024 x 768 in a COCO export for retinanet, one scan of 512 x 512 x 64 as NIfTI for unet3d,
raw logs with 26 columns of Zipf's law for dlrm_dcnv2, docstrings as C4's json.gz for the language models. By processor
time, so a disk that is slower than a core decides in its place; "core-hours" are the full size at the median rate.
"copy" is 64 MiB copied by NumPy, a yardstick.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable

import measuring

# isort: split

import nibabel
import numpy as np

sys.path.insert(0, str(measuring.ROOT / "tests" / "input_pipelines"))

import criteo_logs
import photographs

from mlperf_jax.input_pipelines import images, text
from mlperf_jax.input_pipelines.criteo import BAGS, builder as criteo, plan as criteo_plan
from mlperf_jax.input_pipelines.imagenet import ImageNet
from mlperf_jax.input_pipelines.kits19 import builder as kits19
from mlperf_jax.input_pipelines.openimages import builder as openimages, tiny
from mlperf_jax.input_pipelines.tokens import builder as tokens

PHOTOGRAPHS, SCENES, PLANES, LINES = 256, 64, 64, 40_000
# what a builder is given, how many of them, and how many the full size has
FULL = {
    "resnet": ("images", PHOTOGRAPHS, 1_331_167),
    "retinanet": ("images", SCENES, 1_195_082),
    "unet3d": ("planes of 512 x 512", PLANES, 0),
    "dlrm_dcnv2": ("log lines", LINES, 4_373_472_329),
    "C4": ("MB of text", 0.0, 0),
}
# first axis down the body, second to the back, third to the left, as KiTS19 lies; millimetres
AFFINE = np.array([[0, 0, -0.78, 0], [0, -0.78, 0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1]])
Build = Callable[[str], object]


def jpegs(height: int, width: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [images.encode_jpeg(photographs.photograph(rng, height, width), 90) for _ in range(8)]


def resnet(source: pathlib.Path) -> Build:
    made = jpegs(375, 500)
    for index in range(PHOTOGRAPHS):
        wnid = ("n01440764", "n01443537", "n01484850", "n01491361")[index % 4]
        path = source / ("val" if index % 16 < 4 else "train") / wnid / f"{wnid}_{index}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made[index % len(made)])
    return lambda target: ImageNet().build(target, str(source))


def retinanet(source: pathlib.Path) -> Build:
    made = jpegs(768, 1024)
    tiny.export(str(source), {"train": SCENES // 2, "validation": SCENES // 2})
    for split in ("train", "validation"):
        labels = source / split / "labels" / "openimages-mlperf.json"
        document = json.loads(labels.read_text())
        for number, image in enumerate(document["images"]):
            image |= {"height": 768, "width": 1024}
            (source / split / "data" / image["file_name"]).write_bytes(made[number % len(made)])
        labels.write_text(json.dumps(document))
    return lambda target: openimages.write(f"{target}/x/1.0.0", str(source), len(tiny.CLASSES))


def unet3d(source: pathlib.Path) -> Build:
    rng, case = np.random.default_rng(0), source / "case_00000"
    case.mkdir()
    image = np.stack([photographs.photograph(rng, 512, 512)[..., 0] for _ in range(PLANES)])
    for name, voxels in (
        ("imaging", image.astype(np.int16) * 4 - 512),
        ("segmentation", image // 86),
    ):
        volume = nibabel.Nifti1Image(voxels, AFFINE)
        nibabel.save(volume, case / f"{name}.nii.gz")

    def build(target: str) -> None:
        pathlib.Path(target).mkdir()
        kits19.prepare_case(case, pathlib.Path(target), 128)

    return build


def dlrm_dcnv2(source: pathlib.Path) -> Build:
    rng, days = np.random.default_rng(0), 4
    for day in range(days):
        numbers = rng.integers(0, 70_000, (LINES // days, 13))
        words = rng.zipf(1.2, (LINES // days, 26)).astype(np.uint64) * 2654435761 % 2**32
        lines = (
            "\t".join(["0", *map(str, counts), *(f"{word:08x}" for word in row)])
            for counts, row in zip(numbers, words)
        )
        (source / f"day_{day}").write_text("\n".join(lines) + "\n")

    def build(
        target: str,
    ) -> None:  # small tables, whose bags are drawn in no time, of official sizes
        given = str(source), target, tuple(range(days)), criteo_logs.ROWS, BAGS
        plan = criteo_plan.BuildPlan(*given)
        criteo.write(plan, lambda line: None)

    return build


def c4(source: pathlib.Path) -> Build:
    documents = text.docstrings()
    tokenizer, shard = source / "tokenizer.json", source / "c4.json.gz"
    text.train_tokenizer(documents, 8000, tokenizer)
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    shard.write_bytes(gzip.compress(lines.encode()))
    size = sum(len(document.encode()) for document in documents) / 1e6
    FULL["C4"] = (FULL["C4"][0], size, 0)
    return lambda target: tokens.build([shard], target, tokenizer, processes=1)


SOURCES = {
    "resnet": resnet,
    "retinanet": retinanet,
    "unet3d": unet3d,
    "dlrm_dcnv2": dlrm_dcnv2,
    "C4": c4,
}


def main() -> None:
    parser = measuring.parser(__doc__, seconds=0)
    parser.add_argument("names", nargs="*", default=list(SOURCES), help="default: all")
    given = parser.parse_args()
    print(measuring.header())
    source, target = np.ones(1 << 23), np.zeros(1 << 23)
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Callable[[], object]] = {"copy": lambda: np.copyto(target, source)}
        for name in given.names:
            place = pathlib.Path(folder, name)
            place.mkdir()
            sides[name] = anew(SOURCES[name](place), f"{folder}/{name}.built")
        spent = measuring.in_turns(sides, given.rounds, given.seconds, settle=False)
    for name in given.names:
        what, count, whole = FULL[name]
        rates = [count / seconds for seconds in spent[name]]
        hours = sorted(whole / rate / 3600 for rate in rates)[len(rates) // 2]
        full = f", {measuring.number(hours, 2)} core-hours of all {whole:,}" if whole else ""
        print(f"  {name}: {measuring.spread(rates)} {what} a second and core{full}")
    measuring.report({"copy": spent["copy"]}, "copy", "a call")


def anew(build: Build, target: str) -> Callable[[], None]:
    """The build into a folder that is not there yet, without what it says."""

    def run() -> None:
        parent = pathlib.Path(target).parent
        for left in parent.glob(f"{pathlib.Path(target).name}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            build(target)

    return run


if __name__ == "__main__":
    main()
