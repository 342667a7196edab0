"""What the rooms pass to each other, and the Protocols that they speak.

Nothing here imports torch when it is loaded: a recipe that only names ready-made parts stays quick to read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class DataSpec:
    """What a data set says about its samples, so that a ready-made model can fit itself to them."""

    vocab_size: int | None = None  # token ids are in [0, vocab_size)
    num_classes: int | None = None
    input_shape: tuple[int, ...] | None = None  # of one sample's "inputs", e.g. (channels, height, width)
    num_targets: int | None = None  # width of a regression target
    seq_len: int | None = None  # positions that a model is run on for one sample
    bytes_per_token: float | None = None  # of the held-out text: turns nats per token into bits per byte
    tokenizer: str | None = None  # "bytes", or the path of a tokenizers JSON file


@runtime_checkable
class Source(Protocol):
    """A map-style data set: a fixed number of samples, each read by its index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Splits:
    """A prepared data set. `train` may also be an iterable (see job/data/stream.py); `valid` never is."""

    train: Any
    valid: Source | None
    spec: DataSpec
    description: Mapping[str, Any] = field(default_factory=dict)  # for the run's record: source, files, bytes, counts


@runtime_checkable
class Data(Protocol):
    """A frozen value that names data. `prepare` reads, checks and caches it, once, before a worker starts."""

    def prepare(self) -> Splits:
        """Raises: DataError where the data is missing, empty or unreadable."""
        ...


@runtime_checkable
class Division(Protocol):
    """Who has which samples of a data set."""

    def of(self, source: Source) -> Sequence[Any]:
        """Each client's indices, as arrays. Raises: DataError."""
        ...

    def describe(self) -> dict[str, Any]:
        """For the run's record."""
        ...


@runtime_checkable
class ModelRecipe(Protocol):
    """A ready-made model: a frozen value that fits itself to the data and builds the module when called."""

    def fit(self, spec: DataSpec) -> ModelRecipe:
        """Fill in what the data decides (vocabulary, classes, shape); what the user has set stays."""
        ...

    def derived(self) -> tuple[str, ...]:
        """What was derived from the dial, numbered and with its source, as a person reads it."""
        ...

    def __call__(self) -> nn.Module: ...


@runtime_checkable
class InitializesByName(Protocol):
    """A root module that can be built on `meta` and filled in one submodule at a time, whatever the plan."""

    def init_module(self, name: str, module: nn.Module, generator: torch.Generator) -> None:
        """Fill the parameters and buffers that `module` itself owns (not its children's), in place."""
        ...


class Objective(Protocol):
    """What is minimised: `(model, batch) -> (loss_sum, weight)`, two scalar tensors.

    `weight` counts what the sum runs over, in tokens or samples. The loop adds both over the *global* batch and
    divides once, so that padding, ignored labels and unequal parts change nothing.
    """

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor], /) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class Ignores(Protocol):
    """An objective that can leave out samples of a batch, as if they were not in it."""

    def without(self, batch: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """The batch, in which those samples count nothing where `rows` is true."""
        ...


takes_vocabulary_shards: ContextVar[bool] = ContextVar("takes_vocabulary_shards", default=False)
"""Set by an objective around its call of the model: under tp it gets each worker's part of the logits, as a DTensor
(see job/vocabulary_parallel.py). Everybody else gets plain tensors, whole."""


@runtime_checkable
class Measures(Protocol):
    """An objective that also knows other figures, e.g. accuracy: sums over the same weight as the loss."""

    def measure(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]: ...


@runtime_checkable
class OptimizerRecipe(Protocol):
    """A frozen value that builds optimizers for named parameters; a list, as Muon needs a companion."""

    def build(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> list[torch.optim.Optimizer]: ...


@runtime_checkable
class Schedule(Protocol):
    """The learning rate's factor at a step: pure, so that resuming needs no state."""

    def factor(self, step: int, num_steps: int) -> float: ...

    def derived(self, num_steps: int) -> tuple[str, ...]:
        """What this length decides, as a person reads it."""
        ...


@dataclass(frozen=True)
class MicroBatch:
    """One forward's share of a worker's part. Where `counts` is false the result is weighted with zero: a worker
    without samples of its own still takes part in the collectives."""

    batch: Mapping[str, Any]
    counts: bool = True


class Wire(Protocol):
    """Messages between islands, the time, and a second pair of hands. What is called back comes one at a time."""

    def join(self, name: str, receive: Callable[[str, Any], None], find: Callable[[str], bytes | None]) -> None:
        """`receive(sender, message)` is called for what is sent to `name`; `find(hash)` for what others fetch."""
        ...

    def watch(self, name: str, reaches: Callable[[str, bool], None]) -> None:
        """`reaches(peer, whether)` is called when a peer comes within reach of `name`, and when it is out of it."""
        ...

    def send(self, sender: str, to: str, message: Any, about: tuple[str, bytes] | None = None) -> None:
        """It may be lost; whoever misses it asks again. `about`: a hash and what it stands for, that the message is
        about; sent along, where it is small, so that it need not be fetched."""
        ...

    def fetch(self, name: str, peer: str, hash: str, then: Callable[[bytes | None], None]) -> None:
        """Get what a peer holds under a hash; None where it does not hold it. As long as it is away nothing comes."""
        ...

    def after(self, seconds: float, call: Callable[[], None]) -> None: ...

    def work(self, function: Callable[[], T], then: Callable[[T], None]) -> None:
        """Call a function that takes long, and then another with what it has returned. In order."""
        ...


class Batches(Protocol):
    """Endless: one item per optimizer step, each the micro-batches of this worker."""

    def __iter__(self) -> Iterator[list[MicroBatch]]: ...


@dataclass(frozen=True)
class Metrics:
    """Figures of one measurement, already divided: `values["loss"]` in nats per unit of `weight`."""

    values: Mapping[str, float]
    weight: float


# Inside a model with adapters, as PEFT names them: `x` becomes `x.base_layer`, `x.lora_A.default`, `x.lora_B.default`.


def base_name(name: str) -> str:
    """The name that a module or parameter has where there is no adapter.

    >>> base_name("blocks.0.up.base_layer.weight")
    'blocks.0.up.weight'
    """
    return re.sub(r"\.base_layer(?=\.|$)", "", name)


def is_adapter(name: str) -> bool:
    """
    >>> is_adapter("blocks.0.up.lora_A.default.weight"), is_adapter("blocks.0.up.base_layer.weight")
    (True, False)
    """
    return ".lora_A." in name or ".lora_B." in name
