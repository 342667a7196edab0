"""transformers.Trainer with logging, saving and evaluation off: `torchrun --nproc-per-node 2 hf_trainer.py ...`.

The loader is the common one, so that its samples are the others' too; what it would do on its own for every step and
nobody here asked for (gathering token counts, filtering losses for logs) is off.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

import _work


class WithLoss(nn.Module):
    """What Trainer expects of a model: the loss comes out of its forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.module(input_ids)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten())}


class Batches(IterableDataset[Mapping[str, Tensor]]):
    """Whole batches of this worker."""

    def __init__(self, work: _work.Work, splits: Any) -> None:
        self.work, self.splits = work, splits

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        for batch in _work.batches(self.work, self.splits, dist.get_rank(), dist.get_world_size()):
            tokens = batch["input_ids"]
            yield {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}


class OwnLoader(Trainer):
    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_dataset, batch_size=None)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
        loss = super().compute_loss(model, inputs, **kwargs)
        self.losses.append(loss.item())
        return loss


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends = _work.Ends(told=dist.get_rank() == 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.step()


def main() -> None:
    args = _work.arguments()
    logging.set_verbosity_error()
    settings = TrainingArguments(
        output_dir="trainer",
        use_cpu=True,
        ddp_backend="gloo",
        ddp_find_unused_parameters=False,
        max_steps=args.steps,
        per_device_train_batch_size=args.work.batch,
        optim="adamw_torch_fused",
        learning_rate=_work.LR,
        adam_beta1=_work.BETAS[0],
        adam_beta2=_work.BETAS[1],
        weight_decay=_work.WEIGHT_DECAY,
        lr_scheduler_type="constant",
        max_grad_norm=_work.CLIP,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        average_tokens_across_devices=False,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    splits = _work.prepared(args.work)
    model = WithLoss(_work.module(args.work, splits))
    clock = Clock()
    trainer = OwnLoader(model=model, args=settings, train_dataset=Batches(args.work, splits), callbacks=[clock])
    trainer.losses = []
    trainer.train()
    losses = _work.mean_of_workers(trainer.losses)
    if dist.get_rank() == 0:
        _work.leave_trace(model, clock.ends, losses)
    _work.leave_together()


if __name__ == "__main__":
    main()
