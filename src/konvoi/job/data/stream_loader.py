"""Batches of an iterable: which worker keeps which samples. The contract with the data set stands in stream.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

from konvoi.job.data.collate import Collate, pinned
from konvoi.job.data.collate import collate as default_collate
from konvoi.job.data.keyed import global_generators_kept
from konvoi.job.data.loader import Share
from konvoi.job.data.positions import mix
from konvoi.job.data.stream import Endless, Resumable, Stream
from konvoi.values import MicroBatch


class StreamBatches:
    """Endless: one list of `accumulate` micro-batches a step, as `Batches` for map-style data; one pass at a time.

    `state` is what `state_dict()` gave after step `start_step - 1`, on any worker of any plan; without one, the
    samples before `start_step` are read and left out. Read in this thread: loader processes have no part in it.
    Raises: DataError where a micro-batch would be empty; while reading, where the stream is.
    """

    def __init__(
        self,
        stream: Stream | Iterable[Any],
        *,
        seed: int,
        global_batch: int,
        worker: int,
        num_workers: int,
        accumulate: int = 1,
        start_step: int = 0,
        state: Mapping[str, Any] | None = None,
        collate: Collate | None = None,
        pin_memory: bool = False,
    ) -> None:
        self._share = Share(global_batch, worker, num_workers, accumulate)
        self._stream = stream if isinstance(stream, Stream) else Stream(stream)
        self._seed, self._start_step, self._state = seed, start_step, state
        self._collate, self._pin_memory = collate or default_collate, pin_memory
        self._reading: Whole | Cut | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the cost of reading this stream with this plan."""
        stream, share = self._stream, self._share
        if stream.is_cut:
            count = stream.num_shards(share.global_batch)
            why = f"which fits a global batch of {share.global_batch}"
            same = count == stream.virtual_shards
            return () if same else (f"the data is read as {count} virtual shards, not {stream.virtual_shards}, {why}",)
        notes = []
        if share.num_workers > 1:
            keeps = f"each of the {share.num_workers} workers reads all of it and keeps 1/{share.num_workers}"
            notes.append(f"the data is an iterable without shard(index, count): {keeps}")
        if not isinstance(stream.samples, Resumable):
            notes.append("the data is an iterable without state_dict(): resuming reads again what was read before")
        return tuple(notes)

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        self._reading = mine = self._begin()
        slots, step = self._share.slots(), self._start_step
        first, last = slots[0][0], slots[-1][1]
        while self._reading is mine:
            with global_generators_kept():
                samples = mine.read(step, first, last)
            step += 1
            yield [self._micro_batch(samples[start - first : stop - first]) for start, stop in slots]

    def state_dict(self) -> dict[str, Any] | None:
        """Where the stream is after the step that was yielded last, the same on every worker; None if it cannot say."""
        return self._reading.state_dict() if isinstance(self._reading, Whole) else None

    def close(self) -> None:
        """An iterator that is still held ends."""
        self._reading = None

    def __enter__(self) -> StreamBatches:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _begin(self) -> Whole | Cut:
        size = self._share.global_batch
        if self._stream.is_cut:
            return Cut(self._stream, self._seed, size)
        return Whole(self._stream, self._seed, size, self._state)

    def _micro_batch(self, samples: list[Any]) -> MicroBatch:
        batch = self._collate(samples)
        return MicroBatch(pinned(batch) if self._pin_memory else batch)


class Whole:
    """Every sample is read by every worker; step t is the samples [t * global_batch, (t + 1) * global_batch)."""

    def __init__(self, stream: Stream, seed: int, global_batch: int, state: Mapping[str, Any] | None) -> None:
        self._samples = Endless(stream.samples, seed=seed, fns=stream.fns)
        self._resumable = isinstance(stream.samples, Resumable)
        self._global_batch = global_batch
        if state is not None:
            self._samples.load_state_dict(state)

    def read(self, step: int, first: int, last: int) -> list[Any]:
        """The samples of the places [first, last) of a step, which is then read to its end."""
        begin = step * self._global_batch
        self._samples.skip(begin + first - self._samples.num_read)
        samples = [self._samples.next() for _ in range(first, last)]
        self._samples.skip(begin + self._global_batch - self._samples.num_read)
        return samples

    def state_dict(self) -> dict[str, Any] | None:
        return self._samples.state_dict() if self._resumable else None


class Cut:
    """Virtual shards, each endless; only those that serve the places asked for are opened."""

    def __init__(self, stream: Stream, seed: int, global_batch: int) -> None:
        self._stream, self._seed, self._global_batch = stream, seed, global_batch
        self._num_shards = stream.num_shards(global_batch)
        self._shards: dict[int, Endless] = {}

    def read(self, step: int, first: int, last: int) -> list[Any]:
        """The samples of the places [first, last) of a step."""
        samples = []
        for slot in range(first, last):
            index, number = locate(step, slot, self._global_batch, self._num_shards)
            shard = self._shards.get(index) or self._open(index)
            shard.skip(number - shard.num_read)
            samples.append(shard.next())
        return samples

    def _open(self, index: int) -> Endless:
        count = self._num_shards
        shard = self._stream.samples.shard(index=index, count=count)  # type: ignore[attr-defined]  # is_cut has checked
        name = f"virtual shard {index} of {count} (konvoi.data.of(..., virtual_shards=) asks for fewer)"
        self._shards[index] = Endless(shard, seed=mix(self._seed + mix(index)), fns=self._stream.fns, name=name)
        return self._shards[index]


def locate(step: int, slot: int, global_batch: int, num_shards: int) -> tuple[int, int]:
    """(shard, number inside the shard) of a place in a step's global batch; one of the two numbers divides the other.

    Neighbouring places have neighbouring shards, so that a worker's contiguous part needs few of them.

    >>> [locate(step, slot, 2, 4) for step in range(3) for slot in range(2)]
    [(0, 0), (2, 0), (1, 0), (3, 0), (0, 1), (2, 1)]
    >>> [locate(step, slot, 4, 2) for step in range(2) for slot in range(4)]
    [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    """
    if num_shards % global_batch == 0:
        shards_per_slot = num_shards // global_batch
        return slot * shards_per_slot + step % shards_per_slot, step // shards_per_slot
    slots_per_shard = global_batch // num_shards
    return slot // slots_per_shard, step * slots_per_shard + slot % slots_per_shard
