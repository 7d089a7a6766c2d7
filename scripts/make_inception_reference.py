"""Writes tests/models/data/inception_reference.npz: features of pytorch-fid's Inception v3, in float64.

Run by hand, with torch, torchvision and pytorch-fid installed, from the root of the repository:

    python scripts/make_inception_reference.py

Weights and images follow from names and seeds; the tests import this file for them. Two sizes: images whose last
map is 2 x 3, where every pool and every orientation of a kernel shows, and images that are resized first.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

OUTPUT = Path(__file__).parents[1] / "tests/models/data/inception_reference.npz"

UNSCALED = (2, 107, 139)  # images, height, width
SCALED, SIDE = (2, 90, 64), 80  # are made squares of this side


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array that goes by a name of torch's."""
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    noise = draw.standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return noise * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    if name.endswith("running_var"):
        # not far above epsilon, so that another one shows
        return np.exp(noise / 4) / 20
    return (noise / 10 + 0.2) if name.endswith("bn.weight") else noise / 10


def images(count: int, height: int, width: int) -> np.ndarray:
    """[count, height, width, 3] float32 in [0, 1]."""
    return np.random.RandomState(height).rand(count, height, width, 3).astype(np.float32)


def features(net, image: np.ndarray, side: int | None) -> np.ndarray:
    """[B, 2048] in float64; `side` is what pytorch-fid has 299 for."""
    import torch

    x = torch.from_numpy(image.astype(np.float64).transpose(0, 3, 1, 2))
    if side is not None:
        size = (side, side)
        x = torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    with torch.no_grad():
        return net(x)[0][..., 0, 0].numpy()


def main() -> None:
    import torch
    from pytorch_fid import inception

    counted: dict[str, int] = {}

    def state_dict(url: str, progress: bool) -> dict:
        """Instead of the download."""
        network = inception._inception_v3(num_classes=1008, aux_logits=False, weights=None)
        counted["parameters"] = sum(p.numel() for p in network.parameters())
        return {
            name: value
            if name.endswith("num_batches_tracked")
            else torch.from_numpy(weight(name, tuple(value.shape)))
            for name, value in network.state_dict().items()
        }

    torch.set_num_threads(1)
    inception.load_state_dict_from_url = state_dict
    net = inception.InceptionV3([3], resize_input=False).double().eval()
    saved = {
        "unscaled": features(net, images(*UNSCALED), None),
        "scaled": features(net, images(*SCALED), SIDE),
        "parameters": np.array(counted["parameters"]),
    }
    for name in ("unscaled", "scaled"):
        print(f"{name}: mean {saved[name].mean():.4f}, std {saved[name].std():.4f}")
    np.savez_compressed(OUTPUT, **saved)
    print(f"{OUTPUT.name}: {OUTPUT.stat().st_size:,} bytes, {saved['parameters']:,} parameters")


if __name__ == "__main__":
    main()
