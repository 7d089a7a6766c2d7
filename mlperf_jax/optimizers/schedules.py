"""When the learning rate changes and when quality is evaluated, as functions of the step.

A learning-rate schedule is a function step -> rate. The step is the number of updates already done (0
at the first), a Python int or a traced int32. Rates are float32, or float64 where x64 is enabled.

An evaluation schedule is an endless, increasing iterator of step numbers: evaluate when that many steps
are done. Its arithmetic is in integers, since 0.05 * batch and the like round the wrong way now and then.

Letters: t step (plus `first_step`), W warm-up steps, T total steps.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mlperf_jax.errors import UserError

Schedule = Callable[[Any], jax.Array]
LastBatch = Literal["drop", "pad", "mix"]


# --- learning rates --------------------------------------------------------------------------------


def poly_decay(
    base_lr: float,
    warmup_steps: int,
    total_steps: int,
    *,
    power: float = 2,
    end_lr: float = 1e-4,
    first_step: int = 0,
) -> Schedule:
    """Linear warm-up, then polynomial decay: the schedule of `resnet`.

    t <= W: base t / W, so the first rate is 0; later: end + (base - end) (1 - min(t - W, D) / D)^power
    with D = T - W + 1. Without warm-up the decay starts at t = 0 with the base rate.

    Args:
        base_lr: rate at step W.
        warmup_steps: W.
        total_steps: T, warm-up included.
        power: 2 by rule for `resnet`.
        end_lr: 1e-4 by rule for `resnet`.
        first_step: what the first update counts as: 0 in the TF2 reference, 1 in NVIDIA's recipes,
            which have no zero-rate step.

    Raises:
        UserError: a length is negative, or the warm-up is longer than the total.

    Example:
        >>> lr = poly_decay(10.5, 784, 14504)   # batch 3,264: 2 of 37 epochs of 392 steps
        >>> float(lr(0)), float(lr(784))
        (0.0, 10.5)
    """
    _check_lengths(warmup_steps, total_steps)
    decay_steps = total_steps - warmup_steps + 1

    def schedule(step: Any) -> jax.Array:
        t = _as_float(step) + first_step
        done = jnp.clip(t - warmup_steps, 0, decay_steps) / decay_steps
        decayed = end_lr + (base_lr - end_lr) * (1 - done) ** power
        return _warm_up(t, warmup_steps, 0.0, base_lr, decayed)

    return schedule


def linear_decay(
    base_lr: float, warmup_steps: int, total_steps: int, *, start_warmup_step: int = 0
) -> Schedule:
    """Polynomial decay of power 1 to zero under a linear warm-up: the schedule of `bert`.

    While t - S < W: base (t - S) / W, S being `start_warmup_step`; from then on base (1 - min(t, T) / T).
    The decay takes no notice of warm-up or S, so the rate falls where the one passes into the other; a
    shifted start without warm-up does nothing.

    Args:
        base_lr: rate at t = 0 without warm-up; with one it is not reached.
        warmup_steps: W.
        total_steps: T.
        start_warmup_step: S, at most 0: the warm-up begins as if -S steps of it were done.

    Raises:
        UserError: a length is negative, the warm-up is longer than the total, or S is above 0.

    Example:
        >>> lr = linear_decay(3.1e-3, 300, 500, start_warmup_step=-100)   # batch 12,288
        >>> [round(float(lr(t)), 8) for t in (0, 199, 200)]
        [0.00103333, 0.00308967, 0.00186]
    """
    _check_lengths(warmup_steps, total_steps)
    if start_warmup_step > 0:
        raise UserError(
            f"a warm-up that starts at step {start_warmup_step} has negative rates before it; give 0 or less"
        )
    if not total_steps:
        raise UserError("a linear decay over 0 steps has no rate; give at least 1")

    def schedule(step: Any) -> jax.Array:
        t = _as_float(step)
        decayed = base_lr * (jnp.maximum(total_steps - t, 0) / total_steps)
        if not warmup_steps:
            return decayed
        done = t - start_warmup_step
        return jnp.where(done < warmup_steps, base_lr * (done / warmup_steps), decayed)

    return schedule


def warmup_cosine(
    base_lr: float,
    warmup_steps: int,
    total_steps: int,
    *,
    end_lr: float = 0.0,
    form: Literal["megatron", "nemo"] = "megatron",
    hold_steps: int = 0,
) -> Schedule:
    """Linear warm-up, then half a cosine down to `end_lr` at step T, then constant.

    "megatron" warms up by base t / W, so the first rate is 0 (gpt_oss_20b, deepseekv3, gpt3,
    llama2_70b_lora); "nemo" by base (t + 1) / (W + 1) (llama31). Both reach base at t = W and then
    follow end + (base - end) (1 + cos(pi (t - W) / (T - W))) / 2.

    Args:
        base_lr: rate at step W.
        warmup_steps: W; 0 starts at the base rate.
        total_steps: T, warm-up included. Logs call T - W the decay steps.
        end_lr: rate from step T on.
        form: see above.
        hold_steps: steps at the base rate between warm-up and cosine (gpt3 has 1): the cosine then
            begins at W + hold_steps and still ends at T.

    Raises:
        UserError: a length is negative, or warm-up and hold are longer than the total.

    Example:
        >>> lr = warmup_cosine(4e-4, 99, 1_200_000, end_lr=4e-5, form="nemo")   # llama31_8b
        >>> round(float(lr(0)), 9)
        4e-06
    """
    _check_lengths(warmup_steps, total_steps)
    start = warmup_steps + hold_steps
    _check_lengths(start, total_steps)
    if form not in ("megatron", "nemo"):
        raise UserError(f'the cosine form is {form!r}; it must be "megatron" or "nemo"')
    ahead = int(form == "nemo")

    def schedule(step: Any) -> jax.Array:
        t = _as_float(step)
        length = max(total_steps - start, 1)
        done = jnp.clip((t - start) / length, 0, 1)
        decayed = end_lr + (base_lr - end_lr) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        warm = _warm_up(t + ahead, warmup_steps + ahead, 0.0, base_lr, decayed)
        return warm if warmup_steps else decayed

    return schedule


def warmup_constant(
    base_lr: float, warmup_steps: int, *, start_lr: float = 0.0, first_step: int = 0
) -> Schedule:
    """Linear warm-up from `start_lr`, then constant: start + (base - start) t / W for t <= W.

    Args:
        base_lr: rate from step W on.
        warmup_steps: W; 0 is the base rate from the start.
        start_lr: rate at t = 0: 1e-6 of the base in stable_diffusion, factor times the base in
            retinanet, 1e-4 in unet3d.
        first_step: what the first update counts as; flux1 counts from 1.

    Raises:
        UserError: the warm-up is negative.

    Example:
        >>> per_epoch = by_epoch(warmup_constant(2.0, 1000, start_lr=1e-4), 6)   # unet3d, batch 28
        >>> lr = warmup_constant(2e-4, 1600, first_step=1)                       # flux1, batch 512
    """
    _check_lengths(warmup_steps, warmup_steps)

    def schedule(step: Any) -> jax.Array:
        t = _as_float(step) + first_step
        return _warm_up(t, warmup_steps, start_lr, base_lr, jnp.full_like(t, base_lr))

    return schedule


def step_decay(
    base_lr: float,
    boundaries: Sequence[int],
    factor: float | Sequence[float] = 0.1,
    *,
    warmup_steps: int = 0,
    start_lr: float = 0.0,
    first_step: int = 0,
) -> Schedule:
    """Linear warm-up, then a rate that is multiplied by `factor` at each boundary.

    A boundary b takes effect at t >= b; where a reference keeps the old rate while t <= b, give b + 1.
    Early rounds of `resnet`: 0.1 * batch / 256, x0.1 at epochs 30, 60 and 80, warm-up 5 epochs.

    Args:
        base_lr: rate after the warm-up.
        boundaries: increasing steps.
        factor: one factor for all boundaries, or one per boundary (each relative to the last rate).
        warmup_steps: W; t <= W: start + (base - start) t / W.
        start_lr: rate at t = 0, if W > 0.
        first_step: what the first update counts as; maskrcnn counts from 1.

    Raises:
        UserError: boundaries do not increase, or their number is not that of the factors.

    Example:
        >>> lr = step_decay(0.1, [30, 60, 80])
        >>> [round(float(lr(t)), 6) for t in (29, 30, 60, 80)]
        [0.1, 0.01, 0.001, 0.0001]
    """
    _check_lengths(warmup_steps, warmup_steps)
    factors = [factor] * len(boundaries) if isinstance(factor, int | float) else list(factor)
    if list(boundaries) != sorted(set(boundaries)) or len(factors) != len(boundaries):
        raise UserError(
            f"learning-rate boundaries {list(boundaries)} with factors {factors}: boundaries must "
            "increase, with one factor for each"
        )
    rates = [base_lr * r for r in itertools.accumulate(factors, lambda a, b: a * b, initial=1.0)]

    def schedule(step: Any) -> jax.Array:
        t = _as_float(step) + first_step
        passed = sum((t >= b).astype(jnp.int32) for b in boundaries)
        rate = jnp.asarray(rates, t.dtype)[passed]
        return _warm_up(t, warmup_steps, start_lr, base_lr, rate)

    return schedule


def by_epoch(schedule: Schedule, steps_per_epoch: int) -> Schedule:
    """Makes a schedule of epochs from one of steps: constant within an epoch, numbered from 1.

    Raises:
        UserError: an epoch has no step.

    Example:
        >>> lr = by_epoch(step_decay(1.0, [2]), steps_per_epoch=10)
        >>> round(float(lr(9)), 6), round(float(lr(10)), 6)   # last of epoch 1, first of epoch 2
        (1.0, 0.1)
    """
    if steps_per_epoch < 1:
        raise UserError(f"an epoch of {steps_per_epoch} steps is empty; lower the batch size")
    return lambda step: schedule(jnp.asarray(step) // steps_per_epoch + 1)


def _as_float(step: Any) -> jax.Array:
    """Steps stay below 2^24, so float32 holds them exactly."""
    return jnp.asarray(step).astype(jnp.result_type(float))


def _warm_up(
    t: jax.Array, warmup_steps: int, start_lr: float, base_lr: float, after: jax.Array
) -> jax.Array:
    """start + (base - start) t / W up to t = W, `after` from then on; no warm-up if W is 0."""
    if not warmup_steps:
        return after
    warm = start_lr + (base_lr - start_lr) * (t / warmup_steps)
    # t = W apart, since XLA may divide by multiplying: step W has the base rate to the last bit.
    return jnp.where(t < warmup_steps, warm, jnp.where(t == warmup_steps, base_lr, after))


def _check_lengths(warmup_steps: int, total_steps: int) -> None:
    if warmup_steps < 0 or total_steps < warmup_steps:
        raise UserError(
            f"a warm-up of {warmup_steps} steps in a schedule of {total_steps}: neither may be "
            "negative, and the warm-up must fit into the schedule"
        )


# --- evaluation ------------------------------------------------------------------------------------


def every_steps(n: int, *, first: int | None = None) -> Iterator[int]:
    """Evaluate after step `first` (default n) and every n steps from there.

    deepseekv3_671b: `every_steps(1, first=42 + 24576 // batch_size)`; dlrm_dcnv2, 20 an epoch:
    `every_steps(train_samples // (20 * batch_size))`; openfold: `every_steps(40)`.

    Raises:
        UserError: n or first is below 1.

    Example:
        >>> list(itertools.islice(every_steps(1, first=43), 3))
        [43, 44, 45]
    """
    first = n if first is None else first
    if n < 1 or first < 1:
        raise UserError(f"evaluating every {n} steps from step {first}: both must be at least 1")
    return itertools.count(first, n)


def every_samples(
    samples: int,
    batch_size: int,
    *,
    skip: int = 0,
    first: int | None = None,
    round_each: bool = False,
) -> Iterator[int]:
    """Evaluate every ceil(samples / batch_size) steps.

    Args:
        samples: interval in training samples.
        batch_size: global batch size.
        skip: leave out the first so many evaluations (llama2_70b_lora: batch_size // 8 + 2;
            llama31_405b: 26 * batch_size // 10_000 + 12).
        first: leave out those before so many samples (dlrmv4; bert v0.7: 3,000,000).
        round_each: False rounds the interval up to whole steps, so all gaps are equal: the rules'
            ceil(samples / batch) batch. True rounds each multiple of `samples` up by itself: bert,
            unet3d v4.0.

    Raises:
        UserError: an argument is not positive.

    Example:
        >>> list(itertools.islice(every_samples(12_288, 16), 3))   # llama31_8b
        [768, 1536, 2304]
    """
    if samples < 1 or batch_size < 1 or skip < 0:
        raise UserError(
            f"evaluating every {samples} samples at batch {batch_size}, skipping {skip}: the first two "
            "must be positive and the third not negative"
        )
    gap = _ceil(samples, batch_size)
    start = skip + 1
    if first is not None:
        start = max(start, _ceil(first, samples if round_each else gap * batch_size))
    if not round_each:
        return itertools.count(start * gap, gap)
    return _increasing(_ceil(k * samples, batch_size) for k in itertools.count(start))


def every_epochs(
    n: int,
    train_samples: int,
    batch_size: int,
    *,
    offset: int = 0,
    last_batch: LastBatch = "drop",
) -> Iterator[int]:
    """Evaluate after epochs offset, offset + n, offset + 2n, ... (numbered from 1; 0 is left out).

    resnet: n = 4 and an offset of 0 to 3, so epochs 3, 7, 11 for 3 and 4, 8, 12 for 0. unet3d: an
    epoch E = ceil(168 / batch) batch samples; n = ceil(20 * 168 / E), offset ceil(1000 * 168 / E),
    `last_batch="pad"`.

    Args:
        n: epochs between evaluations.
        train_samples: samples in the training set.
        batch_size: global batch size.
        offset: first epoch, or n if 0.
        last_batch: what becomes of the remainder: "drop": an epoch is floor(N / batch) steps; "pad":
            ceil(N / batch); "mix": it joins the next epoch, and epoch e ends after ceil(e N / batch).

    Raises:
        UserError: an epoch has no step, n is below 1, or `last_batch` is unknown.

    Example:
        >>> list(itertools.islice(every_epochs(4, 1_281_167, 3264, offset=3), 3))   # resnet
        [1176, 2744, 4312]
    """
    if n < 1 or offset < 0:
        raise UserError(
            f"evaluating every {n} epochs from epoch {offset}: give n >= 1, offset >= 0"
        )
    epochs = itertools.count(offset or n, n)
    return _at_epochs(epochs, train_samples, batch_size, last_batch)


def at_epochs(
    epochs: Sequence[int],
    train_samples: int,
    batch_size: int,
    *,
    last_batch: LastBatch = "drop",
) -> Iterator[int]:
    """Evaluate after the listed epochs (numbered from 1), then on with the last gap of the list.

    ssd v0.7 to v1.0: epochs 40, 50, 55, 60, 65, 70, 75, 80.

    Raises:
        UserError: fewer than two epochs, they do not increase from 1 on, or an epoch has no step.

    Example:
        >>> list(itertools.islice(at_epochs([40, 50, 55], 1000, 10), 4))
        [4000, 5000, 5500, 6000]
    """
    listed = list(epochs)
    if len(listed) < 2 or listed[0] < 1 or listed != sorted(set(listed)):
        raise UserError(f"evaluation epochs {listed}: give at least two, increasing, from 1 on")
    gap = listed[-1] - listed[-2]
    endless = itertools.chain(listed, itertools.count(listed[-1] + gap, gap))
    return _at_epochs(endless, train_samples, batch_size, last_batch)


def steps_per_epoch(train_samples: int, batch_size: int, last_batch: LastBatch = "drop") -> int:
    """Returns floor(N / batch) for "drop", ceil(N / batch) for "pad".

    Raises:
        UserError: the result is 0, or there is no whole number ("mix").

    Example:
        >>> steps_per_epoch(1_281_167, 3264)
        392
    """
    if last_batch not in ("drop", "pad"):
        raise UserError(
            f'last_batch is {last_batch!r}; an epoch has whole steps for "drop" and "pad"'
        )
    if batch_size < 1 or train_samples < (batch_size if last_batch == "drop" else 1):
        raise UserError(
            f"batch size {batch_size} leaves no step in an epoch of {train_samples} samples; "
            "lower the batch size"
        )
    return train_samples // batch_size if last_batch == "drop" else _ceil(train_samples, batch_size)


def _at_epochs(
    epochs: Iterator[int], train_samples: int, batch_size: int, last_batch: LastBatch
) -> Iterator[int]:
    if last_batch == "mix":
        steps_per_epoch(train_samples, batch_size, "pad")  # checks the arguments
        return _increasing(_ceil(epoch * train_samples, batch_size) for epoch in epochs)
    steps = steps_per_epoch(train_samples, batch_size, last_batch)
    return (epoch * steps for epoch in epochs)


def _increasing(steps: Iterator[int]) -> Iterator[int]:
    """Drops repeats: two marks may fall into one large batch."""
    return (step for step, _ in itertools.groupby(steps))


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
