"""Writes tests/models/data/unet3d_reference.npz: what torch computes with the 3D U-Net of the benchmark.

Run by hand, with torch installed, from the root of the repository:

    python scripts/make_unet3d_reference.py

The network is written out in torch under the names of the reference's state dict. Weights and volumes
follow from names and shapes, so the file holds results only. The tests import this file for them; torch is
imported where it is used.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

OUTPUT = Path(__file__).parents[1] / "tests/models/data/unet3d_reference.npz"

FILTERS = (4, 6)
CLASSES = 3
PATCHES = (2, 8)
RESAMPLED = ((7, 10, 9), (11, 6, 13))  # a volume, and its shape at another spacing


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array that goes by a name of the reference."""
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    noise = draw.standard_normal(shape).astype(np.float32)
    if len(shape) == 5:
        return noise * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    return noise / 5 + (1 if name.endswith("1.weight") else 0)


def patches(count: int, side: int) -> np.ndarray:
    """[count, side, side, side] float32, with an offset, as CT volumes have one."""
    draw = np.random.RandomState(side)
    return draw.standard_normal((count, side, side, side)).astype(np.float32) - 1


def labels(count: int, side: int) -> np.ndarray:
    """[count, side, side, side] uint8; the last patch lacks class 2."""
    label = np.random.RandomState(count).choice(3, (count, side, side, side), p=(0.8, 0.15, 0.05))
    label[-1][label[-1] == 2] = 0
    return label.astype(np.uint8)


def scan(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A volume in Hounsfield units, float32, and labels, uint8."""
    draw = np.random.RandomState(sum(shape))
    return draw.normal(0, 200, shape).astype(np.float32), draw.randint(0, 3, shape).astype(np.uint8)


def shapes(filters: tuple[int, ...], classes: int) -> dict[str, tuple[int, ...]]:
    """The reference's state dict: name -> shape."""
    found: dict[str, tuple[int, ...]] = {}

    def block(name, features_in, features_out):
        for i, features in ((1, features_in), (2, features_out)):
            found[f"{name}.conv{i}.0.weight"] = (features_out, features, 3, 3, 3)
            found[f"{name}.conv{i}.1.weight"] = found[f"{name}.conv{i}.1.bias"] = (features_out,)

    block("input_block", 1, filters[0])
    for i in range(len(filters) - 1):
        block(f"downsample.{i}", filters[i], filters[i + 1])
    block("bottleneck", filters[-1], filters[-1])
    wide = (filters[-1], *reversed(filters))
    for i in range(len(filters)):
        found[f"upsample.{i}.upsample_conv.0.weight"] = (wide[i], wide[i + 1], 2, 2, 2)
        found[f"upsample.{i}.upsample_conv.0.bias"] = (wide[i + 1],)
        block(f"upsample.{i}", 2 * wide[i + 1], wide[i + 1])
    found["output.conv.weight"] = (classes, filters[0], 1, 1, 1)
    found["output.conv.bias"] = (classes,)
    return found


def weights(filters: tuple[int, ...] = FILTERS, classes: int = CLASSES) -> dict[str, np.ndarray]:
    """The reference's state dict."""
    return {name: weight(name, shape) for name, shape in shapes(filters, classes).items()}


def forward(state, x):
    """The network in torch's functions: patches [B, 1, S, S, S] to logits [B, K, S, S, S]."""
    import torch
    from torch.nn import functional

    def block(name, x, stride=1):
        for i in (1, 2):
            x = functional.conv3d(
                x, state[f"{name}.conv{i}.0.weight"], stride=stride if i == 1 else 1, padding=1
            )
            norm = state[f"{name}.conv{i}.1.weight"], state[f"{name}.conv{i}.1.bias"]
            x = functional.relu(functional.instance_norm(x, weight=norm[0], bias=norm[1], eps=1e-5))
        return x

    skips = [block("input_block", x)]
    while f"downsample.{len(skips) - 1}.conv1.0.weight" in state:
        skips.append(block(f"downsample.{len(skips) - 1}", skips[-1], stride=2))
    x = block("bottleneck", skips[-1], stride=2)
    for i, skip in enumerate(reversed(skips)):
        name = f"upsample.{i}.upsample_conv.0"
        x = functional.conv_transpose3d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=2)
        x = block(f"upsample.{i}", torch.cat((x, skip), dim=1))
    return functional.conv3d(x, state["output.conv.weight"], state["output.conv.bias"])


def loss_of(logits, label):
    """Half cross entropy, half 1 - Dice of the classes above 0."""
    import torch
    from torch.nn import functional

    xent = functional.cross_entropy(logits, label.long())
    prob = torch.softmax(logits, 1)[:, 1:]
    true = functional.one_hot(label.long(), logits.shape[1]).movedim(-1, 1)[:, 1:].to(prob)
    both, either = (prob * true).sum((2, 3, 4)), prob.sum((2, 3, 4)) + true.sum((2, 3, 4))
    return (xent + (1 - (2 * both + 1e-6) / (either + 1e-6)).mean()) / 2


def network_results() -> dict[str, np.ndarray]:
    """Logits in float32; logits, loss and gradients in float64."""
    import torch

    image, label = (torch.from_numpy(make(*PATCHES)) for make in (patches, labels))
    given = {name: torch.from_numpy(value) for name, value in weights().items()}
    results = {}
    with torch.no_grad():
        results["float32/logits"] = forward(given, image[:, None]).movedim(1, -1)[:1].numpy()
    state = {name: value.double().requires_grad_() for name, value in given.items()}
    logits = forward(state, image[:, None].double())
    loss = loss_of(logits, label)
    loss.backward()
    results["loss"] = loss.detach().numpy()
    results["logits_sum"] = logits.detach().sum((2, 3, 4)).numpy()
    for name, value in state.items():
        results[f"grad_norm/{name}"] = value.grad.norm().numpy()
    for name in (
        "input_block.conv1.0.weight",
        "downsample.0.conv1.0.weight",
        "upsample.0.upsample_conv.0.weight",
        "upsample.0.upsample_conv.0.bias",
        "upsample.1.conv1.1.weight",
        "output.conv.weight",
    ):
        results[f"grad/{name}"] = state[name].grad.numpy()
    return results


def resampling_results() -> dict[str, np.ndarray]:
    """Volume and labels at another shape, as the reference's preparation interpolates them."""
    import torch
    from torch.nn.functional import interpolate

    shape, wanted = RESAMPLED
    image, label = (torch.from_numpy(x)[None, None] for x in scan(shape))
    image = interpolate(image, size=wanted, mode="trilinear", align_corners=True)
    label = interpolate(label, size=wanted, mode="nearest")
    return {"resampled/image": image[0, 0].numpy(), "resampled/label": label[0, 0].numpy()}


def main():
    import torch

    results = {**network_results(), **resampling_results()}
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUTPUT, **results)
    size = OUTPUT.stat().st_size
    print(f"{OUTPUT.name}: {len(results)} arrays, {size:,} bytes, torch {torch.__version__}")
    print(f"  loss {float(results['loss']):.6f}")


if __name__ == "__main__":
    main()
