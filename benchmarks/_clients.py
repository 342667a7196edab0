"""Federated work that every program of `federated.py` does alike: the models, who has what, and which samples stand in
which batch of which round."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LR = 0.05


class LeNet(nn.Module):
    """That of Flower's quickstart for PyTorch, on one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.pool = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2, 2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 4 * 4, 120), nn.Linear(120, 84), nn.Linear(84, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = F.relu(self.fc1(x.flatten(1)))
        found: Tensor = self.fc3(F.relu(self.fc2(x)))
        return found


class McMahan(nn.Module):
    """The CNN of arXiv 1602.05629, section 3: 1.7 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 5, padding=2), nn.Conv2d(32, 64, 5, padding=2)
        self.pool, self.fc1, self.fc2 = nn.MaxPool2d(2, 2), nn.Linear(64 * 7 * 7, 512), nn.Linear(512, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        found: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return found


MODELS = {"small": LeNet, "real": McMahan}


@dataclass(frozen=True)
class Work:
    """Read by every program before its clock begins."""

    setting: str
    images: Tensor
    labels: Tensor
    batches: list[list[list[Tensor]]]  # [round][client][step]: samples
    weights: dict[str, Tensor]  # that all begin with

    @property
    def num_clients(self) -> int:
        return len(self.batches[0])

    def samples(self, client: int) -> int:
        """That weigh the client's update: those of a round."""
        return sum(len(one) for one in self.batches[0][client])

    def model(self) -> nn.Module:
        return build(self.setting, self.weights)


def build(setting: str, weights: Mapping[str, Tensor]) -> nn.Module:
    """By itself, as a job that holds it is sent to its workers: with `Work` all batches would go, too."""
    module = MODELS[setting]()
    module.load_state_dict(weights)
    return module


def write(
    folder: Path,
    setting: str,
    images: np.ndarray,
    labels: np.ndarray,
    batches: Sequence[Sequence[Sequence[np.ndarray]]],
) -> None:
    torch.manual_seed(0)
    sizes = [[[len(step) for step in client] for client in round] for round in batches]
    flat = np.concatenate([step for round in batches for client in round for step in client])
    np.savez(folder / "work.npz", images=images, labels=labels, flat=flat)
    torch.save(MODELS[setting]().state_dict(), folder / "weights.pt")
    (folder / "work.json").write_text(json.dumps({"setting": setting, "sizes": sizes}))


def read(folder: Path) -> Work:
    told = json.loads((folder / "work.json").read_text())
    arrays = np.load(folder / "work.npz")
    flat, batches, at = torch.from_numpy(arrays["flat"]), [], 0
    for round in told["sizes"]:
        batches.append([])
        for client in round:
            batches[-1].append([flat[at + sum(client[:n]) : at + sum(client[: n + 1])] for n in range(len(client))])
            at += sum(client)
    weights = torch.load(folder / "weights.pt")
    images, labels = (torch.from_numpy(arrays[name]) for name in ("images", "labels"))
    return Work(told["setting"], images, labels, batches, weights)


@cache
def preloaded(folder: Path, threads: int) -> tuple[Work, nn.Module]:
    """In a process that trains clients as they come: the work, and a model of its own."""
    torch.set_num_threads(threads)
    work = read(folder)
    return work, work.model()


def train_one(model: nn.Module, work: Work, round: int, client: int) -> None:
    """A client's steps, in plain torch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for rows in work.batches[round][client]:
        optimizer.zero_grad()
        F.cross_entropy(model(work.images[rows]), work.labels[rows]).backward()
        optimizer.step()


def finish(folder: Path, weights: dict[str, Tensor], seconds: Sequence[float], setup_s: float) -> None:
    """What a program leaves: seconds of each round, and what was learnt, by which all are compared."""
    torch.save(weights, folder / "learnt.pt")
    (folder / "told.json").write_text(json.dumps({"seconds": [*seconds], "setup_s": setup_s}))
