"""What the four language models state, in one table: recipes, optimizer, evaluations, log, rules, FLOPs."""

import dataclasses
from typing import Any

import pytest

from mlperf_jax import benchmarks
from mlperf_jax.core import preflight
from mlperf_jax.core.benchmark import Target
from mlperf_jax.errors import UserError
from tests.benchmarks.language_models import assert_adamw, first_steps, points

EVERYTHING = {"kernel", "embedding", "scale", "bias"}
MATRICES = {"kernel", "embedding"}  # Megatron's default


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """Of a benchmark, from the reference points, the rules and the fact sheets.

    Attributes:
        ruleset: of the reference points.
        default: batch size of the default configuration.
        point: what a reference point calls what -> what a recipe's field, or line of the log, is called.
        epsilon, decay, clip: of AdamW, and of the gradients.
        decayed: names of the leaves with weight decay.
        evaluated: batch size -> the first evaluations, in steps.
        logged: batch size of the recipe, and its own lines of the log.
        refused: field, a value that closed division refuses, and a word of the refusal.
        flops: of one sample.
        source: what the sentence names when there is nothing to build from.
    """

    ruleset: str
    default: int
    point: dict[str, str]
    epsilon: float
    decay: float
    clip: float
    decayed: set[str]
    evaluated: dict[int, list[int]]
    logged: tuple[int, dict[str, Any]]
    refused: list[tuple[str, Any, str]]
    flops: Any
    source: str


