"""Writes tests/models/data/lora_reference.npz: adapters as `peft` saves them, and the logits it computes with them.

Run by hand, with torch, transformers and peft installed, from the root of the repository:

    python scripts/make_lora_reference.py

It also shows that `peft` reads what `lora_peft.save` writes: the adapter of the kind "shared" goes through our files
into a fresh model, whose logits and whose own files must be the same to the last bit.

The base is the small "llama31" of make_decoder_reference.py; the adapters' weights follow from their names, too.
torch, transformers and peft are imported where they are used.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from mlperf_jax.models import lora_peft
from mlperf_jax.models.decoder_config import DecoderConfig, Lora, RopeScaling
from scripts import make_decoder_reference as base

OUTPUT = Path(__file__).parents[1] / "tests/models/data/lora_reference.npz"
RANK, ALPHA, DROPOUT = 3, 6, 0.1
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]
BASE_NAME = "some/llama"
# whether query, key and value share their A, as ours do
KINDS = {"apart": False, "shared": True}
FILES = ("adapter_config.json", "adapter_model.safetensors")


def weight(name: str, shape: tuple[int, ...], shared: bool) -> np.ndarray:
    """The float32 array that goes by a name of peft's."""
    if shared and "lora_A" in name:
        name = name.replace("k_proj", "q_proj").replace("v_proj", "q_proj")
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    return draw.standard_normal(shape).astype(np.float32) / 4


def build(shared: bool) -> Any:
    """The model of transformers with adapters of peft, their weights those of `weight`."""
    import peft
    import torch

    model, _ = base.build("llama31")
    model.config.name_or_path = model.name_or_path = BASE_NAME
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=DROPOUT,
        target_modules=PROJECTIONS,
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(model, config)
    state = peft.get_peft_model_state_dict(model)
    given = {n: torch.from_numpy(weight(n, tuple(x.shape), shared)) for n, x in state.items()}
    peft.set_peft_model_state_dict(model, given)
    return model.eval()


def config(lora: Lora | None) -> DecoderConfig:
    """The same model as ours."""
    heads, kv_heads, head_dim = base.HEADS["llama31"]
    scaling = base.SCALING
    return DecoderConfig(
        layers=base.LAYERS,
        width=base.WIDTH,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=base.HIDDEN,
        vocab=base.VOCAB,
        rope_theta=base.THETA["llama31"],
        rope_scaling=RopeScaling(
            factor=scaling["factor"],
            low_factor=scaling["low"],
            high_factor=scaling["high"],
            original_positions=scaling["original"],
        ),
        lora=lora,
    )


def logits(model: Any) -> np.ndarray:
    """[B, T, V] of the reference's tokens."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(base.tokens())).logits.numpy()


def saved(model: Any) -> dict[str, np.ndarray]:
    """The bytes of the files that peft writes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {n: np.frombuffer((Path(folder) / n).read_bytes(), np.uint8) for n in FILES}


def check_ours(theirs: dict[str, np.ndarray], expected: np.ndarray) -> None:
    """Reads theirs, writes ours, has peft read ours, and compares logits and files."""
    import peft

    with tempfile.TemporaryDirectory() as place:
        given, ours = Path(place) / "given", Path(place) / "ours"
        given.mkdir()
        for name, content in theirs.items():
            (given / name).write_bytes(content.tobytes())
        adapter = lora_peft.read(given)
        lora_peft.save(ours, adapter.weights, config(adapter.lora), base=BASE_NAME)
        fresh, _ = base.build("llama31")
        model = peft.PeftModel.from_pretrained(fresh, str(ours)).eval()
        assert np.array_equal(logits(model), expected), "the logits differ"
        written = {name: (ours / name).read_bytes() for name in FILES}
    again = saved(model)
    tensors = "adapter_model.safetensors"
    assert written[tensors] == theirs[tensors].tobytes() == again[tensors].tobytes()
    configs = [json.loads(bytes(each["adapter_config.json"])) for each in (written, theirs, again)]
    for each in configs:
        each["target_modules"] = sorted(each["target_modules"])  # a set in peft
    assert configs[0] == configs[1] == configs[2], configs
    print(f"peft {peft.__version__} reads ours: same logits, and saves the same bytes again")


def main() -> None:
    arrays = {}
    for kind, shared in KINDS.items():
        model = build(shared)
        arrays[f"{kind}/logits"] = logits(model)
        with model.disable_adapter():
            changed = abs(arrays[f"{kind}/logits"] - logits(model)).max()
        files = saved(model)
        arrays |= {f"{kind}/{name}": content for name, content in files.items()}
        print(f"{kind}: the adapter changes logits by up to {changed:.2f}")
        if shared:
            check_ours(files, arrays[f"{kind}/logits"])
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUTPUT, **arrays)
    print(f"{OUTPUT.name}: {OUTPUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
