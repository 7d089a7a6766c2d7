"""Writes what OpenCLIP, transformers, torchvision and ftfy make of small models, images and captions.

Run by hand, where open_clip_torch, transformers and torchvision are installed, from the root of the repository:

    PYTHONPATH=. python scripts/make_clip_reference.py

It writes tests/models/data/clip_reference.npz (results of models in float64, preprocessed images) and
tests/input_pipelines/data/clip_captions.json (captions, their ids, the merges that they need). Weights and inputs
follow from names and seeds; the tests import this file for them. The libraries are imported where they are used.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from scripts.make_bert_reference import drawn, summary

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "tests/models/data/clip_reference.npz"
CAPTIONS = ROOT / "tests/input_pipelines/data/clip_captions.json"

FEATURES = 24
TEXT = {"layers": 3, "width": 32, "heads": 4, "hidden": 128, "vocab": 60, "tokens": 11}
VISION = {"layers": 2, "width": 40, "heads": 4, "hidden": 160, "side": 12, "patch": 4}
WIDE = {"layers": 2, "width": 1024, "heads": 16, "hidden": 4096, "vocab": 50, "tokens": 77}
WIDE_FEATURES = 8
SIDE = 24  # of preprocessed images


# -- what follows from names and seeds ---------------------------------------------------------------


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array that goes by a name of OpenCLIP or transformers."""
    noise = drawn(name, shape)
    if name == "logit_scale":
        return np.float32(1.3) + noise / 10
    if "embedding" in name and "patch" not in name:
        return noise
    if len(shape) > 1:
        return noise * np.float32(1.5 / np.sqrt(np.prod(shape[1:])))
    return 1 + noise / 10 if name.endswith("weight") else noise / 10


