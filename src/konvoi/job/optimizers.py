"""Optimizers as frozen values; `build` makes torch's own for named parameters."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar, cast

from konvoi.errors import JobError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Group", "adamw", "muon", "sgd"]

T = TypeVar("T", bound="torch.optim.Optimizer")
NamedParameters = Sequence[tuple[str, "nn.Parameter"]]
FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")  # where torch 2.9 to 2.13 have fused kernels for AdamW


@dataclass(frozen=True)
class Group:
    """Parameters whose name matches `pattern` (fnmatch; `*.head.*` also finds a top-level `head.weight`).

    What is None stays the optimizer's. The first rule that matches a name decides.
    """

    pattern: str
    _: KW_ONLY
    lr: float | None = None
    weight_decay: float | None = None

    def matches(self, name: str) -> bool:
        """
        >>> Group("*.head.*").matches("head.weight"), Group("*.head.*").matches("overhead.weight")
        (True, False)
        """
        return fnmatchcase(name, self.pattern) or fnmatchcase(f".{name}", self.pattern)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101), fused where torch can. The betas are those of GPT-3.

    Norms, biases and all else with fewer than two dims do not decay, as in nanoGPT; a Group can say otherwise.
    """

    _: KW_ONLY
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        _check_not_negative(lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)
        for beta in self.betas:
            _check_below_one("betas", beta)

    def build(self, parameters: NamedParameters) -> list[torch.optim.Optimizer]:
        """Raises: JobError for a Group that matches no parameter."""
        import torch

        groups = parameter_groups(parameters, lr=self.lr, weight_decay=self.weight_decay, rules=self.groups)
        if not groups:
            return []
        fused = _can_fuse(parameters)
        return [lean(torch.optim.AdamW)(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=fused)]


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent. Its weight decay is part of the gradient (L2); norms and biases do not decay.

    Not fused: torch's fused kernel does not take sharded parameters (DTensor), and all plans should run the same code.

    >>> sgd(lr=0.1, momentum=0.9, nesterov=True).momentum
    0.9
    """

    _: KW_ONLY
    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        _check_not_negative(lr=self.lr, weight_decay=self.weight_decay)
        _check_below_one("momentum", self.momentum)
        if self.nesterov and not self.momentum:
            raise JobError("sgd: nesterov needs momentum", found="momentum=0", hint="e.g. momentum=0.9")

    def build(self, parameters: NamedParameters) -> list[torch.optim.Optimizer]:
        """Raises: JobError for a Group that matches no parameter."""
        import torch

        groups = parameter_groups(parameters, lr=self.lr, weight_decay=self.weight_decay, rules=self.groups)
        if not groups:
            return []
        return [lean(torch.optim.SGD)(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)]


@dataclass(frozen=True)
class Muon:
    """Momentum made orthogonal (Jordan et al. 2024) for the matrices of repeated blocks, AdamW for all else.

    `matrices` says which: by default the two-dimensional parameters with a number in their path, as in
    `blocks.3.attention.q.weight`; embeddings and heads have none. AdamW's own groups rule over its part only.

    Sharded matrices (DTensor) work, at the price of 11 to 16 small collectives a matrix and step. The iteration runs
    in bfloat16 where the device has it, and magnifies its rounding: the updates of two plans differ by 2 or 3 % of
    their norm, as if the gradient had been disturbed in its third digit. Do not look for equal losses.

    >>> muon(lr=0.02, adamw=adamw(lr=3e-4)).adamw.lr
    0.0003
    """

    _: KW_ONLY
    lr: float = 0.02
    momentum: float = 0.95
    weight_decay: float = 0.0
    matrices: str = "*.[0-9]*.*"
    adamw: AdamW = field(default_factory=AdamW)

    def __post_init__(self) -> None:
        _check_not_negative(lr=self.lr, weight_decay=self.weight_decay)
        _check_below_one("momentum", self.momentum)

    def build(self, parameters: NamedParameters) -> list[torch.optim.Optimizer]:
        """Raises: JobError where there is no matrix in any block."""
        import torch

        from konvoi.job import orthogonal

        orthogonal.install()
        rule = Group(self.matrices)
        matrices = [(name, p) for name, p in parameters if p.ndim == 2 and rule.matches(name)]
        taken = {name for name, _ in matrices}
        rest = [(name, p) for name, p in parameters if name not in taken]
        if parameters and not matrices:
            raise JobError(
                "muon finds no matrix in a repeated block",
                found=", ".join(name for name, _ in parameters[:4]) + ", ...",
                expected=f"two-dimensional parameters whose name matches {self.matrices!r}",
                hint="muon(matrices='...') names them; optimizers.adamw() takes any model",
            )
        groups = parameter_groups(matrices, lr=self.lr, weight_decay=self.weight_decay)
        muons = [lean(torch.optim.Muon)(groups, lr=self.lr, momentum=self.momentum)] if groups else []
        return [*muons, *self.adamw.build(rest)]


adamw = AdamW
sgd = SGD
muon = Muon


def lean(kind: type[T]) -> type[T]:
    """The same optimizer, not loading torch's compiler, which takes as long as torch itself.

    torch marks an optimizer's methods as not to be traced, and `step` as a break in a traced graph; both import
    torch._dynamo at their first call, whether anything is compiled or not. Where it is loaded already, nothing
    changes. The marks are torch's private affair (torch/_compile.py): where they change, the first step takes a
    second longer, and no result differs.
    """
    import torch

    if "torch._dynamo" in sys.modules:
        return kind
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        inner = inspect.unwrap(getattr(torch.optim.Optimizer, name))
        inner.__dict__.setdefault("__dynamo_disable", inner)
    return cast("type[T]", type(kind.__name__, (kind,), {"step": torch.no_grad()(inspect.unwrap(kind.step))}))


def parameter_groups(
    parameters: NamedParameters, *, lr: float, weight_decay: float, rules: Sequence[Group] = ()
) -> list[dict[str, Any]]:
    """torch's parameter groups, one for each pair of learning rate and decay, in the order of first appearance.

    `initial_lr` (torch's own name for it) stays; the loop sets `lr` to it times the schedule's factor.
    """
    check_rules([name for name, _ in parameters], rules)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        rule = next((rule for rule in rules if rule.matches(name)), None)
        rate = lr if rule is None or rule.lr is None else rule.lr
        decay = weight_decay if parameter.ndim >= 2 else 0.0
        if rule is not None and rule.weight_decay is not None:
            decay = rule.weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": members, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]


def check_rules(names: Iterable[str], rules: Sequence[Group]) -> None:
    """Raises: JobError for a rule that matches none of the names."""
    names = list(names)
    for rule in rules:
        if not any(rule.matches(name) for name in names):
            words = {word for name in names for word in name.split(".") if not word.isdigit()}
            longest = max(re.findall(r"\w+", rule.pattern), key=len, default="")
            raise JobError(
                "an optimizer group matches no parameter",
                found=f"pattern {rule.pattern!r}",
                expected="a pattern of parameter names, such as " + ", ".join(repr(name) for name in names[:3]),
                hint=did_you_mean(longest, words),
            )


def _can_fuse(parameters: NamedParameters) -> bool:
    return all(p.device.type in FUSED_DEVICES and p.is_floating_point() for _, p in parameters)


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise JobError(f"{name} is negative", found=value, expected="0 or more")


def _check_below_one(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise JobError(f"{name} is out of range", found=value, expected="0 <= value < 1")
