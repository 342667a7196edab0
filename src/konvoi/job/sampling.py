"""What a language model writes: tokens drawn one after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def continue_tokens(
    model: nn.Module,
    tokens: list[int],
    num_tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int | None = 50,
    max_context: int,
    seed: int = 0,
    end: int | None = None,
) -> list[int]:
    """Up to `num_tokens` more tokens after `tokens`; stops before `end`.

    Each token's random number is keyed by (seed, position), so that the same request gives the same text wherever it
    is cut. `temperature=0` takes the likeliest. The whole context is computed anew for every token.
    """
    device = next(model.parameters()).device
    context = list(tokens)
    for position in range(len(tokens), len(tokens) + num_tokens):
        window = torch.tensor([context[-max_context:]], device=device)
        output = model(window)
        logits = (output if isinstance(output, Tensor) else output.logits)[0, -1].float()
        token = _draw(logits, temperature, top_k, seed * 1_000_003 + position)
        if token == end:
            break
        context.append(token)
    return context[len(tokens) :]


def _draw(logits: Tensor, temperature: float, top_k: int | None, seed: int) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    if top_k is not None and top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    generator = torch.Generator().manual_seed(seed)
    return int(torch.multinomial((logits / temperature).softmax(-1).cpu(), 1, generator=generator))
