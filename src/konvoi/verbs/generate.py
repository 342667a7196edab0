"""generate: what a trained language model writes."""

from __future__ import annotations

from pathlib import Path

from konvoi.errors import JobError
from konvoi.state.record import Record


def generate(run: str | Path, prompt: str, *, num_tokens: int = 200, temperature: float = 0.8, seed: int = 0) -> str:
    """The text that a run's model writes after `prompt`, without the prompt. The same seed gives the same text.

    Raises: StateError for no run or no checkpoint; JobError where the model is not one of text.
    """
    from konvoi.job.data.tokenizer import load_tokenizer
    from konvoi.job.sampling import continue_tokens
    from konvoi.trained import load_model

    record = Record(Path(run))
    spec = record.task().prepared.splits.spec
    if spec.tokenizer is None or spec.seq_len is None:
        raise JobError(
            "this run's model does not write text", found=record.folder, expected="a job on kv.data.text(...)"
        )
    tokenizer = load_tokenizer(spec.tokenizer)
    tokens = tokenizer.encode(prompt) or [tokenizer.end_of_text]
    drawn = continue_tokens(
        load_model(record),
        tokens,
        num_tokens,
        temperature=temperature,
        max_context=spec.seq_len,
        seed=seed,
        end=tokenizer.end_of_text,
    )
    return tokenizer.decode(drawn)
