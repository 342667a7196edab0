import random

import numpy as np
import torch

from konvoi.job.data.keyed import Key, global_generators_kept, seed_global_generators


def test_any_part_of_the_key_changes_the_draws():
    keys = [Key(0, 0, 0), Key(1, 0, 0), Key(0, 1, 0), Key(0, 0, 1), Key(0, 0, 0).below(), Key(-1, 0, 0)]
    assert len({key.generator().random() for key in keys}) == len(keys)


def test_the_draws_of_a_key_are_stable_across_versions():
    assert Key(seed=1, epoch=2, index=3).number == 12041978502164647648


def test_the_global_generators_are_as_before_even_after_an_error():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = (random.random(), np.random.rand(), torch.rand(()).item())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    try:
        with global_generators_kept():
            seed_global_generators(Key(5, 5, 5))
            _draw()
            raise RuntimeError
    except RuntimeError:
        pass
    assert _draw() == expected


def test_the_same_key_seeds_all_three_generators_alike():
    with global_generators_kept():
        seed_global_generators(Key(5, 5, 5))
        first = _draw()
        seed_global_generators(Key(5, 5, 5))
        assert _draw() == first
        seed_global_generators(Key(5, 5, 6))
        assert all(one != other for one, other in zip(_draw(), first, strict=True))


def _draw():
    return (random.random(), np.random.rand(), torch.rand(()).item())
