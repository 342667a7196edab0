"""Adapters: a few small matrices are trained and saved, and the model that they stand in is not. The one file that
knows PEFT."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konvoi.errors import JobError, did_you_mean
from konvoi.job.adaptable import check_not_shared, is_matrix, is_read, is_transposed, matches
from konvoi.values import DataSpec, ModelRecipe, base_name, is_adapter

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["lora"]

NAME = "default"  # of the adapter inside the model, as PEFT calls it
PREFIX = "base_model.model."  # of every name in a folder of PEFT's
# Of a federation's adapters, as a person reads it (arXiv 2403.12313, section 3).
EXACT = "exact: B alone is trained, and mean(B) A is mean(B A)"
APPROXIMATE = "approximate: mean(B) mean(A) is not mean(B A); lora(freeze_a=True) is exact"


@dataclass(frozen=True)
class LoRA:
    """LoRA (Hu et al., arXiv 2106.09685 section 4.1): a matrix W answers with W x + alpha / rank * B A x. Only A and B
    are trained, `rank` rows and columns; B begins at zero. A run keeps them, and what its model was not read from.

    - `alpha`: of the factor above; default twice the rank.
    - `targets`: patterns (fnmatch) of the matrices' names; default: all in numbered blocks, or all there are.
    - `dropout`: of what A reads.
    - `modules_to_save`: patterns of modules that are trained and saved whole, such as a new head ("classifier").
    - `freeze_a`: A stays as it was drawn, and B is trained: in a federation the mean is then exact, as mean(B) A is
      mean(B A); of both, the mean is approximate (FFA-LoRA, arXiv 2403.12313, section 3.2).

    Raises: JobError.

    >>> lora(rank=4).alpha
    8
    """

    _: KW_ONLY
    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    modules_to_save: tuple[str, ...] = ()
    freeze_a: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise JobError("lora: rank is a whole number above zero", found=repr(self.rank))
        if self.alpha is None:
            object.__setattr__(self, "alpha", 2 * self.rank)
        elif not self.alpha > 0:
            raise JobError("lora: alpha is above zero", found=self.alpha)
        if not 0 <= self.dropout < 1:
            raise JobError("lora: dropout is a share below one", found=self.dropout)
        for field in ("targets", "modules_to_save"):
            if isinstance(getattr(self, field), str):
                found = getattr(self, field)
                raise JobError(f"lora: {field} is several patterns", found=repr(found), hint=f"{field}=({found!r},)")

    def saves(self, name: str) -> bool:
        """Whether a tensor of the model belongs to what is exported as an adapter."""
        above = (name[: found.start()] for found in re.finditer(r"\.", name))
        return is_adapter(name) or any(matches(one, pattern) for one in above for pattern in self.modules_to_save)

    def on(self, model: Any) -> Any:
        """The model's recipe with the adapters: a callable, that fits itself to the data where `model` does. What the
        model draws anew beside weights that it reads, as a new head, is trained, too."""
        drawn = tuple(pattern.removesuffix(".*") for pattern in getattr(model, "new", ()))
        lora = replace(self, modules_to_save=tuple(dict.fromkeys((*self.modules_to_save, *drawn))))
        return AdaptedRecipe(model, lora) if isinstance(model, ModelRecipe) else Adapted(model, lora)

    def inject(self, module: nn.Module) -> nn.Module:
        """Put adapters into a module, in place, and freeze all else. Raises: JobError where nothing has these names."""
        from torch import nn

        peft = _peft()
        saved = {name for pattern in self.modules_to_save for name in self._matching(module, pattern)}
        inside = tuple(f"{name}." for name in saved)
        names = [name for name in self._choose(module) if not f"{name}.".startswith(inside)]
        check_not_shared(module, (*names, *saved))
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules="|".join(re.escape(".".join(filter(None, ("model", name)))) for name in names),
            fan_in_fan_out=any(is_transposed(module.get_submodule(name)) for name in names),
        )
        # Around the model, a module without transformers' configuration, for whose types PEFT rewrites the targets.
        holder = nn.Module()
        holder.model = module
        peft.inject_adapter_in_model(config, holder, adapter_name=NAME)
        module = holder.get_submodule("model")
        for name in saved:
            module.get_submodule(name).requires_grad_(True)
        for name, parameter in module.named_parameters() if self.freeze_a else ():
            if "lora_A." in name:
                parameter.requires_grad_(False)
        for part in module.modules():
            if isinstance(part, nn.TransformerEncoderLayer):
                part.register_forward_pre_hook(_nothing)  # with a hook it has no short cut that leaves its parts out
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and not any(
                p.requires_grad for p in part.parameters()
            ):
                part.momentum = 0.0  # its statistics are the base's, too
        return module

    def _choose(self, module: nn.Module) -> list[str]:
        matrices = [name for name, part in module.named_modules() if is_matrix(part) and not is_read(module, name)]
        if not matrices:
            raise JobError("lora finds no matrix in this model", found=type(module).__name__, expected="nn.Linear")
        if not self.targets:
            return [name for name in matrices if re.search(r"\.\d+\.", f".{name}")] or matrices
        for pattern in self.targets:
            self._matching(module, pattern, matrices)
        return [name for name in matrices if any(matches(name, pattern) for pattern in self.targets)]

    @staticmethod
    def _matching(module: nn.Module, pattern: str, names: list[str] | None = None) -> list[str]:
        names = [name for name, _ in module.named_modules()] if names is None else names
        if found := [name for name in names if matches(name, pattern)]:
            return found
        leaves = {name.rpartition(".")[2] for name in names}
        raise JobError(
            "lora: no module of this model has that name",
            found=repr(pattern),
            expected=f"a pattern of names such as {', '.join(names[-3:])}",
            hint=did_you_mean(pattern.rpartition(".")[2], leaves),
        )


lora = LoRA


@dataclass(frozen=True)
class Adapted:
    """A model with adapters in it. Each call makes a new one; a module that is given stays as it is."""

    base: Any
    lora: LoRA

    def __call__(self) -> nn.Module:
        """The module, on `meta` where torch is told so and the base can. Raises: JobError."""
        from torch import nn

        module: Any = _copied(self.base) if isinstance(self.base, nn.Module) else self.base()
        module = self.lora.inject(module)
        if hasattr(module, "init_module"):
            module.init_module = _InitModule(module.init_module)
        return module  # type: ignore[no-any-return]

    def is_given(self, name: str) -> bool:
        """Whether a parameter comes with the job each time that the model is built, and need not be kept by a run."""
        from torch import nn

        if is_adapter(name):
            return False
        return isinstance(self.base, nn.Module) or (
            hasattr(self.base, "is_given") and self.base.is_given(base_name(name))
        )


class AdaptedRecipe(Adapted):
    """The same of a ready-made model."""

    def fit(self, spec: DataSpec) -> AdaptedRecipe:
        return replace(self, base=self.base.fit(spec))

    def derived(self) -> tuple[str, ...]:
        chosen = ", ".join(self.lora.targets) or "all matrices of the blocks"
        frozen = ", A as it is drawn" * self.lora.freeze_a
        return (*self.base.derived(), f"lora = rank {self.lora.rank}, alpha {self.lora.alpha:g}, on {chosen}{frozen}")


class _InitModule:
    """Fills the base's modules as the base does, under the names that they had, and the adapters as PEFT does."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def __call__(self, name: str, module: nn.Module, generator: torch.Generator | None = None) -> None:
        from torch import nn

        if ".lora_A." in name:
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)  # type: ignore[arg-type]
        elif ".lora_B." in name:
            nn.init.zeros_(module.weight)  # type: ignore[arg-type]
        else:
            self.base(base_name(name), module, generator)


