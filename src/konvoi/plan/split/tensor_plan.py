"""Which matrices of a model tp cuts, and how: what the model declares, else what its structure says.

Styles are named as in transformers. A plan decides where memory and time go and never what is computed (see tensor.py),
so that inferring one is no risk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from konvoi.errors import PlanError, did_you_mean
from konvoi.plan.split.blocks import find_blocks
from konvoi.values import base_name, is_adapter

STYLES = (
    *("colwise", "packed_colwise", "rowwise", "embedding_rowwise", "embedding_colwise"),
    *("replicate", "local", "local_partial"),
)
# What transformers calls the same, or what comes to the same where every tensor knows its whole shape.
ALIASES = {
    "colwise_rep": "colwise",
    "colwise_gather_output": "colwise",
    "rowwise_rep": "rowwise",
    "rowwise_split_input": "rowwise",
    "packed_rowwise": "rowwise",
    "replicated_with_grad_allreduce": "replicate",
    "sequence_parallel": "replicate",
    "mla_kv_a_proj": "replicate",
    "all_reduce": "replicate",
    "moe_tp_experts": "local_partial",
}
# DTensor's convolutions cut images over workers, which is another thing: they stay whole, on plain tensors.
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead")  # what attention's fields are called
KV_HEADS = ("num_kv_heads", "num_key_value_heads")


def plan_of(module: nn.Module) -> dict[str, str]:
    """Style by name of module, `*` for a number: the attribute `tp_plan` of the root module, else inferred.

    Raises: PlanError, where neither says anything.
    """
    declared: Any = getattr(module, "tp_plan", None)
    plan = {name: ALIASES.get(style, style) for name, style in (declared or inferred(module)).items()}
    if not plan:
        raise PlanError(
            "tp does not know how to cut this model",
            found=f"{type(module).__name__} without a tp_plan, and no attention or pair of matrices in repeated blocks",
            hint='declare it: model.tp_plan = {"blocks.*.mlp.up": "colwise", "blocks.*.mlp.down": "rowwise", ...}',
        )
    return plan


def inferred(module: nn.Module) -> dict[str, str]:
    """Of repeated blocks: attention's last matrix by rows and those before it by columns; elsewhere what widens by
    columns and what narrows by rows. Of the rest: an embedding and a head of one vocabulary, by the vocabulary.

    >>> inferred(nn.Sequential(*(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2))))
    {'*.0': 'colwise', '*.2': 'rowwise'}
    """
    blocks = find_blocks(module)
    found: dict[str, str] = {}
    for name, block in blocks:
        for child, style in _of_block(block).items():
            one = ".".join((*name.split(".")[:-1], "*", child))
            found[one] = style if found.get(one, style) == style else "replicate"
    inside = tuple(f"{name}." for name, _ in blocks)
    rest = [(base_name(name), part) for name, part in module.named_modules() if not name.startswith(inside)]
    heads = {(part.out_features, part.in_features): name for name, part in rest if isinstance(part, nn.Linear)}
    for name, part in rest if blocks else ():
        shape = (part.num_embeddings, part.embedding_dim) if isinstance(part, nn.Embedding) else None
        if found and shape in heads:
            found |= {name: "embedding_rowwise", heads[shape]: "colwise"}
    return found


def _of_block(block: nn.Module) -> dict[str, str]:
    found: dict[str, str] = {}
    width: int | None = None
    for name, attention in _attentions(block):
        inside = matrices(attention, name)
        if len(inside) > 1:
            *before, (last, out) = inside
            width = shape_of(out)[0]
            found[last] = "rowwise"
            for child, part in before:  # those of queries, keys and values in one are cut where none of them ends
                is_fused = shape_of(part)[0] > shape_of(out)[1]
                found[child] = "packed_colwise" if is_fused else "colwise"
    rest = [(name, part) for name, part in matrices(block) if name not in found]
    width = width or (shape_of(rest[0][1])[1] if len(rest) > 1 else None)
    for name, part in rest:
        wide, narrow = shape_of(part)
        if narrow == width != wide:
            found[name] = "colwise"
        elif wide == width != narrow:
            found[name] = "rowwise"
    return found if "rowwise" in found.values() else {}


def _attentions(block: nn.Module) -> list[tuple[str, nn.Module]]:
    """The outermost modules that are called attention."""
    found: list[tuple[str, nn.Module]] = []
    for name, part in block.named_modules():
        if "attention" in type(part).__name__.lower() and not name.startswith(tuple(f"{n}." for n, _ in found)):
            found.append((name, part))
    return found


def matrices(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The matrices of a module by name; where one has an adapter, itself under the name that it had without."""
    named = module.named_modules(prefix=prefix)
    return [(base_name(name), part) for name, part in named if is_matrix(part) and not is_adapter(name)]


def is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether a matrix is (in, out), as those of transformers' Conv1D, and not (out, in)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def shape_of(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a matrix."""
    rows, columns = module.weight.shape  # type: ignore[misc]
    return (columns, rows) if is_transposed(module) else (rows, columns)


