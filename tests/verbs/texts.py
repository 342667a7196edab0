"""A job on a few lines of text."""

import konvoi as kv
from tests import small


def text_job(folder, **model):
    path = folder / "text.txt"
    path.write_text("to be or not to be, that is the question. " * 200)
    return small.job(
        model=kv.models.gpt(depth=2, width=32, num_heads=4, num_kv_heads=2, **model),
        data=kv.data.text(str(path), seq_len=32, cache_dir=folder),
        objective=kv.objectives.next_token(),
        steps=4,
        validate_every=None,
    )
