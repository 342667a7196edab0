"""The recipe that `konvoi train` is given."""

import _work
import konvoi as kv


def job() -> kv.Job:
    return _work.job(_work.WORKS["small_gpt"], steps=1, workers=2)