def merged(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module that was adapted, as the module without adapters that answers the same."""
    for part in module.modules():
        if hasattr(part, "base_layer"):
            part.merge()  # type: ignore[operator]
    return {base_name(name): tensor for name, tensor in module.state_dict().items() if not is_adapter(name)}


def write_adapter(
    folder: Path,
    lora: LoRA,
    trained: Mapping[str, Tensor],
    modules: Collection[str],
    *,
    rename: Callable[[str], str] = str,
    base: str | None = None,
    kind: str | None = None,
) -> dict[str, Tensor]:
    """Write `adapter_config.json` as `peft.PeftModel.from_pretrained` reads it, and return the tensors that belong
    beside it. `modules`: names in the base model, and `rename` theirs elsewhere."""
    saved = [name for name in modules if any(matches(name, pattern) for pattern in lora.modules_to_save)]
    inner = tuple(f"{name}." for name in saved)
    state, layers = {}, set()
    for name, tensor in trained.items():
        stem, _, rest = name.partition(".lora_")
        if rest:
            layers.add(rename(stem))
            state[f"{PREFIX}{rename(stem)}.lora_{rest[0]}.weight"] = tensor
        else:
            module, _, leaf = name.rpartition(".")
            state[f"{PREFIX}{rename(module)}.{leaf}"] = tensor
    config = _peft().LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_shortened(layers, {rename(name) for name in modules}),
        modules_to_save=sorted(rename(name) for name in saved if not name.startswith(inner)) or None,
        base_model_name_or_path=base,
        task_type=kind,
        inference_mode=True,
    )
    config.save_pretrained(folder)
    return state


def _shortened(layers: Collection[str], modules: Collection[str]) -> list[str]:
    """The last part of each name, as most readers expect, where that means the same of all of a model's modules.

    >>> _shortened({"0.up", "1.up"}, {"0.up", "0.down", "1.up"}), _shortened({"0.up"}, {"0.up", "1.up"})
    (['up'], ['0.up'])
    """
    leaves = {name.rpartition(".")[2] for name in layers}
    same = {name for name in modules if name.rpartition(".")[2] in leaves} <= set(layers)
    return sorted(leaves if same else layers)


def _copied(module: nn.Module) -> nn.Module:
    """A copy, on `meta` where torch is told so."""
    import torch
    from torch import nn

    memo: dict[int, Any] = {}
    if torch.get_default_device().type == "meta":
        for parameter in module.parameters():
            memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        memo |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in module.buffers()}
    return copy.deepcopy(module, memo)


def _nothing(*_: Any) -> None:
    """A hook."""


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise JobError("lora needs PEFT", found="it is not installed", hint="pip install 'konvoi[lora]'") from None
    return peft