def captions(sizes: dict[str, int] = TEXT, rows: int = 4) -> np.ndarray:
    """Tokens [rows, T]: start, words, end, zeros; one without padding, and one whose end stands twice."""
    draw, (vocab, tokens) = np.random.RandomState(3), (sizes["vocab"], sizes["tokens"])
    found = np.zeros((rows, tokens), np.int64)
    for row, length in enumerate((tokens, 5, 7, 2)[:rows]):
        found[row, :length] = draw.randint(1, vocab - 2, length)
        found[row, 0], found[row, length - 1] = vocab - 2, vocab - 1
    found[rows // 2, 3] = vocab - 1
    return found


def images() -> np.ndarray:
    """[4, side, side, 3], already normalised."""
    side = VISION["side"]
    return np.random.RandomState(4).standard_normal((4, side, side, 3)).astype(np.float32)


def photographs() -> list[np.ndarray]:
    """Float images in 0 ... 1: wider than high and higher than wide, to shrink and to enlarge, and as large."""
    draw = np.random.RandomState(5)
    sizes = ((50, 83), (71, 40), (15, 20), (SIDE, 31))
    return [draw.random_sample((*size, 3)).astype(np.float32) for size in sizes]


def aliased() -> np.ndarray:
    """[2, 9, 13, 3] float64, to be resized to 20 by 7."""
    return np.random.RandomState(6).standard_normal((2, 9, 13, 3))


# -- models ------------------------------------------------------------------------------------------


def filled(model: Any) -> Any:
    """The torch module in float64 with `weight`s by its own names."""
    import torch

    state = {
        n: torch.from_numpy(np.asarray(weight(n, tuple(p.shape))))
        for n, p in model.named_parameters()
    }
    model = model.eval().double()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and not [n for n in missing if "position_ids" not in n]
    return model


def open_clip_model(sizes: dict[str, int] = TEXT, features: int = FEATURES) -> Any:
    """OpenCLIP's model of these sizes."""
    from open_clip import model as models

    text = models.CLIPTextCfg(
        context_length=sizes["tokens"],
        vocab_size=sizes["vocab"],
        width=sizes["width"],
        heads=sizes["heads"],
        layers=sizes["layers"],
    )
    vision = models.CLIPVisionCfg(
        layers=VISION["layers"],
        width=VISION["width"],
        head_width=VISION["width"] // VISION["heads"],
        patch_size=VISION["patch"],
        image_size=VISION["side"],
    )
    return filled(models.CLIP(features, vision, text))


def conditioning(model: Any, tokens: Any) -> Any:
    """Stable Diffusion's use of OpenCLIP's text tower: all blocks but one, then the final norm."""
    x = model.token_embedding(tokens) + model.positional_embedding
    for block in model.transformer.resblocks[:-1]:
        x = block(x, attn_mask=model.attn_mask)
    return model.ln_final(x)


def run_open_clip() -> dict[str, Any]:
    """Results, and a loss whose gradients every weight has."""
    import torch
    from torch.nn import functional as F

    model = open_clip_model()
    tokens = torch.from_numpy(captions())
    pixels = torch.from_numpy(images().transpose(0, 3, 1, 2)).double()
    found = {
        "conditioning": conditioning(model, tokens),
        "text_features": model.encode_text(tokens),
        "image_features": model.encode_image(pixels),
    }
    one, other, scale = model(pixels, tokens)
    found["scores"], found["logits"] = (one * other).sum(-1), scale * one @ other.T
    labels = torch.arange(len(tokens))
    loss = F.cross_entropy(found["logits"], labels) + F.cross_entropy(found["logits"].T, labels)
    probe = torch.from_numpy(drawn("conditioning", tuple(found["conditioning"].shape)))
    found["loss"] = loss + (found["conditioning"] * probe).mean()
    found["loss"].backward()
    gradients = {n: p.grad.numpy() for n, p in model.named_parameters()}
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    told = json.dumps({"shapes": shapes, **summary(gradients)})
    return {"open_clip": np.frombuffer(told.encode(), np.uint8), **arrays(found)}


def run_wide() -> dict[str, Any]:
    """Every 19th row and 64th column of the conditioning of one block at full width, and features of two."""
    import torch

    model = open_clip_model(WIDE, WIDE_FEATURES)
    tokens = torch.from_numpy(captions(WIDE, 2))
    with torch.no_grad():
        found = {"wide_features": model.encode_text(tokens)}
        found["wide_conditioning"] = conditioning(model, tokens)[:, ::19, ::64]
    return arrays(found)


def run_transformers() -> dict[str, Any]:
    """Results of transformers' classes, and the names and shapes in the files that they write."""
    import torch
    import transformers
    from safetensors import safe_open

    text = transformers.CLIPTextConfig(
        vocab_size=TEXT["vocab"],
        hidden_size=TEXT["width"],
        intermediate_size=TEXT["hidden"],
        projection_dim=FEATURES,
        num_hidden_layers=TEXT["layers"],
        num_attention_heads=TEXT["heads"],
        max_position_embeddings=TEXT["tokens"],
        hidden_act="gelu",
        bos_token_id=TEXT["vocab"] - 2,
        eos_token_id=TEXT["vocab"] - 1,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=VISION["width"],
        intermediate_size=VISION["hidden"],
        projection_dim=FEATURES,
        num_hidden_layers=VISION["layers"],
        num_attention_heads=VISION["heads"],
        image_size=VISION["side"],
        patch_size=VISION["patch"],
        hidden_act="gelu",
    )
    both = transformers.CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=FEATURES
    )
    shorter = transformers.CLIPTextConfig(
        **{**text.to_dict(), "num_hidden_layers": TEXT["layers"] - 1}
    )  # as in the folders of Stable Diffusion 2
    tokens = torch.from_numpy(captions())
    pixels = torch.from_numpy(images().transpose(0, 3, 1, 2)).double()
    found, files = {}, {}
    models = {
        "CLIPModel": transformers.CLIPModel(both),
        "CLIPTextModel": transformers.CLIPTextModel(shorter),
        "CLIPTextModelWithProjection": transformers.CLIPTextModelWithProjection(text),
    }
    for kind, model in models.items():
        model.set_attn_implementation("eager")
        model = filled(model)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            if kind == "CLIPModel":
                out = model(input_ids=tokens, pixel_values=pixels)
                found["hub_scores"] = (out.image_embeds * out.text_embeds).sum(-1)
                found["hub_logits"] = out.logits_per_image
            elif kind == "CLIPTextModel":
                found["hub_conditioning"] = model(tokens).last_hidden_state
            else:
                found["hub_text_features"] = model(tokens).text_embeds
            model.save_pretrained(folder)
            file = safe_open(f"{folder}/model.safetensors", framework="numpy")
            shapes = {n: file.get_slice(n).get_shape() for n in file.keys()}  # noqa: SIM118
            assert set(shapes) == {name for name, _ in model.named_parameters()}, kind
            config = json.loads(Path(folder, "config.json").read_text())
            files[kind] = {"shapes": shapes, "config": config}
    return {"hub_files": np.frombuffer(json.dumps(files).encode(), np.uint8), **arrays(found)}


