"""How convolutions and poolings of many models with weights of their own are computed as one, on a CPU.

torch batches them under vmap as a grouped convolution, which its CPU kernels run at a fifth of what a matrix product
reaches, and pools one value at a time. Here a convolution is one batched matrix product over unfolded images, laid out
channels first and then images, and a pooling by two is two elementwise maxima. A convolution's bias and ReLU, which do
not change which value is the largest, are applied behind the pooling, to a quarter of the values. Everything else is
left to vmap.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

Pair = tuple[int, int]


@dataclass(frozen=True)
class Made:
    """What the last call made: `step` of `before`, elementwise and never falling, so that it may wait for a pooling."""

    tensor: Tensor
    before: Tensor
    step: Callable[[Tensor], Tensor]


class Rules(TorchFunctionMode):
    """Inside, calls that have a rule here take it. For use under vmap over models."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Made | None = None  # of the last call only: what comes between might write to it

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        last, self.last = self.last, None
        rule = RULES.get(func)
        if rule is not None:
            with contextlib.suppress(NoRule):
                made, self.last = rule(last, *args, **(kwargs or {}))
                return made
        return func(*args, **(kwargs or {}))


class NoRule(Exception):
    """For these arguments."""


def _conv2d(
    _: Made | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> tuple[Tensor, Made | None]:
    if groups != 1 or isinstance(padding, str) or _pair(dilation) != (1, 1) or x.dim() != 4 or x.device.type != "cpu":
        raise NoRule
    y: Tensor = _apply(Conv, x, weight, _pair(stride), _pair(padding))
    if bias is None:
        return y, None
    column = bias[:, None, None]
    return (made := y + column), Made(made, y, lambda pooled: pooled + column)


def _relu(last: Made | None, x: Tensor, inplace: bool = False) -> tuple[Tensor, Made | None]:
    if last is None or last.tensor is not x or inplace:
        raise NoRule
    return (made := torch.relu(x)), Made(made, last.before, lambda pooled: torch.relu(last.step(pooled)))


def _max_pool2d(
    last: Made | None,
    x: Tensor,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Made | None]:
    by_two = _pair(kernel_size) == (2, 2) == _pair(stride or kernel_size)
    plain = _pair(padding) == (0, 0) and _pair(dilation) == (1, 1) and not ceil_mode and not return_indices
    if not (by_two and plain) or x.dim() != 4 or x.device.type != "cpu" or min(x.shape[2:]) < 2:
        raise NoRule
    if last is None or last.tensor is not x:
        return _apply(Pool, x), None
    return last.step(_apply(Pool, last.before)), None  # x itself is dead code, which `lean` takes out


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    return function.apply(*args)


class _OfModels(torch.autograd.Function):
    """What exists only under vmap: `vmap` gets the models' dim, and calls what is of many models."""

    generate_vmap_rule = False

    @staticmethod
    def forward(*args: Any) -> Any:
        raise NoRule  # outside of vmap there is one model, for which torch's own is best

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing: it never gets here."""


class Conv(_OfModels):
    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> tuple[Any, Any]:
        x, weight = (_models_first(t, dim, info.batch_size) for t, dim in zip((x, weight), dims[:2], strict=True))
        return _apply(ConvOfMany, x, weight, stride, padding), 0


class Pool(_OfModels):
    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor) -> tuple[Any, Any]:
        by_channel = _models_first(x, dims[0], info.batch_size).transpose(1, 2)
        return _apply(PoolOfMany, by_channel).transpose(1, 2), 0


def _models_first(tensor: Tensor, dim: int | None, number: int) -> Tensor:
    return tensor.expand(number, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


class ConvOfMany(torch.autograd.Function):
    """(models, images, channels, height, width) with weights (models, outputs, channels, rows, columns) to (models,
    images, outputs, ...), which in memory has its outputs before its images."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        models, outputs, channels, rows, columns = weight.shape
        if any(padding):
            x = F.pad(x.transpose(1, 2), (padding[1], padding[1], padding[0], padding[0])).transpose(1, 2)
        images, height, width = x.shape[1], *x.shape[3:]
        high, wide = (height - rows) // stride[0] + 1, (width - columns) // stride[1] + 1
        # First along the columns, then along the rows, where whole images' rows are copied at once.
        a, b, c, d, e = x.stride()
        across = x.as_strided((models, channels, columns, images, height, wide), (a, c, e, b, d, e * stride[1]))
        a, c, e, b, d, f = (across := across.contiguous()).stride()
        shape = (models, channels, rows, columns, images, high, wide)
        unfolded = across.as_strided(shape, (a, c, d, e, b, d * stride[0], f))
        unfolded = unfolded.reshape(models, channels * rows * columns, images * high * wide)
        y = torch.bmm(weight.reshape(models, outputs, -1), unfolded)
        ctx.save_for_backward(unfolded, weight)
        ctx.of = (images, height, width, high, wide, stride, padding)
        return y.view(models, outputs, images, high, wide).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        unfolded, weight = ctx.saved_tensors
        images, height, width, high, wide, stride, padding = ctx.of
        models, outputs, channels, rows, columns = weight.shape
        grad = grad.transpose(1, 2).reshape(models, outputs, -1)
        of_weight = torch.bmm(grad, unfolded.transpose(1, 2)).view(weight.shape)
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None, None
        folded = torch.bmm(weight.reshape(models, outputs, -1).transpose(1, 2), grad)
        folded = folded.view(models, channels, rows, columns, images, high, wide)
        across = grad.new_zeros(models, channels, columns, images, height, wide)
        for row in range(rows):
            across[:, :, :, :, row : row + high * stride[0] : stride[0]].add_(folded[:, :, row])
        of_x = grad.new_zeros(models, channels, images, height, width)
        for column in range(columns):
            of_x[..., column : column + wide * stride[1] : stride[1]].add_(across[:, :, column])
        of_x = of_x[:, :, :, padding[0] : height - padding[0], padding[1] : width - padding[1]]
        return of_x.transpose(1, 2), of_weight, None, None


class PoolOfMany(torch.autograd.Function):
    """The largest of each two by two over the last two dims. Which of several that are equal gets the gradient may be
    another than torch's choice; any is right."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.shape = x.shape  # type: ignore[attr-defined]
        x = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
        top, bottom = x[..., 0::2, :], x[..., 1::2, :]  # whole rows first: the processor takes them many at a time
        rows = torch.maximum(top, bottom)
        left, right = rows[..., 0::2], rows[..., 1::2]
        ctx.save_for_backward(bottom - top, right - left)  # of one type with the gradient, as it is quickest
        return torch.maximum(left, right)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        down, across = ctx.saved_tensors
        rows = grad.new_empty(down.shape)
        right = _where_positive(across, grad)
        rows[..., 0::2] = grad - right
        rows[..., 1::2] = right
        of_x = grad.new_zeros(ctx.shape) if any(size % 2 for size in ctx.shape[-2:]) else grad.new_empty(ctx.shape)
        inside = of_x[..., : down.shape[-2] * 2, : down.shape[-1]]
        bottom = _where_positive(down, rows)
        inside[..., 0::2, :] = rows - bottom
        inside[..., 1::2, :] = bottom
        return of_x


def _where_positive(condition: Tensor, values: Tensor) -> Tensor:
    found: Tensor = torch.ops.aten.threshold_backward(values, condition, 0)  # of all ways to say so the quickest
    return found


RULES: dict[Callable[..., Any], Callable[..., tuple[Tensor, Made | None]]] = {
    F.conv2d: _conv2d,
    torch.conv2d: _conv2d,
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    F.max_pool2d: _max_pool2d,
    torch.max_pool2d: _max_pool2d,
}
