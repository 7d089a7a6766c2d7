"""Writes tests/models/data/bert_reference.npz: what `transformers` computes with a small BERT in float64.

Run by hand, with torch and transformers installed, from the root of the repository:

    python scripts/make_bert_reference.py

Weights and batch follow from names and seeds, hence the file holds results only: logits of both heads, both
losses, and of every gradient its norm and a projection. The tests import this file for the rest; torch and
transformers are imported where they are used.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

OUTPUT = Path(__file__).parents[1] / "tests/models/data/bert_reference.npz"

SIZES = {"layers": 3, "width": 32, "heads": 4, "hidden": 56, "vocab": 90, "max_positions": 24}
LENGTHS = (20, 9, 13, 7)  # of the sequences; what is left of 24 is padding
LENGTH, SLOTS = 24, 5


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Normal float32 numbers that go by a name."""
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    return draw.standard_normal(shape).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array that goes by a name of transformers."""
    noise = drawn(name, shape)
    if len(shape) == 2:
        return noise * np.float32(1.5 / np.sqrt(SIZES["width"]))
    return 1 + noise / 10 if name.endswith("weight") else noise / 10


def batch() -> dict[str, np.ndarray]:
    """One sequence a row, padded: arrays by the names that `models.bert` gives them, and a mask."""
    draw = np.random.RandomState(7)
    rows, lengths = len(LENGTHS), np.array(LENGTHS)[:, None]
    real = np.arange(LENGTH) < lengths
    at = np.stack([np.sort(draw.permutation(np.arange(1, n))[:SLOTS]) for n in LENGTHS])
    used = np.arange(SLOTS) < np.array([5, 2, 3, 1])[:, None]
    return {
        "tokens": np.where(real, draw.randint(1, SIZES["vocab"], (rows, LENGTH)), 0),
        "types": (real & (np.arange(LENGTH) >= lengths // 2)).astype(np.int64),
        "real": real,
        "at": np.where(used, at, 0),
        "ids": np.where(used, draw.randint(0, SIZES["vocab"], at.shape), 0),
        "weights": used.astype(np.float32),
        "next": draw.randint(0, 2, rows),
    }


def build(hidden_act: str = "gelu_new") -> Any:
    """The network in torch, in float64, holding `weight`s."""
    import torch
    import transformers

    config = transformers.BertConfig(
        num_hidden_layers=SIZES["layers"],
        hidden_size=SIZES["width"],
        num_attention_heads=SIZES["heads"],
        intermediate_size=SIZES["hidden"],
        vocab_size=SIZES["vocab"],
        max_position_embeddings=SIZES["max_positions"],
        hidden_act=hidden_act,
        layer_norm_eps=1e-12,
        attn_implementation="eager",
    )
    model = transformers.BertForPreTraining(config).eval().double()
    state = {n: torch.from_numpy(weight(n, tuple(p.shape))) for n, p in model.named_parameters()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert all("predictions.decoder" in name or "position_ids" in name for name in missing)
    assert not unexpected
    return model


def run(model: Any) -> dict[str, Any]:
    """Logits of the masked slots and of the next sentence, and both losses."""
    import torch
    from torch.nn import functional as F

    b = {name: torch.from_numpy(value) for name, value in batch().items()}
    out = model(b["tokens"], attention_mask=b["real"].long(), token_type_ids=b["types"])
    slots = b["at"][..., None].expand(-1, -1, SIZES["vocab"])
    masked = out.prediction_logits.gather(1, slots)
    each = F.cross_entropy(masked.flatten(0, 1), b["ids"].flatten(), reduction="none")
    used = b["weights"].flatten().double()
    return {
        "masked_logits": masked,
        "next_logits": out.seq_relationship_logits,
        "masked_loss": (used * each).sum() / used.sum(),
        "next_loss": F.cross_entropy(out.seq_relationship_logits, b["next"]),
    }


def summary(gradients: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """By name the norm of an array and its product with another one, which no permutation keeps."""
    return {
        name: [float(np.sqrt((g * g).sum())), float((g * drawn(f"probe {name}", g.shape)).sum())]
        for name, g in gradients.items()
    }


def main() -> None:
    import torch

    torch.set_num_threads(1)
    model = build()
    found = run(model)
    (found["masked_loss"] + found["next_loss"]).backward()
    gradients = {n: p.grad.numpy() for n, p in model.named_parameters()}
    saved = {name: value.detach().numpy() for name, value in found.items()}
    with torch.no_grad():
        saved["exact_gelu_masked_logits"] = run(build("gelu"))["masked_logits"].numpy()
    text = json.dumps({"shapes": {n: g.shape for n, g in gradients.items()}, **summary(gradients)})
    saved["gradients"] = np.frombuffer(text.encode(), np.uint8)
    np.savez_compressed(OUTPUT, **saved)
    print(f"{OUTPUT.name}: {OUTPUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
