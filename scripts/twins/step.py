"""A benchmark's training step in PyTorch, on the device that there is."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch

from mlperf_jax.core import mesh as meshes, synthetic
from scripts.twins import training

# benchmark -> the file that has its model
TWINS = {
    "resnet": "resnet",
    "unet3d": "unet3d",
    "retinanet": "retinanet",
    "bert": "bert",
    "gpt3": "decoder",
    "llama31_8b": "decoder",
    "llama31_405b": "decoder",
    "llama2_70b_lora": "decoder",
    "stable_diffusion": "diffusion",
    "rgat": "rgat",
    "dlrm_dcnv2": "dlrm",
}


class Twin:
    """A benchmark's step in PyTorch, on the device that there is.

    Args:
        given: the benchmark, its `dtype` decided.
        batch: what a step takes; by default what ours was measured with.
        compiled: with torch.compile.

    Attributes:
        rows: of the batch.
        parameters: how many weights are trained.
        note: what is not as in ours, if anything.
    """

    def __init__(self, given: Any, batch: Any = None, *, compiled: bool = False) -> None:
        made = importlib.import_module(f"scripts.twins.{TWINS[given.name]}")
        if hasattr(made, "as_measured"):
            given = made.as_measured(given)
        if batch is None:
            batch = synthetic.batches(given, given.buckets(), meshes.make_mesh("data=1"))[0]
        self.given, self.note = given, getattr(made, "NOTE", "")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = getattr(torch, given.dtype)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        with torch.device(self.device):
            self.model = made.Model(given).train()
            self.optimizer = made.optimizer(self.model, given)
        self.trained = training.trained(self.model)
        self.parameters = sum(p.numel() for p in self.trained)
        arrays = {name: np.asarray(leaf) for name, leaf in batch.items()}
        self.rows, parts = len(next(iter(arrays.values()))), given.gradient_accumulation_steps
        pieces = [
            {name: leaf[part::parts] for name, leaf in arrays.items()} for part in range(parts)
        ]
        placed = getattr(made, "place", lambda given, piece: piece)
        self.parts = [
            {name: _tensor(leaf, self.device) for name, leaf in placed(given, piece).items()}
            for piece in pieces
        ]
        if compiled:
            self.model.compile_parts()

    def step(self) -> torch.Tensor:
        """Loss, gradients, clipping and the update; returns the loss of the last part."""
        for part in self.parts:
            # a cache would keep a second copy of all weights until the forward pass is over
            low = {"enabled": self.dtype != torch.float32, "cache_enabled": False}
            with torch.autocast(self.device, self.dtype, **low):
                loss = self.model(part) / len(self.parts)
            loss.backward()
        if self.given.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.trained, self.given.clip_norm, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach() * len(self.parts)

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def _tensor(array: np.ndarray, device: str) -> torch.Tensor:
    """On the device, whole numbers as PyTorch's indices are."""
    made = torch.from_numpy(np.array(array))
    return made.to(device, torch.int64 if made.dtype in (torch.int32, torch.uint8) else None)
