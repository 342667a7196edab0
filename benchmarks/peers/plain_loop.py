"""The barest loop on one accelerator: the same module, compiled block by block, bf16 autocast, fused AdamW.

No event, no metric, no check. The host waits for the device only after the first and the last steps that are timed, so
only these two times are exact; `--checkpoint-every` is not understood.
"""

import time

import torch
import torch.nn.functional as F

import _work

WAITS = (1, _work.WARM_UP)  # steps after which the clock is exact, beside the last


def main() -> None:
    args = _work.arguments()
    device = torch.accelerator.current_accelerator()
    torch.set_float32_matmul_precision("high")

    splits = _work.prepared(args.work)
    model = _work.module(args.work, splits, device.type)
    if args.work.compiled:
        for block in model.blocks:
            block.compile()
    optimizer = torch.optim.AdamW(_work.decay_groups(model), lr=_work.LR, betas=_work.BETAS, fused=True)
    batches = _work.batches(args.work, splits, rank=0, world_size=1)

    ends, losses = [], []
    for step in range(1, args.steps + 1):
        tokens = next(batches)["input_ids"].to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.work.precision == "bf16"):
            logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _work.CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if step in WAITS or step == args.steps:
            torch.accelerator.synchronize()
        ends.append(time.time())

    _work.leave_trace(model, ends, torch.stack(losses).tolist())


if __name__ == "__main__":
    main()
