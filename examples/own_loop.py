"""A program that keeps its own loop: three calls of a step become the island's.

torchrun --nproc-per-node 2 examples/own_loop.py
python examples/own_loop.py
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import konvoi as kv


def summed_error(model: nn.Module, batch: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The objective: a sum, and what it runs over."""
    inputs, targets = batch
    return (model(inputs) - targets).square().sum(), torch.tensor(float(len(inputs)))


def main() -> list[float]:
    torch.manual_seed(0)
    inputs = torch.randn(512, 8)
    loader = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True).tanh()), batch_size=32, shuffle=True)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    with kv.join() as island:
        model, optimizer, batches = island.prepare(model, optimizer, loader, objective=summed_error)
        for _ in range(5):
            for batch in batches:
                losses.append(island.forward_backward(batch))
                island.clip_grad_norm_(1.0)
                island.step(optimizer)
    return losses


if __name__ == "__main__":
    main()