def check(module: nn.Module, tp: int, device_kind: str) -> str:
    """How the model will be cut, as a person reads it. Raises: PlanError where it cannot be, over so many workers."""
    plan = plan_of(module)
    _check_dropout(module, tp, device_kind)
    names = [base_name(name) for named in (module.named_modules(), module.named_parameters()) for name, _ in named]
    for name, style in plan.items():
        if style not in STYLES:
            raise PlanError("unknown style in tp_plan", found=f"{name}: {style}", hint=did_you_mean(style, STYLES))
        if not any(_matches(name, other) for other in names):
            raise PlanError("tp_plan names no module", found=name, hint=did_you_mean(name, names))
    for name, part in module.named_modules():
        heads, kv_heads = _field(part, HEADS), _field(part, KV_HEADS)
        if not heads or not any(True for _ in _cut_below(name, part, plan)):
            continue
        if heads % tp:
            raise PlanError(
                "tp does not divide the heads of attention",
                found=f"{heads} heads in {name} for tp={tp}",
                expected=f"tp one of {', '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}",
            )
        if kv_heads and kv_heads % tp and tp % kv_heads:
            raise PlanError(
                "tp neither divides the heads of keys and values, nor is a multiple of them",
                found=f"{kv_heads} in {name} for tp={tp}",
                hint=f"tp={kv_heads}",
            )
    how = "as the model declares" if getattr(module, "tp_plan", None) else "inferred"
    cut = styles(module, plan, tp)
    shown = [
        f"{name} {style}"
        for name, style in plan.items()
        if any(_matches(name, base_name(one)) and cut[one] == style for one in cut)
    ]
    return f"tp = {', '.join(shown)} ({how}); all else whole on each worker"


def _check_dropout(module: nn.Module, tp: int, device_kind: str) -> None:
    drawing = [name for name, part in module.named_modules() if isinstance(part, nn.Dropout) and part.p > 0]
    if drawing and device_kind == "cpu":
        raise PlanError(
            "tp on CPU cannot draw the random numbers of dropout (torch 2.13, DTensor)",
            found=f"{len(drawing)} modules, {drawing[0]} the first, for tp={tp}",
            hint="a dropout of 0, or dp and fsdp",
        )


def styles(module: nn.Module, plan: Mapping[str, str], tp: int) -> dict[str, str]:
    """The style of every module that holds parameters itself, by name.

    Keys and values with fewer heads than workers stay whole on each: several need the same (arXiv 2305.13245).
    Of an adapter B A beside a matrix, A is cut where its input is, B where its output is.
    """
    found = {}
    for name, part in module.named_modules():
        if any(True for _ in part.parameters(recurse=False)):
            original, _, letter = base_name(name).partition(".lora_")
            style = "local" if isinstance(part, CONVOLUTIONS) else style_of(original, plan)
            parent = module.get_submodule(original.rpartition(".")[0])
            if style == "colwise" and _is_of_fewer_heads(_base(module.get_submodule(original)), parent, tp):
                style = "replicate"
            is_uncut = bool(letter) and ("colwise" in style if letter[0] == "A" else style == "rowwise")
            found[name] = "replicate" if is_uncut else style
    return found


def _base(module: nn.Module) -> nn.Module:
    """A module without its adapter."""
    return getattr(module, "base_layer", module)


def style_of(name: str, plan: Mapping[str, str]) -> str:
    """
    >>> style_of("blocks.3.mlp.up", {"blocks.*.mlp.up": "colwise"})
    'colwise'
    """
    if name in plan:
        return plan[name]
    return next((style for pattern, style in plan.items() if _matches(pattern, name)), "replicate")


def _matches(pattern: str, name: str) -> bool:
    mine, other = pattern.split("."), name.split(".")
    return len(mine) == len(other) and all(
        a == b or (a == "*" and b.isdigit()) for a, b in zip(mine, other, strict=True)
    )


def _is_of_fewer_heads(module: nn.Module, attention: nn.Module, tp: int) -> bool:
    heads, kv_heads = _field(attention, HEADS), _field(attention, KV_HEADS)
    if not heads or not kv_heads or kv_heads == heads or kv_heads % tp == 0:
        return False
    most = max(shape_of(child)[0] for child in map(_base, attention.children()) if is_matrix(child))
    return is_matrix(module) and shape_of(module)[0] * heads == most * kv_heads


def _cut_below(name: str, module: nn.Module, plan: Mapping[str, str]) -> Iterator[str]:
    for child, _ in module.named_children():
        if style_of(f"{name}.{child}", plan) in ("colwise", "rowwise"):
            yield child


def _field(module: nn.Module, names: tuple[str, ...]) -> int | None:
    """Of the module, or of the configuration that it keeps, as those of transformers do."""
    owners = (module, getattr(module, "config", None))
    return next((value for o in owners for name in names if isinstance(value := getattr(o, name, None), int)), None)
