"""A small GPT learns to write Python from the source of Python's own standard library: real text on every machine.

konvoi train recipes/stdlib_gpt.py --workers 2
"""

import konvoi as kv


def job() -> kv.Job:
    return kv.Job(
        model=kv.models.gpt(depth=4, width=192),
        data=kv.data.text("stdlib", seq_len=256),
        objective=kv.objectives.next_token(),
        optimizer=kv.optimizers.adamw(lr=3e-3),
        schedule=kv.schedules.cosine(warmup=0.05, floor=0.1),
        global_batch=16,
        steps=200,
        validate_every=100,
        validate_batches=8,
        sample_prompt="def read_",
    )
