"""What is minimised: frozen values that map `(model, batch)` to `(loss_sum, weight)`, never to a mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from konvoi.errors import JobError
from konvoi.values import Measures, Objective, takes_vocabulary_shards

if TYPE_CHECKING:
    from torch import Tensor, nn

IGNORED = -100  # torch's and transformers' label of what does not count

__all__ = ["classification", "masked_token", "next_token", "regression", "sequence_to_sequence"]


@dataclass(frozen=True)
class NextToken:
    """Cross entropy of each token given those before it, in nats; the weight is the number of tokens that count.

    The batch has `input_ids` (batch, seq + 1), of which the model sees the first seq. Optional are `labels`, aligned
    with `input_ids` as in transformers (this shifts them, once), and `attention_mask` of the same shape, which the
    model gets too. Targets that are `ignore_index` do not count, and without labels neither does padding.
    """

    _: KW_ONLY
    ignore_index: int = -100

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor], /) -> tuple[Tensor, Tensor]:
        mask = batch.get("attention_mask")
        inputs = {} if mask is None else {"attention_mask": mask[:, :-1]}
        return _token_loss(model, inputs, self.targets(batch), self.ignore_index, batch["input_ids"][:, :-1])

    def without(self, batch: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """The batch, of which the samples where `rows` is true do not count."""
        labels = batch.get("labels", batch["input_ids"])
        if "labels" not in batch and "attention_mask" in batch:
            labels = labels.masked_fill(batch["attention_mask"] == 0, self.ignore_index)
        return {**batch, "labels": labels.masked_fill(rows[..., None], self.ignore_index)}

    def targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch, seq): what each position is to predict."""
        if "labels" in batch:
            return batch["labels"][:, 1:]
        targets = batch["input_ids"][:, 1:]
        mask = batch.get("attention_mask")
        return targets if mask is None else targets.masked_fill(mask[:, 1:] == 0, self.ignore_index)


@dataclass(frozen=True)
class MaskedToken:
    """Cross entropy of the tokens that were hidden, in nats; the weight is their number.

    The batch has `input_ids` (batch, seq), some of them masked; `labels` of the same shape, -100 where nothing was
    (as transformers' DataCollatorForLanguageModeling makes them); optionally `attention_mask`.

    >>> import torch
    >>> even = lambda input_ids: torch.zeros(*input_ids.shape, 2)  # two tokens, none likelier than the other
    >>> batch = {"input_ids": torch.tensor([[1, 0]]), "labels": torch.tensor([[-100, 1]])}
    >>> loss_sum, weight = masked_token()(even, batch)
    >>> round(loss_sum.item(), 3), weight.item()
    (0.693, 1.0)
    """

    _: KW_ONLY
    ignore_index: int = -100

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor], /) -> tuple[Tensor, Tensor]:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        return _token_loss(model, inputs, batch["labels"], self.ignore_index)


@dataclass(frozen=True)
class SequenceToSequence:
    """Cross entropy of each token of `labels` given those before it and the whole of `input_ids`, in nats.

    The batch has `input_ids` (batch, seq), `labels` (batch, length) with -100 for what does not count, optionally
    `attention_mask`. The decoder reads the labels moved by one behind the token `start`, as transformers does it.

    >>> import torch
    >>> def tells(input_ids, decoder_input_ids):
    ...     print(decoder_input_ids.tolist())
    ...     return torch.zeros(*decoder_input_ids.shape, 2)
    >>> batch = {"input_ids": torch.tensor([[1, 1]]), "labels": torch.tensor([[1, 0, -100]])}
    >>> loss_sum, weight = sequence_to_sequence(start=0)(tells, batch)
    [[0, 1, 0]]
    """

    _: KW_ONLY
    start: int = 0
    ignore_index: int = -100

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor], /) -> tuple[Tensor, Tensor]:
        labels = batch["labels"]
        known = labels.masked_fill(labels == self.ignore_index, self.start)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        inputs["decoder_input_ids"] = known.roll(1, dims=1).index_fill(1, labels.new_zeros(1), self.start)
        return _token_loss(model, inputs, labels, self.ignore_index)