def run_images() -> dict[str, np.ndarray]:
    """OpenCLIP's preprocessing of generated images, and torch's bilinear resizing."""
    import torch
    from open_clip.transform import image_transform
    from torchvision.transforms import ToPILImage

    transform, to_image = image_transform(SIDE, is_train=False), ToPILImage()
    found = [transform(to_image(torch.from_numpy(x.transpose(2, 0, 1)))) for x in photographs()]
    x = torch.from_numpy(aliased().transpose(0, 3, 1, 2))
    resized = torch.nn.functional.interpolate(x, (20, 7), mode="bilinear", align_corners=False)
    return {
        "pixels": torch.stack(found).numpy().transpose(0, 2, 3, 1),
        "bilinear": resized.numpy().transpose(0, 2, 3, 1),
    }


def arrays(found: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in found.items()}


# -- captions ----------------------------------------------------------------------------------------

SUBJECTS = (
    "a small red circle|two dogs and a cat|The Eiffel Tower|an old man's hat|a bowl of ramen".split(
        "|"
    )
)
PLACES = "on a blue ground|at sunset, 4k|in New-York (1987)|by the sea; oil on canvas|beneath the trees".split(
    "|"
)
STYLES = "|, trending on artstation|!!!| -- photo #12|: 3.5\" x 2'".split("|")
PLAIN = """A man riding a wave on top of a surfboard.
A kitchen with a refrigerator, stove and oven with cabinets.
it's they're we've I'm you'll he'd don't CAN'T DOG'S rock'n'roll 'tis ''s '''ll
100% cotton T-Shirt, size XXL / 2XL -- $19.99 (was $29.99)!
iPhone 11 Pro Max 256GB 5.8" OLED 12MP+12MP+12MP
Vintage 1960's Schwinn Stingray Bicycle: Re-Furbished & Ready_to_ride
IMG_20190304_123456.jpg
http://www.example.com/a/b?c=d&e=f#g
antidisestablishmentarianism floccinaucinihilipilification Llanfairpwllgwyngyll
#nofilter #tbt @someone :) ;-) <3 >_< ^_^ ... ???

   leading and trailing   white	space
new
lines and	tabs
Hello,World!How.are;you?
a1b2c3 3d 4x4 mp3 h264 1,000,000 1/2 10^6
x
.
"""
ODD = [
    "Café crème brûlée à la carte, naïve façade",
    "Cafe\u0301 and cafe\u0301s: composed or not",
    "Straße in Köln; Ærøskøbing; Łódź; İstanbul; ŉ ſ ﬁne ﬂuﬃest ﬅ Ǆ ǅ",
    "北京天安门广场 2008年",
    "日本の桜 ｶﾀｶﾅ ひらがな　ＷＩＤＥ１２３",
    "한국어 서울",
    "Красная площадь, Москва",
    "Ελλάδα ΟΔΟΣ Σ",
    "עברית العربية हिन्दी ไทย",
    "emoji 😀🎉👨‍👩‍👧 ❤️ ☕ ✓ ★",
    "“curly” ‘quotes’ ‛odd‟ ʼtis it’s",
    "entities: &amp; &lt;b&gt; &quot;x&quot; &#39;s &#x2019;s &eacute; &EACUTE; &nbsp; &ldquo;hi&rdquo;",
    "<b>tags</b> &ldquo;keep&rdquo; their quotes\nsecond &ldquo;line&rdquo;",
    "first &ldquo;line&rdquo;\n<i>second &ldquo;line&rdquo;</i>\nthird &ldquo;line&rdquo;",
    "&amp;amp;amp; &amp;lt; &copy2019 &notit; &bogus; &#1234567890;",
    "½ ² ³ Ⅷ ٣ ४ 五 x² m³",
    "price: £20 €30 ¥40 – — … · • ™ © ®",
    "zero\u200bwidth\u200djoin soft\u00adhyphen\ufeffmark no\u00a0break\u2009thin\u3000ideographic",
    "control\x00\x07\x1b[31mred\x1b[0m\x7f\x85next\x93quoted\x94 \ufffcx",
    "line\u2028separator\u2029paragraph\r\nreturn\x0bvertical\x0cform",
    "tilde~ `back` [square] {curly} |pipe| \\slash\\ =+*/",
    "'ſ 'S 'LL \u212aelvin \u0345 '’s",
    "<start_of_text> inside <end_of_text> and <START_OF_TEXT>",
    "",
    " \n\t ",
    "word " * 80,
    "antidisestablishmentarianism " * 14,
    " ".join(str(number) for number in range(40)),
]
# decoded as what they are not: ftfy guesses what they were
GARBLED = ["The Mona Lisa doesnâ€™t have eyebrows.", "cafÃ© crÃ¨me", "schÃ¶n", "l’humanitÃ©"]