RATE = {"opt_base_learning_rate": "opt_base_learning_rate"}
FACTS = {
    "gpt3": Facts(
        ruleset="4.1.0",
        default=1536,
        point=RATE,
        epsilon=1e-8,
        decay=0.1,
        clip=1.0,
        decayed=EVERYTHING,
        # every 24,576 sequences
        evaluated={1536: [16, 32, 48], 2048: [12, 24, 36], 2304: [11, 22, 33]},
        logged=(
            2048,
            {
                "train_samples": 166_809_600,
                "eval_samples": 24_567,
                "max_sequence_length": 2048,
                "init_checkpoint_step": 3000,
                "opt_name": "adam",
                "opt_base_learning_rate": 2e-5,
                "opt_end_learning_rate": pytest.approx(2e-6),
                "opt_learning_rate_warmup_steps": 199,
                "opt_learning_rate_decay_steps": 81_450,
                "opt_learning_rate_decay_schedule": "cosine with linear warmup",
                "opt_adam_beta_1": 0.9,
                "opt_adam_beta_2": 0.95,
                "opt_adam_epsilon": 1e-8,
                "opt_weight_decay": 0.1,
                "opt_gradient_clip_norm": 1.0,
            },
        ),
        refused=[
            ("base_lr", 3e-5, "base_learning_rate"),
            ("sequence_length", 1024, "max_sequence_length"),
            ("start_samples", 0, "init_checkpoint_step"),
            ("schedule_samples", 1_536_000, "decay_steps"),
            ("epsilon", 1e-6, "epsilon"),
            ("weight_decay", 0.0, "weight_decay"),
            ("clip_norm", None, "clip_norm"),
            ("eval_every", 1536, "evaluat"),
            ("layers", 48, "layers"),
            ("targets", (Target("log_perplexity", at_most=2.7),), "2.69"),
        ],
        flops=pytest.approx(1.0764e12 * 2048, rel=1e-4),  # all of attention
        source=r"--source.*spm\.model.*24567exp\.json.*c4_en_7_c4_spm",
    ),
    "llama31_8b": Facts(
        ruleset="6.1.0",
        default=16,
        point=RATE | {"opt_learning_rate_warmup_samples": "warmup_samples"},
        epsilon=1e-5,
        decay=0.1,
        clip=1.0,
        decayed=MATRICES,
        # every 12,288 sequences
        evaluated={16: [768, 1536, 2304], 96: [128, 256, 384], 40: [308, 616, 924]},
        logged=(
            32,
            {
                "train_samples": 1_574_207_408,
                "eval_samples": 1024,
                "max_sequence_length": 8192,
                "max_steps": 1_200_000,
                "opt_name": "adamw",
                "opt_base_learning_rate": 8e-4,
                "opt_end_learning_rate": 8e-5,
                "opt_learning_rate_warmup_steps": 128,
                "opt_learning_rate_decay_steps": 1_199_872,
                "opt_learning_rate_decay_schedule": "cosine with linear warmup",
                "opt_adamw_beta_1": 0.9,
                "opt_adamw_beta_2": 0.95,
                "opt_adamw_epsilon": 1e-5,
                "opt_adamw_weight_decay": 0.1,
                "opt_gradient_clip_norm": 1.0,
            },
        ),
        refused=[
            ("sequence_length", 4096, "max_sequence_length"),
            ("epsilon", 1e-8, "epsilon"),
            ("beta_2", 0.999, "beta_2"),
            ("weight_decay", 0.0, "weight_decay"),
            ("clip_norm", 2.0, "clip_norm"),
            ("max_steps", 100_000, "max_steps"),
            ("end_lr_factor", 0.0, "end_learning_rate"),
            ("eval_samples", 512, "eval_samples"),
            ("eval_every", 6144, "evaluat"),
            ("vocab", 128_000, "vocab"),
            ("layers", 30, "layers"),
            ("targets", (Target("log_perplexity", at_most=3.4),), "3.3"),
        ],
        flops=pytest.approx(421.65e12, rel=1e-4),  # half of attention
        source=r"--source.*tokenizer\.json.*c4-train\.en_6_text_document",
    ),
    "llama31_405b": Facts(
        ruleset="6.0.0",
        default=1152,
        point=RATE | {"opt_learning_rate_warmup_steps": "opt_learning_rate_warmup_steps"},
        epsilon=1e-5,
        decay=0.1,
        clip=1.0,
        decayed=MATRICES,
        # every 18,432 sequences, FLOOR(0.0026 GBS + 12) times not (facts: llama31 section 7); at 1,152
        # first after 276,480 samples, as NVIDIA logs, and at 896 after 282,240
        evaluated={1152: [240, 256], 896: [315], 2304: [8 * (17 + 1)], 5000: [4 * (25 + 1)]},
        logged=(
            2304,
            {
                "train_samples": 1_574_207_408,
                "eval_samples": 5760,
                "max_sequence_length": 8192,
                "init_checkpoint_step": 0,
                "opt_name": "adamw",
                "opt_base_learning_rate": 1.6e-4,
                "opt_end_learning_rate": 8e-7,
                "opt_learning_rate_warmup_steps": 4000,
                "opt_learning_rate_decay_steps": 596_000,
                "opt_learning_rate_decay_schedule": "cosine with linear warmup",
                "opt_adamw_beta_1": 0.9,
                "opt_adamw_beta_2": 0.95,
                "opt_adamw_epsilon": 1e-5,
                "opt_adamw_weight_decay": 0.1,
                "opt_gradient_clip_norm": 1.0,
            },
        ),
        refused=[
            ("reference_lr", 1e-4, "base_learning_rate"),
            ("end_lr", 0.0, "end_learning_rate"),
            ("warmup_samples", 1152, "warmup_steps"),
            ("schedule_samples", 115_200, "decay_steps"),
            ("sequence_length", 4096, "max_sequence_length"),
            ("eval_samples", 1024, "eval_samples"),
            ("eval_every", 46_080, "evaluat"),
            ("skip_base", 0, "evaluat"),
            ("vocab", 128_256, "vocab"),
            ("hidden", 16_384, "hidden"),
            ("targets", (Target("log_perplexity", at_most=5.7),), "5.6"),
        ],
        flops=pytest.approx(20_599e12, rel=1e-4),  # 32,000 vocabulary rows, half of attention
        source=r"--source.*Mixtral.*c4-train\.en_6.*c4-train\.en_7",
    ),
    "llama2_70b_lora": Facts(
        ruleset="6.1.0",
        default=8,
        point=RATE
        | {
            "opt_max_grad_norm": "opt_gradient_clip_norm",
            "max_steps": "opt_learning_rate_training_steps",
            "opt_learning_rate_warmup_epochs": "opt_learning_rate_warmup_factor",  # 0 of both
            "lora_r": "lora_rank",
            "lora_alpha": "lora_alpha",
        },
        epsilon=1e-8,
        decay=1e-4,
        clip=0.3,
        decayed=EVERYTHING,
        # every 384 samples, FLOOR(0.125 GBS + 2) times not (facts: llama2_lora section 7)
        evaluated={8: [192, 240, 288], 64: [66], 9: [43 * 4]},
        logged=(
            8,
            {
                "train_samples": 3901,
                "eval_samples": 173,
                "lora_rank": 16,
                "lora_alpha": 32,
                "opt_name": "adamw",
                "opt_base_learning_rate": 4e-4,
                "opt_learning_rate_training_steps": 1024,
                "opt_learning_rate_warmup_factor": 0.0,
                "opt_gradient_clip_norm": 0.3,
                "opt_adamw_weight_decay": 1e-4,
            },
        ),
        refused=[
            ("lora_rank", 8, "lora_rank"),
            ("lora_alpha", 16, "lora_alpha"),
            ("lora_dropout", 0.0, "lora_dropout"),
            ("base_bits", 8, "base_bits"),
            ("adapter", "/mine", "adapter"),
            ("clip_norm", 1.0, "clip_norm"),
            ("weight_decay", 0.0, "weight_decay"),
            ("beta_2", 0.95, "beta_2"),
            ("sequence_length", 4096, "sequence_length"),
            ("eval_every", 192, "evaluat"),
            ("train_samples", 4000, "train_samples"),
            ("width", 4096, "width"),
            ("targets", (Target("eval_loss", at_most=0.93),), "0.925"),
        ],
        flops=pytest.approx(
            2518e12, rel=1e-3
        ),  # the base has no weight gradients; half of attention
        source=r"--source.*parquet.*licence",
    ),
}
EACH = pytest.mark.parametrize("name", FACTS)


