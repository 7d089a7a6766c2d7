"""Which tests hold a benchmark against its reference, and which scripts made the reference's numbers."""

_DECODER = (
    "tests/models/test_decoder.py",
    "tests/models/test_decoder_huggingface.py",
    "scripts/make_decoder_reference.py",
    "tests/input_pipelines/test_megatron_index.py",
)

PARITY: dict[str, tuple[str, ...]] = {
    "resnet": (
        "tests/models/test_resnet.py",
        "scripts/make_resnet_reference.py",
        "tests/benchmarks/test_resnet.py",
        "tests/input_pipelines/test_images.py",
    ),
    "unet3d": (
        "tests/models/test_unet3d.py",
        "scripts/make_unet3d_reference.py",
        "tests/benchmarks/test_unet3d.py",
        "tests/input_pipelines/test_kits19_builder.py",
        "tests/input_pipelines/test_kits19_patches.py",
        "tests/metrics/test_dice.py",
    ),
    "retinanet": (
        "tests/models/test_retinanet.py",
        "scripts/make_retinanet_reference.py",
        "tests/benchmarks/test_retinanet.py",
        "tests/metrics/test_coco.py",
    ),
    "gpt3": (*_DECODER, "tests/models/test_decoder_paxml.py", "tests/benchmarks/test_gpt3.py"),
    "llama2_70b_lora": (
        *_DECODER[:3],
        "tests/models/test_decoder_lora.py",
        "tests/input_pipelines/test_govreport.py",
        "tests/benchmarks/test_llama2_70b_lora.py",
    ),
    "llama31_405b": (*_DECODER, "tests/benchmarks/test_llama31_405b.py"),
    "llama31_8b": (*_DECODER, "tests/benchmarks/test_llama31_8b.py"),
    "bert": (
        "tests/models/test_bert.py",
        "scripts/make_bert_reference.py",
        "tests/input_pipelines/test_wikipedia_records.py",
        "scripts/make_wikipedia_reference.py",
        "tests/benchmarks/test_bert.py",
    ),
    "dlrm_dcnv2": (
        "tests/models/test_dlrm.py",
        "scripts/make_dlrm_reference.py",
        "tests/input_pipelines/test_criteo_builder.py",
        "scripts/make_criteo_reference.py",
        "tests/metrics/test_auc.py",
        "scripts/make_auc_reference.py",
        "tests/benchmarks/test_dlrm_dcnv2.py",
    ),
    "stable_diffusion": (
        "tests/models/test_diffusion_unet.py",
        "tests/models/test_autoencoder.py",
        "scripts/make_diffusion_reference.py",
        "tests/models/test_clip.py",
        "scripts/make_clip_reference.py",
        "tests/models/test_inception.py",
        "scripts/make_inception_reference.py",
        "tests/decoding/test_ddim.py",
        "scripts/make_ddim_reference.py",
        "tests/metrics/test_fid.py",
        "scripts/make_fid_reference.py",
        "tests/benchmarks/test_stable_diffusion.py",
        "scripts/make_stable_diffusion_reference.py",
    ),
    "rgat": (
        "tests/models/test_rgat.py",
        "scripts/make_rgat_reference.py",
        "tests/input_pipelines/test_igbh_split.py",
        "scripts/make_igbh_reference.py",
        "tests/benchmarks/test_rgat.py",
    ),
}
