"""Writes tests/models/data/resnet_reference.npz: what torch computes with ResNet v1.5.

Run by hand, with torch installed, from the root of the repository:

    python scripts/make_resnet_reference.py

The network is torchvision's (same names, same strides) written out in torch, so torchvision is not
needed. Weights and images follow from names and shapes, hence the file holds results only. The test
imports this file for them; torch is imported where it is used.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

OUTPUT = Path(__file__).parents[1] / "tests/models/data/resnet_reference.npz"

FULL = {"stages": (3, 4, 6, 3), "width": 64, "classes": 1000}
FULL_IMAGES = (2, 224)
SMALL = {"stages": (1, 2, 1, 1), "width": 8, "classes": 10}
SMALL_IMAGES = (8, 64)
SMOOTHING = 0.1
PADDINGS = ("symmetric", "same")


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array that goes by a torchvision name."""
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    noise = draw.standard_normal(shape).astype(np.float32)
    if len(shape) == 4:
        return noise * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    if len(shape) == 2:
        return noise * np.float32(np.sqrt(1 / shape[1]))
    if name.endswith("running_var"):
        return np.exp(noise / 4)
    if name.endswith("weight"):
        # the last norm of a block is damped, or activations would double with each block
        return (1 + noise / 10) * np.float32(0.15 if "bn3" in name else 1)
    return noise / 10


def images(count: int, side: int) -> np.ndarray:
    """[count, side, side, 3] float32, of the size that normalised images have."""
    draw = np.random.RandomState(side)
    return draw.standard_normal((count, side, side, 3)).astype(np.float32)


def labels(count: int, classes: int) -> np.ndarray:
    """[count] int64."""
    return np.random.RandomState(count).randint(0, classes, count)


def network(stages, width, classes, padding):
    """Torchvision's ResNet with random weights; padding "same" pads strided 3x3 windows by (0, 1) as TensorFlow does."""
    import torch
    from torch import nn
    from torch.nn import functional

    symmetric = padding == "symmetric"

    class Block(nn.Module):
        def __init__(self, features_in, inner, stride, project):
            super().__init__()
            self.conv1 = nn.Conv2d(features_in, inner, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(inner)
            self.explicit = stride == 2 and not symmetric
            pad = 0 if self.explicit else 1
            self.conv2 = nn.Conv2d(inner, inner, 3, stride, pad, bias=False)
            self.bn2 = nn.BatchNorm2d(inner)
            self.conv3 = nn.Conv2d(inner, inner * 4, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(inner * 4)
            self.downsample = None
            if project:
                conv = nn.Conv2d(features_in, inner * 4, 1, stride, bias=False)
                self.downsample = nn.Sequential(conv, nn.BatchNorm2d(inner * 4))

        def forward(self, x):
            y = functional.relu(self.bn1(self.conv1(x)))
            y = functional.pad(y, (0, 1, 0, 1)) if self.explicit else y
            y = functional.relu(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(y))
            return functional.relu(y + (x if self.downsample is None else self.downsample(x)))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            features = width
            for i, blocks in enumerate(stages):
                inner, layer = width * 2**i, []
                for j in range(blocks):
                    stride = 2 if i and not j else 1
                    layer.append(Block(features, inner, stride, project=not j))
                    features = inner * 4
                setattr(self, f"layer{i + 1}", nn.Sequential(*layer))
            self.fc = nn.Linear(features, classes)

        def forward(self, x):
            x = functional.relu(self.bn1(self.conv1(x)))
            if symmetric:
                x = functional.max_pool2d(x, 3, 2, 1)
            else:
                x = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2)
            for i in range(len(stages)):
                x = getattr(self, f"layer{i + 1}")(x)
            return self.fc(x.mean((2, 3)))

    return Net()


def build(stages, width, classes, padding):
    """The network with `weight`s."""
    import torch

    net = network(stages, width, classes, padding)
    state = net.state_dict()
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            state[name] = torch.from_numpy(weight(name, tuple(value.shape)))
    net.load_state_dict(state)
    return net


def as_torch(image: np.ndarray):
    import torch

    return torch.from_numpy(image.transpose(0, 3, 1, 2).copy())


def full_results() -> dict[str, np.ndarray]:
    """Logits of ResNet-50 in evaluation, in float32."""
    import torch

    results = {}
    for padding in PADDINGS:
        with torch.no_grad():
            logits = build(**FULL, padding=padding).eval()(as_torch(images(*FULL_IMAGES)))
        results[f"full/{padding}/logits"] = logits.numpy()
    return results


def small_results() -> dict[str, np.ndarray]:
    """One training forward and backward of a small one, in float64."""
    import torch

    results = {}
    count, side = SMALL_IMAGES
    label = torch.from_numpy(labels(count, SMALL["classes"]))
    for padding in PADDINGS:
        net = build(**SMALL, padding=padding).double().train()
        logits = net(as_torch(images(count, side)).double())
        loss = torch.nn.functional.cross_entropy(logits, label, label_smoothing=SMOOTHING)
        loss.backward()
        key = f"small/{padding}"
        results[f"{key}/logits"] = logits.detach().numpy()
        results[f"{key}/loss"] = loss.detach().numpy()
        for name, value in net.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                results[f"{key}/stats/{name}"] = value.numpy()
        for name, value in net.named_parameters():
            results[f"{key}/grad_norm/{name}"] = value.grad.norm().numpy()
        for name in ("conv1.weight", "layer2.0.conv2.weight", "layer2.0.downsample.0.weight"):
            results[f"{key}/grad/{name}"] = net.get_parameter(name).grad.numpy()
    return results


def main():
    import torch

    results = {**full_results(), **small_results()}
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUTPUT, **results)
    size = OUTPUT.stat().st_size
    print(f"{OUTPUT.name}: {len(results)} arrays, {size:,} bytes, torch {torch.__version__}")
    for key, value in results.items():
        if key.endswith(("logits", "loss")):
            print(f"  {key}: mean {value.mean():.4f}, std {value.std():.4f}")


if __name__ == "__main__":
    main()