@EACH
def test_recipes_equal_the_reference_convergence_points(name: str) -> None:
    facts, cls = FACTS[name], benchmarks.benchmark_class(name)
    official, recipes = points(name, facts.ruleset), cls.recipes()
    assert set(recipes) == set(official)
    for size, recipe in recipes.items():
        found = recipe.config() | dict(recipe.log()) | dict(recipe.optimizer_log())
        for theirs, ours in facts.point.items():
            assert found[ours] == official[size].hyperparameters[theirs], (size, ours)
    assert benchmarks.get(name) == recipes[facts.default]


@EACH
def test_adamw_follows_the_equations_and_decays_what_it_should(name: str) -> None:
    facts, benchmark = FACTS[name], benchmarks.get(name)
    if "warmup_samples" in benchmark.config():
        benchmark = benchmark.replace(warmup_samples=0)
    assert (benchmark.beta_1, benchmark.beta_2) == (0.9, 0.999 if "lora" in name else 0.95)
    assert (benchmark.epsilon, benchmark.weight_decay) == (facts.epsilon, facts.decay)
    assert benchmark.clip_norm == facts.clip
    assert_adamw(benchmark, decayed=facts.decayed)


@EACH
def test_evaluations_come_when_the_rules_say(name: str) -> None:
    for size, steps in FACTS[name].evaluated.items():
        assert first_steps(benchmarks.get(name, batch_size=size), len(steps)) == steps, size


@EACH
def test_logged_keys_and_values(name: str) -> None:
    size, lines = FACTS[name].logged
    recipe = benchmarks.benchmark_class(name).recipes()[size]
    common = {"global_batch_size": size, "gradient_accumulation_steps": 1}
    assert preflight.full_log(recipe) == common | lines


@pytest.mark.parametrize(
    ("name", "field", "value", "word"),
    [(name, *refused) for name, facts in FACTS.items() for refused in facts.refused],
)
def test_closed_refuses_what_the_rules_do_not_allow(name, field, value, word) -> None:
    changed = benchmarks.get(name, **{field: value})
    with pytest.raises(UserError, match=word):
        preflight.resolve_division(changed, benchmarks.RunOptions(division="closed"))
    assert preflight.resolve_division(changed, benchmarks.RunOptions(division="open")) == "open"


@EACH
def test_flops(name: str) -> None:
    assert benchmarks.get(name).flops_per_sample == FACTS[name].flops


@EACH
def test_without_a_source_the_sentence_says_what_to_fetch(name: str, tmp_path) -> None:
    with pytest.raises(UserError, match=FACTS[name].source):
        benchmarks.get(name).data().build(str(tmp_path))


@EACH
def test_sizes_are_the_architectures_where_no_others_are_given(name: str) -> None:
    benchmark = benchmarks.get(name)
    assert benchmark.decoder().replace(lora=None) == benchmark.architecture
    assert benchmark.replace(layers=3).decoder().layers == 3
    with pytest.raises(UserError, match="layers must be a whole number, at least 1, not 0"):
        benchmark.replace(layers=0)
