"""The gradients of many models at once: each with weights of its own, over a batch of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.fx import GraphModule

from konvoi.population.rules import Rules
from konvoi.values import Objective

Found = tuple[Tensor, Tensor, list[Tensor]]  # of each model: the sum of losses, its weight; gradients of the sums


class Gradients:
    """Of an objective in the trained parameters of a module, for stacks of them.

    Called once for each new shape of its arguments, autograd and vmap write down what they do (`make_fx`); from then on
    only that is done, which for small models takes half the time. A model whose code looks at values cannot be stacked.
    """

    def __init__(self, module: nn.Module, objective: Objective) -> None:
        self.module, self.objective = module, objective
        self.names = [name for name, p in module.named_parameters() if p.requires_grad]
        self._traced: dict[Any, Callable[..., Any]] = {}
        self._is_plain = False

    def __call__(self, parameters: list[Tensor], batch: Mapping[str, Tensor]) -> Found:
        """`parameters`: in the order of `names`, each (models, ...); `batch`: each (models, batch, ...).

        Raises: whatever torch says of a model that cannot be stacked.
        """
        if self._is_plain:
            return self.plainly(parameters, batch)
        names, values = [*batch], [*batch.values()]
        shapes = tuple((tuple(t.shape), t.stride(), t.dtype) for t in (*parameters, *values))
        if shapes not in self._traced:
            from torch.fx.experimental.proxy_tensor import make_fx

            def whole(parameters: list[Tensor], values: list[Tensor]) -> Found:
                return self.plainly(parameters, dict(zip(names, values, strict=True)))

            self._traced[shapes] = lean(make_fx(whole)(parameters, values))
        with torch.no_grad():
            found: Found = self._traced[shapes](parameters, values)
        return found

    @contextlib.contextmanager
    def untraced(self) -> Iterator[None]:
        """Inside, nothing is written down: for a step that is taken once."""
        self._is_plain = True
        try:
            yield
        finally:
            self._is_plain = False

    def plainly(self, parameters: list[Tensor], batch: Mapping[str, Tensor]) -> Found:
        """The same, written down for nobody."""
        leaves = [p.detach().requires_grad_() for p in parameters]

        def of_one(values: list[Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            return self.objective(_Call(self.module, dict(zip(self.names, values, strict=True))), batch)

        if len(leaves[0]) == 1:  # by the kernels that it meets alone, to the last digit
            one = of_one([leaf[0] for leaf in leaves], {name: tensor[0] for name, tensor in batch.items()})
            losses, weights = (tensor.unsqueeze(0) for tensor in one)
        else:
            with Rules():
                losses, weights = vmap(of_one)(leaves, dict(batch))
        gradients = torch.autograd.grad(losses.sum(), leaves, allow_unused=True, materialize_grads=True)
        return losses.detach(), weights.detach(), [*gradients]


class _Call(nn.Module):
    """What an objective calls: the module with other weights."""

    def __init__(self, module: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        object.__setattr__(self, "inner", (module, parameters))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        module, parameters = self.__dict__["inner"]
        return functional_call(module, parameters, args, kwargs)


def lean(graph: GraphModule) -> GraphModule:
    """The same without steps that change nothing, or that nobody uses, of which vmap and autograd write down many."""
    aten = torch.ops.aten
    aliases = {aten.detach.default, aten.alias.default, aten.expand.default, aten.view.default, aten.permute.default}
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target not in {*aliases, aten.mul.Scalar}:
            continue
        if "tensor_meta" not in node.args[0].meta:
            continue  # a weight that is not trained
        before, after = node.args[0].meta["tensor_meta"], node.meta["tensor_meta"]
        is_same = (before.shape, before.stride) == (after.shape, after.stride)
        if is_same and (node.target in aliases or node.args[1] == 1):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph
