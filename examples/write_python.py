"""A tiny GPT learns from the standard library's source for a moment, and writes.

python examples/write_python.py
"""

import konvoi as kv


def job(steps: int = 60) -> kv.Job:
    return kv.Job(
        model=kv.models.gpt(depth=2, width=64),
        data=kv.data.text("stdlib", seq_len=64),
        objective=kv.objectives.next_token(),
        optimizer=kv.optimizers.muon(lr=0.02),
        global_batch=16,
        steps=steps,
        validate_batches=4,
    )


def main() -> str:
    run = kv.train(job())
    kv.save_pretrained(run.folder, run.folder / "export")
    kv.report(run.folder)
    return kv.generate(run.folder, "def ", num_tokens=40)


if __name__ == "__main__":
    main()
