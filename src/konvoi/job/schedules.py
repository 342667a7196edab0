"""The learning rate's factor at a step: pure functions of `(step, num_steps)`, so that resuming needs no state.

Step 1 is the first. Warm-up rises in a straight line to 1, which it reaches at its last step; decay falls so that the
step *after* the last would have the floor: no step is spent at a rate of zero.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

from konvoi.errors import JobError


@dataclass(frozen=True)
class Constant:
    """Warm-up, then 1. `warmup` is a number of steps, or, below 1, a share of the run; so in every schedule.

    >>> [constant(warmup=4).factor(step, num_steps=10) for step in (1, 2, 4, 10)]
    [0.25, 0.5, 1.0, 1.0]
    """

    _: KW_ONLY
    warmup: float = 0

    def __post_init__(self) -> None:
        _check_length("warmup", self.warmup)

    def factor(self, step: int, num_steps: int) -> float:
        return _rise(step, _length(self.warmup, num_steps))

    def derived(self, num_steps: int) -> tuple[str, ...]:
        return _describe_warmup(self.warmup, num_steps)


@dataclass(frozen=True)
class Cosine:
    """Warm-up, then half a cosine from 1 to `floor` (arXiv 1608.03983 equation 5; a floor of 0.1 as in Llama 2).

    >>> [round(cosine(warmup=2, floor=0.1).factor(step, num_steps=10), 3) for step in (1, 2, 3, 7, 10)]
    [0.5, 1.0, 1.0, 0.55, 0.134]
    """

    _: KW_ONLY
    warmup: float = 0.05
    floor: float = 0.1

    def __post_init__(self) -> None:
        _check_length("warmup", self.warmup)
        _check_floor(self.floor)

    def factor(self, step: int, num_steps: int) -> float:
        warmup = _length(self.warmup, num_steps)
        if step <= warmup:
            return _rise(step, warmup)
        done = _share_done(step, warmup, num_steps)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))

    def derived(self, num_steps: int) -> tuple[str, ...]:
        return _describe_warmup(self.warmup, num_steps)


@dataclass(frozen=True)
class Linear:
    """Warm-up, then a straight line from 1 to `floor` (to zero: arXiv 2502.15938).

    >>> [linear(warmup=2).factor(step, num_steps=10) for step in (1, 2, 3, 7, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.125]
    """

    _: KW_ONLY
    warmup: float = 0.05
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check_length("warmup", self.warmup)
        _check_floor(self.floor)

    def factor(self, step: int, num_steps: int) -> float:
        warmup = _length(self.warmup, num_steps)
        if step <= warmup:
            return _rise(step, warmup)
        return 1 - (1 - self.floor) * _share_done(step, warmup, num_steps)

    def derived(self, num_steps: int) -> tuple[str, ...]:
        return _describe_warmup(self.warmup, num_steps)


@dataclass(frozen=True)
class WSD:
    """Warm-up, stable at 1, then decay to `floor` over the last `decay` steps, or share (arXiv 2404.06395 section 4).

    A checkpoint of the stable part can be trained on for any length. The decay is a straight line where the paper's
    is exponential, since a line has no scale to choose (arXiv 2405.18392 section 3). Where the three parts do not fit,
    warm-up goes first and the decay takes what is left.

    >>> [wsd(warmup=2, decay=4).factor(step, num_steps=10) for step in (1, 2, 6, 7, 8, 10)]
    [0.5, 1.0, 1.0, 1.0, 0.75, 0.25]
    """

    _: KW_ONLY
    warmup: float = 0.05
    decay: float = 0.2
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check_length("warmup", self.warmup)
        _check_length("decay", self.decay)
        _check_floor(self.floor)

    def factor(self, step: int, num_steps: int) -> float:
        warmup = _length(self.warmup, num_steps)
        start = max(warmup, num_steps - _length(self.decay, num_steps))
        if step <= start:
            return _rise(step, warmup)
        return 1 - (1 - self.floor) * _share_done(step, start, num_steps)

    def derived(self, num_steps: int) -> tuple[str, ...]:
        warmup, decay = _length(self.warmup, num_steps), _length(self.decay, num_steps)
        fits = min(decay, num_steps - warmup)
        reason = f"{self.decay:g} asked for" if fits == decay else f"{decay} asked for, and warm-up leaves no more"
        return (*_describe_warmup(self.warmup, num_steps), f"decay = {fits} of {num_steps} steps ({reason})")


constant = Constant
cosine = Cosine
linear = Linear
wsd = WSD


def _length(length: float, num_steps: int) -> int:
    # More than the run has is cut to the run, and `derived` says so: a trial of ten steps stays possible.
    return min(round(length * num_steps) if 0 < length < 1 else int(length), num_steps)


def _rise(step: int, warmup: int) -> float:
    return min(1.0, step / warmup) if warmup else 1.0


def _share_done(step: int, start: int, num_steps: int) -> float:
    """0 at the first step after `start`; 1 would be the step after the last, and stays there beyond."""
    return min(1.0, (step - 1 - start) / max(1, num_steps - start))


def _describe_warmup(warmup: float, num_steps: int) -> tuple[str, ...]:
    steps = _length(warmup, num_steps)
    is_cut = warmup >= 1 and warmup > num_steps
    reason = f"{warmup:g} asked for" + (", more than the run has: it never reaches its decay" if is_cut else "")
    return (f"warmup = {steps} of {num_steps} steps ({reason})",) if warmup else ()


def _check_length(name: str, length: float) -> None:
    if not (0 <= length < 1 or (1 <= length < math.inf and length == int(length))):
        raise JobError(
            f"{name} is neither a number of steps nor a share of the run",
            found=length,
            expected="a whole number of steps, or a share below 1",
        )


def _check_floor(floor: float) -> None:
    if not 0 <= floor <= 1:
        raise JobError("floor is out of range", found=floor, expected="a share of the learning rate, from 0 to 1")
