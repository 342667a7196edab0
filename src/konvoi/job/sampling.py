"""What a language model writes: tokens drawn one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def continue_tokens(
    model: Callable[[Tensor], Any],
    tokens: list[int],
    num_tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int | None = 50,
    max_context: int,
    seed: int = 0,
    end: int | None = None,
    device: torch.device | str = "cpu",
) -> list[int]:
    """Up to `num_tokens` more tokens after `tokens`; stops before `end`.

    Each token's random number is keyed by (seed, position), so that the same request gives the same text wherever it
    is cut. `temperature=0` takes the likeliest. The whole context is computed anew for every token.
    """
    context = list(tokens)
    for position in range(len(tokens), len(tokens) + num_tokens):
        window = torch.tensor([context[-max_context:]], device=device)
        logits = logits_of(model(window))[0, -1].float()
        token = _draw(logits, temperature, top_k, seed * 1_000_003 + position)
        if token == end:
            break
        context.append(token)
    return context[len(tokens) :]


def logits_of(output: Any) -> Tensor:
    """A model's output, or its `.logits` as in transformers."""
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def _draw(logits: Tensor, temperature: float, top_k: int | None, seed: int) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    if top_k is not None and top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    generator = torch.Generator().manual_seed(seed)
    return int(torch.multinomial((logits / temperature).softmax(-1).cpu(), 1, generator=generator))
