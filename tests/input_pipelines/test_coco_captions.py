"""The captions that images are generated for: what pandas chooses, its file byte by byte, and bad sources."""

import hashlib
import json

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import coco_captions
from mlperf_jax.input_pipelines.coco_captions import Caption
from mlperf_jax.input_pipelines.laion import prompts

# What pandas 3.1.1 writes for `annotations()`, by the steps of the reference:
#   frame = pandas.DataFrame(annotations())
#   frame["caption"] = frame["caption"].apply(lambda text: text.replace("\n", "").strip())
#   frame = frame.sample(frac=1, random_state=2023).drop_duplicates("image_id")
#   frame[:40].sort_values("id").to_csv(…, sep="\t", index=False)
PANDAS_IDS = [
    23, 26, 47, 83, 110, 140, 161, 182, 197, 230, 242, 293, 299, 335, 365,
    395, 416, 431, 473, 503, 530, 536, 560, 578, 593, 596, 635, 677, 686,
    701, 716, 764, 779, 794, 815, 848, 860, 872, 884, 908,
]  # fmt: skip
PANDAS_MD5 = "cc886821095f5c145b25e22d67b60abe"


def annotations():
    """Five captions of each of 60 images in mixed order, with what a file of columns must take care of."""
    odd = [
        "a cat\n",
        " a dog ",
        'a sign "stop"',
        "tabs\there",
        "two\nlines",
        "été",
        '"',
        "plain, with commas",
    ]
    order = np.random.RandomState(5).permutation(300)
    return [
        {
            "image_id": int(1000 + 7 * (i // 5)),
            "id": int(3 * i + 11),
            "caption": f"{odd[i % 8]} {i}\n",
        }
        for i in order
    ]


@pytest.fixture
def source(tmp_path):
    def written(document):
        path = tmp_path / coco_captions.SOURCE
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return written


def test_captions_are_those_that_pandas_chooses(source, tmp_path):
    chosen = coco_captions.choose(source({"images": [], "annotations": annotations()}), 40)
    assert [caption.id for caption in chosen] == PANDAS_IDS
    assert len({caption.image_id for caption in chosen}) == 40
    file = tmp_path / "chosen.tsv"
    prompts.write(file, chosen)
    assert hashlib.md5(file.read_bytes()).hexdigest() == PANDAS_MD5
    found = prompts.read(str(file))
    assert [Caption(*pair, text) for pair, text in zip(found.numbers, found.captions)] == chosen


def test_newlines_are_taken_out_and_ends_stripped(source):
    given = [
        {"image_id": i, "id": i, "caption": text}
        for i, text in enumerate(["\n two\nlines \n", "\ta", "b\r\n"])
    ]
    found = coco_captions.choose(source({"annotations": given}), 3)
    assert [caption.caption for caption in found] == ["twolines", "a", "b"]


def test_the_first_caption_of_an_image_after_the_shuffle_is_kept(source):
    given = annotations()
    order = np.random.RandomState(2023).permutation(len(given))
    kept = {}
    for at in order:
        kept.setdefault(given[at]["image_id"], given[at]["id"])
    found = coco_captions.choose(source({"annotations": given}), 60)
    assert [caption.id for caption in found] == sorted(kept.values())


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "is no file of COCO's captions .* annotations_trainval2014.zip"),
        ({"images": []}, "is no file of COCO's captions .*annotations"),
        ({"annotations": [{"image_id": 1, "id": 2}]}, "is no file of COCO's captions .*caption"),
        ({"annotations": [3]}, "is no file of COCO's captions"),
        ({"annotations": [{"image_id": 1.5, "id": 2, "caption": ""}]}, "ids must be whole numbers"),
        ({"annotations": [{"image_id": 1, "id": 2, "caption": None}]}, "and its caption text"),
        (
            {"annotations": [{"image_id": 1, "id": 2, "caption": ""}] * 2},
            "annotation 2 comes twice",
        ),
        (
            {"annotations": [{"image_id": 1, "id": 2, "caption": ""}]},
            "captions for 1 images, 30,000 are needed",
        ),
    ],
)
def test_a_bad_source_is_refused(source, document, message):
    with pytest.raises(UserError, match=message):
        coco_captions.choose(source(document))


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(UserError, match=r"captions_val2014.json is missing: fetch annotations"):
        coco_captions.choose(tmp_path / coco_captions.SOURCE)
    with pytest.raises(UserError, match="cannot be read"):
        coco_captions.choose(tmp_path)
    with pytest.raises(UserError, match="s3:// paths are not read"):
        coco_captions.choose("s3://bucket/captions_val2014.json")