@dataclass(frozen=True)
class Classification:
    """Cross entropy of `model(inputs)` (batch, classes) against `labels` (batch,); the weight is the samples. Those
    whose label is -100 do not count."""

    _: KW_ONLY
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise JobError("label_smoothing is out of range", found=self.label_smoothing, expected="0 <= value < 1")

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor], /) -> tuple[Tensor, Tensor]:
        import torch.nn.functional as F

        logits, labels = _logits(model(batch["inputs"])), batch["labels"]
        loss_sum = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.label_smoothing)
        return loss_sum, (labels != IGNORED).sum().to(loss_sum.dtype)

    def without(self, batch: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """The batch, of which the samples where `rows` is true do not count."""
        return {**batch, "labels": batch["labels"].masked_fill(rows, IGNORED)}

    def measure(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The number of samples whose best class is the right one."""
        best = _logits(model(batch["inputs"])).argmax(-1)
        return {"accuracy": (best == batch["labels"]).sum()}


@dataclass(frozen=True)
class Regression:
    """Squared distance of `model(inputs)` to `targets`, both (batch, targets); the weight is the samples.

    The sum over a sample's targets is not divided by their number: the loss of a run is the mean over the samples of
    `||prediction - target||^2`, which is num_targets times what torch's MSELoss shows.

    >>> import torch
    >>> loss_sum, weight = regression()(torch.nn.Identity(), {"inputs": torch.ones(3, 2), "targets": torch.zeros(3, 2)})
    >>> loss_sum.item(), weight.item()
    (6.0, 3.0)
    """

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor], /) -> tuple[Tensor, Tensor]:
        predictions, targets = _logits(model(batch["inputs"])), batch["targets"]
        if predictions.shape != targets.shape:
            # (batch, 1) against (batch,) would silently compare everything with everything.
            raise JobError(
                "regression: the model's output and the targets have different shapes",
                found=f"output {tuple(predictions.shape)}",
                expected=f"targets {tuple(targets.shape)}",
            )
        loss_sum = (predictions - targets).square().sum()
        return loss_sum, loss_sum.new_tensor(len(targets))


next_token = NextToken
masked_token = MaskedToken
sequence_to_sequence = SequenceToSequence
classification = Classification
regression = Regression


def measured(objective: Objective) -> Callable[[nn.Module, Any], dict[str, Tensor]]:
    """What is added up over held-out batches: loss and weight, and what else the objective measures."""

    def measure(module: nn.Module, batch: Any) -> dict[str, Tensor]:
        loss_sum, weight = objective(module, batch)
        extra = objective.measure(module, batch) if isinstance(objective, Measures) else {}
        return {"loss": loss_sum, "weight": weight, **extra}

    return measure


def _token_loss(
    model: nn.Module, inputs: Mapping[str, Tensor], targets: Tensor, ignore_index: int, *first: Tensor
) -> tuple[Tensor, Tensor]:
    """Of logits (batch, seq, vocab), which under tp are only a worker's part of the vocabulary."""
    from konvoi.job.vocabulary_parallel import cross_entropy_sum

    token = takes_vocabulary_shards.set(True)
    try:
        output = model(*first, **inputs)
    finally:
        takes_vocabulary_shards.reset(token)
    loss_sum = cross_entropy_sum(getattr(output, "logits", output), targets, ignore_index)
    return loss_sum, (targets != ignore_index).sum().to(loss_sum.dtype)


def _logits(output: Any) -> Tensor:
    """The model's output, or its `.logits` (transformers), in at least float32: a sum needs the digits."""
    import torch

    logits: Tensor = output if isinstance(output, torch.Tensor) else output.logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
