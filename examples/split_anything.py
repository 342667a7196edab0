"""A model of transformers, which knows nothing of us: trained on four workers, split one way, then another, then gone.

    python examples/split_anything.py [--folder runs] [--steps 40]

It starts as two pipelines of two stages (dp=2, pp=2), goes on from its checkpoint with every matrix cut in four (tp=4),
is written as transformers writes its models, and loaded by transformers, which must compute what it computed here.
"""

import argparse
import tempfile

import torch
import transformers

import konvoi as kv


def job(steps: int = 40) -> kv.Job:
    config = {
        "model_type": "qwen2",
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,  # fewer than four workers: two of them hold the same
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }
    return kv.Job(
        model=kv.models.hf(config),
        data=kv.data.text("stdlib", seq_len=64),
        objective=kv.objectives.next_token(),
        optimizer=kv.optimizers.adamw(lr=1e-3),
        schedule=kv.schedules.constant(),
        global_batch=16,
        steps=steps,
        validate_every=0,
    )


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default=None, help="where the runs are kept; else they are deleted at the end")
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or scratch
        four = kv.fleet.local(4, oversubscribe=True)
        first = kv.train(job(args.steps // 2), kv.Island(dp=2, pp=2), four, folder=folder, name="split")
        run = kv.train(job(args.steps), kv.Island(tp=4), four, folder=folder, resume="split")
        exported = run.save_pretrained(f"{folder}/exported")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
        ids = torch.tensor([list(b"import torch\n\ndef ")])
        losses = f"{first.losses[0]:.3f} at the start, {run.losses[-1]:.3f} at the end"
        with torch.no_grad():
            difference = (theirs(ids).logits - run.model()(ids).logits).abs().max().item()
    print(f"\nloss {losses}: {args.steps} steps, half of them as dp2 x pp2, half as tp4")
    print(
        f"{type(theirs).__name__} of transformers {transformers.__version__}: logits differ by at most {difference:.1e}"
    )
    if difference > 1e-4:
        raise SystemExit("the exported model computes something else")
    return difference


if __name__ == "__main__":
    main()
