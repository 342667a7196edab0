"""Muon's iteration on processors without bfloat16: the one place that reaches into torch's Muon.

torch 2.9 to 2.13 run it in bfloat16 wherever it is (torch/optim/_muon.py). A CPU that has to emulate that takes twenty
times as long as in float32: 28 ms instead of 1.3 for a matrix of 128 x 128, more than the training step around it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def install() -> None:
    """From now on torch's Muon takes float32 on such processors. Where torch has moved the function, only the time
    differs."""
    from torch.optim import _muon

    given = getattr(_muon, "_zeropower_via_newtonschulz", None)
    if given is None or hasattr(given, "__wrapped__") or has_bfloat16():
        return
    _muon._zeropower_via_newtonschulz = _on_cpu_in_float32(given)


def has_bfloat16() -> bool:
    """Whether this processor multiplies matrices in bfloat16 itself."""
    return any(
        bool(getattr(torch.cpu, name, lambda: False)())
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    )


def _on_cpu_in_float32(given: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(given)
    def orthogonal(grad: Tensor, coefficients: Sequence[float], steps: int, eps: float, *more: Any) -> Tensor:
        if grad.device.type != "cpu" or more:
            return given(grad, coefficients, steps, eps, *more)
        return newton_schulz(grad.float(), coefficients, steps, eps)

    return orthogonal


def newton_schulz(matrix: Tensor, coefficients: Sequence[float], steps: int, eps: float) -> Tensor:
    """A matrix of nearly the same singular vectors, and all singular values near 1 (Jordan et al., Muon, 2024): the
    polynomial a x + b x^3 + c x^5 of them, applied again and again."""
    a, b, c = coefficients
    is_tall = matrix.size(0) > matrix.size(1)
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x