def all_captions() -> list[str]:
    mixed = [f"{s} {p}{e}" for s in SUBJECTS for p in PLACES for e in STYLES]
    mixed = [text.upper() if n % 7 == 0 else text for n, text in enumerate(mixed)]
    return [*mixed, *PLAIN.split("\n"), *ODD]


def run_captions() -> dict[str, Any]:
    """Captions and ids of OpenCLIP's tokenizer, and the merges that made them by their number in the published list."""
    import ftfy
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    texts, used = all_captions(), {}
    bpe = tokenizer.bpe

    def pieces(word: str) -> str:
        for piece in bpe(word).split(" "):
            note(piece)
        return bpe(word)

    by_result = {"".join(pair): (rank, pair) for pair, rank in tokenizer.bpe_ranks.items()}

    def note(piece: str) -> None:
        if piece in by_result:
            rank, pair = by_result[piece]
            used[rank] = " ".join(pair)
            for part in pair:
                note(part)

    tokenizer.bpe = pieces
    rows = [tokenizer(text)[0] for text in texts]
    garbled = [[text, ftfy.fix_text(text), trimmed(tokenizer(text)[0])] for text in GARBLED]
    return {
        "captions": [[text, trimmed(row)] for text, row in zip(texts, rows)],
        "cut": sum(len(tokenizer.encode(text)) > 75 for text in texts),
        "garbled": garbled,
        "merges": dict(sorted(used.items())),
    }


def trimmed(row: Any) -> list[int]:
    """The ids of a row up to its end."""
    return np.trim_zeros(row.numpy(), "b").tolist()


def main() -> None:
    import torch

    torch.set_num_threads(1)
    saved = {**run_open_clip(), **run_wide(), **run_transformers(), **run_images()}
    np.savez_compressed(OUTPUT, **saved)
    CAPTIONS.write_text(json.dumps(run_captions(), ensure_ascii=True, separators=(",", ":")))
    for path in (OUTPUT, CAPTIONS):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
