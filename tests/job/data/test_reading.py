from typing import ClassVar

from konvoi.job.data.keyed import Key
from konvoi.job.data.reading import draws_nothing, read_samples


class Says:
    deterministic: ClassVar[bool] = True

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return index


def test_only_who_says_so_is_taken_to_draw_nothing():
    class Unsure(Says):
        deterministic: ClassVar[bool] = False

    assert draws_nothing(Says())
    assert not draws_nothing(Unsure())
    assert not draws_nothing([1, 2])


def test_samples_are_read_in_the_order_of_their_keys():
    keys = [Key(0, 0, index) for index in (2, 0, 1)]
    assert read_samples(Says(), keys) == read_samples([0, 1, 2], keys) == [2, 0, 1]
