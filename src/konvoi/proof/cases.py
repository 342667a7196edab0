"""What is learned in the rows of the equivalence table: small, quick, and still a fair test."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from konvoi import devices
from konvoi.job import adapt, models, objectives, optimizers, schedules
from konvoi.job.job import Job
from konvoi.values import Objective, Source

VOCAB = 257  # odd: no axis divides it
SEQ = 12
STEPS = 12
CLIP = 0.25  # acts in at least half of the steps of each case
NUM_SAMPLES = 26  # few enough to be learned in these steps; the last held-out batch is a short one


@dataclass(frozen=True)
class Tokens:
    """Counting by ones, twos or threes, most of whose labels are ignored where `ragged`: a map-style data set."""

    ragged: bool = False

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = np.random.default_rng(index)
        ids = (random.integers(0, VOCAB) + np.arange(SEQ + 1) * random.integers(1, 4)) % VOCAB
        labels = ids.copy()
        if self.ragged:
            # Whole samples without a label, others with one or two: a mean of means would be far off.
            labels[random.random(SEQ + 1) < (1.0 if index % 5 == 0 else 0.8)] = -100
        return {"input_ids": ids.astype(np.int64), "labels": labels.astype(np.int64)}


@dataclass(frozen=True)
class Images:
    """Made-up images whose class is the brightest quadrant."""

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = np.random.default_rng(index)
        label = int(random.integers(0, 4))
        image = random.standard_normal((1, 8, 8)) * 0.5
        image[0, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 2.0
        return {"inputs": image.astype(np.float32), "labels": np.int64(label)}


class Plain(nn.Module):
    """A module as a user writes it: called as a function of its class, one block and one bias never used, one weight
    not trained, one weight used twice, one buffer."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.Tanh()) for _ in range(3))
        self.norm = nn.LayerNorm(16)
        self.last = nn.Linear(16, 4)
        self.unused = nn.Parameter(self.last.bias.detach().clone())
        self.first.bias.requires_grad_(False)
        self.register_buffer("offset", self.first.weight.detach().mean(1))

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.first(inputs.flatten(1)) + self.offset
        for block in (self.blocks[0], self.blocks[1], self.blocks[0]):  # the last is not reached
            x = x + block(x)
        logits: Tensor = self.last(self.norm(x))
        return logits


def instance() -> nn.Module:
    """A module that has its weights already."""
    with devices.seeded(11):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))


@dataclass(frozen=True)
class Case:
    """What is learned in a row."""

    name: str
    job: Job

    @property
    def steps(self) -> int:
        return self.job.steps or 0


CASES = (
    "gpt",
    "gpt ragged",
    "gpt tied",
    "gpt heads",
    "gpt deep",
    "gpt deep tied",
    "cnn",
    "mlp",
    "callable",
    "instance",
)
ADAPTED = ("gpt deep lora", "callable lora", "instance lora")  # these need PEFT


def case(name: str, **changes: Any) -> Case:
    """One of `CASES` or `ADAPTED`, with fields of its job changed. Raises: KeyError."""
    gpt = models.gpt(depth=2, width=16, num_heads=2, num_kv_heads=1, vocab_size=VOCAB, seq_len=SEQ)
    text, images = objectives.next_token(), objectives.classification()
    made: dict[str, tuple[Any, Source, Objective]] = {
        "gpt": (gpt, Tokens(), text),
        "gpt ragged": (gpt, Tokens(ragged=True), text),
        "gpt tied": (dataclasses.replace(gpt, tie_embeddings=True), Tokens(), text),
        "gpt heads": (dataclasses.replace(gpt, num_heads=4, num_kv_heads=2), Tokens(ragged=True), text),
        # Five blocks: no number of stages divides them.
        "gpt deep": (dataclasses.replace(gpt, depth=5), Tokens(ragged=True), text),
        "gpt deep tied": (dataclasses.replace(gpt, depth=5, tie_embeddings=True), Tokens(), text),
        "cnn": (models.cnn(depth=2, channels=8, input_shape=(1, 8, 8), num_outputs=4), Images(), images),
        "mlp": (models.mlp((16, 16), input_shape=(1, 8, 8), num_outputs=4), Images(), images),
        "callable": (Plain, Images(), images),
        "instance": (instance(), Images(), images),
    }
    model, data, objective = made[name.removesuffix(" lora")]
    if name in ADAPTED:
        # A frozen embedding and head learn next to nothing in these steps.
        ends = ("embed", "head") if name.startswith("gpt") else ()
        model = adapt.lora(rank=3, alpha=6, modules_to_save=ends).on(model)  # a rank that no axis divides
    common: dict[str, Any] = {
        "optimizer": optimizers.adamw(lr=2e-2, weight_decay=0.1),
        "schedule": schedules.constant(),
        "global_batch": 12,
        "clip_grad_norm": CLIP,
        "seed": 3,
        "steps": STEPS,
    }
    return Case(name, Job(model=model, data=data, objective=objective, **common | changes))
