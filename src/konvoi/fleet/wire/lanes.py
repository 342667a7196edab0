"""Streams between two islands, and what is fetched over them: no network in here."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from konvoi.errors import MessageRefused

PIECE = 256 << 10  # bytes of a frame
RANGE = 1 << 20  # bytes asked for at a time
ASKED = 2 << 20  # bytes a lane that are asked for and not here yet: what 160 Mbit/s hold in 100 ms
MOST_WAITING = 256  # messages
MOST_SERVED = 64  # requests of a peer at a time, over a lane
SMALL = 64 << 10  # bytes that are sent along with the message about them
MOST_BROUGHT = 16  # of these from a peer, until they are asked for
SMALLEST = 32 << 10  # bytes that are worth a range of their own
KERNEL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
HUSH_S = 6.0  # without a sign of life
DATA = struct.Struct("!16sQQ")  # hash, offset, and the whole's length
GET = struct.Struct("!16sQQ")  # hash, start, stop
ABOUT = struct.Struct("!16sI")  # hash and length of what is in front of a message


def of_message(message: bytes, about: tuple[str, bytes] | None) -> bytes:
    """The frame; what the message is about is in front of it where that is small, and else its length."""
    if about is None:
        return b"M" + message
    hash, data = about
    told = ABOUT.pack(bytes.fromhex(hash), len(data))
    return b"A" + told + data + message if len(data) <= SMALL else b"L" + told + message


def lanes_wanted(address: str, kernel: Path = KERNEL) -> int:
    """From here to each peer. Whose congestion control takes every lost packet for a full link, as cubic's does, is
    quicker with several connections; bbr's is not."""
    if address.startswith("127."):
        return 1
    try:
        return 1 if kernel.read_text().strip().startswith("bbr") else 3
    except OSError:  # a system that does not say
        return 3


@dataclass(eq=False)
class Lane:
    """A stream to a peer, whichever side has opened it. Messages overtake what was fetched."""

    peer: str
    asked: dict[tuple[bytes, int], int] = field(default_factory=dict)  # where a range is, and ends
    serving: set[asyncio.Task[None]] = field(default_factory=set)
    heard_at: float = 0.0  # anything, by the loop's clock
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))  # for pieces in the queue
    _out: asyncio.PriorityQueue[tuple[int, int, bytes]] = field(default_factory=asyncio.PriorityQueue)
    _count: int = 0
    _felt: int = -1

    @property
    def num_asked(self) -> int:
        return sum(stop - at for (_, at), stop in self.asked.items())

    @property
    def is_full(self) -> bool:
        return self._out.qsize() > MOST_WAITING

    def is_hushed(self) -> bool:
        """Whether nothing was said over it since this was asked last."""
        before, self._felt = self._felt, self._count
        return before == self._count

    def put(self, frame: bytes, urgency: int = 0) -> None:
        self._count += 1
        self._out.put_nowait((urgency, self._count, frame))

    async def give(self, piece: bytes) -> None:
        await self.room.acquire()
        self.put(piece, 1)

    def end(self) -> None:
        self.put(b"", -1)

    async def frames(self) -> AsyncIterator[bytes]:
        """What is to be written, until the end."""
        while True:
            urgency, _, frame = await self._out.get()
            if not frame:
                return
            if urgency == 1:
                self.room.release()
            yield frame


@dataclass(eq=False)
class Reach:
    """Who is within reach, as far as lanes tell. A link that was cut tells nothing: both sides give signs of life."""

    tell: Callable[[str, bool], None] = lambda peer, whether: None
    _reached: set[str] = field(default_factory=set)

    def heard(self, lane: Lane, now: float) -> None:
        lane.heard_at = now
        if lane.peer not in self._reached:
            self._reached.add(lane.peer)
            self.tell(lane.peer, True)

    def gone(self, peer: str) -> None:
        if peer in self._reached:
            self._reached.discard(peer)
            self.tell(peer, False)

    def feel(self, lanes: Mapping[str, Sequence[Lane]], now: float) -> None:
        """From time to time: give a sign of life, and see who has given none."""
        for peer, of in lanes.items():
            for lane in of[-1:]:
                if lane.is_hushed() and not lane.is_full:
                    lane.put(b"P")
            if of and all(now - lane.heard_at > HUSH_S for lane in of):
                self.gone(peer)


@dataclass(eq=False)
class Fetch:
    """Something on its way, by its hash."""

    peer: str
    most: int  # bytes
    then: list[Callable[[bytes | None], None]]
    data: bytearray | None = None  # as soon as its length is known
    missing: list[tuple[int, int]] = field(default_factory=lambda: [(0, PIECE)])  # ranges to be asked for
    num_here: int = 0


class Fetching:
    """What this island fetches, in ranges over all lanes to who holds it; and what it gives to others."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.lanes: dict[str, list[Lane]] = {}  # open ones, by peer
        self._fetches: dict[tuple[str, bytes], Fetch] = {}
        self._brought: dict[str, dict[bytes, bytes | int]] = {}  # by peer and hash, with messages: data, or its length

    def opened(self, lane: Lane) -> None:
        self.lanes.setdefault(lane.peer, []).append(lane)
        self._ask_on()

    def lost(self, lane: Lane) -> None:
        """What was asked for over it is asked for again."""
        if lane in self.lanes.get(lane.peer, ()):
            self.lanes[lane.peer].remove(lane)
        lane.end()
        for (hash, at), stop in lane.asked.items():
            wanted = self._fetches.get((lane.peer, hash))
            if wanted is not None:
                wanted.missing.append((at, stop))
        lane.asked.clear()
        if not self.lanes.get(lane.peer):
            self._brought.pop(lane.peer, None)
        self._ask_on()

    def bring(self, lane: Lane, body: bytes, *, is_here: bool) -> bytes:
        """Keep what has come with a message until it is asked for, the data or how long it is; what is left is the
        message. Raises: MessageRefused where it is cut short."""
        if len(body) < ABOUT.size:
            raise MessageRefused("a frame is cut short", found=f"{len(body)} bytes")
        hash, length = ABOUT.unpack(body[: ABOUT.size])
        if is_here and length > min(SMALL, len(body) - ABOUT.size):
            raise MessageRefused("a frame is cut short", found=f"{len(body)} bytes", expected=f"{length} and a message")
        end = ABOUT.size + (length if is_here else 0)
        of = self._brought.setdefault(lane.peer, {})
        of[hash] = body[ABOUT.size : end] if is_here else length
        while len(of) > MOST_BROUGHT:
            del of[next(iter(of))]
        return body[end:]

    def begin(self, peer: str, hash: bytes, then: Callable[[bytes | None], None]) -> None:
        brought = self._brought.get(peer, {}).pop(hash, None)
        if isinstance(brought, bytes):
            then(brought)
            return
        known = self._fetches.get((peer, hash))
        if known is not None:
            known.then.append(then)
            return
        self._fetches[peer, hash] = one = Fetch(peer, self.largest, [then])
        if brought is not None and 0 < brought <= self.largest:  # all at once, over all lanes
            each = max(SMALLEST, -(-brought // max(1, len(self.lanes.get(peer, ())))))
            one.data = bytearray(brought)
            one.missing = [(at, min(at + each, brought)) for at in range(0, brought, each)]
        self._ask_on()

    def _ask_on(self) -> None:
        """Ask for what is missing, as far as lanes have room; the one with most room first."""
        for (peer, hash), one in list(self._fetches.items()):
            while one.missing:
                lanes = [lane for lane in self.lanes.get(peer, ()) if lane.num_asked < ASKED and not lane.is_full]
                if not lanes:
                    break
                lane = min(lanes, key=lambda lane: lane.num_asked)
                start, stop = one.missing.pop(0)
                if stop - start > RANGE:
                    one.missing.insert(0, (start + RANGE, stop))
                    stop = start + RANGE
                lane.asked[hash, start] = stop
                lane.put(b"G" + GET.pack(hash, start, stop))

    async def give(self, lane: Lane, request: bytes, find: Callable[[str], bytes | None]) -> None:
        hash, start, stop = GET.unpack(request)
        data = find(hash.hex())
        if data is None:
            lane.put(b"N" + hash)
            return
        for at in range(start, min(stop, len(data)) or 1, PIECE):
            await lane.give(b"D" + DATA.pack(hash, at, len(data)) + data[at : min(at + PIECE, stop)])

    def gone(self, lane: Lane, hash: bytes) -> None:
        """The peer does not hold it, or no more."""
        one = self._fetches.pop((lane.peer, hash), None)
        for each in self.lanes.get(lane.peer, ()):
            each.asked = {key: stop for key, stop in each.asked.items() if key[0] != hash}
        for then in one.then if one is not None else ():
            then(None)
        self._ask_on()

    def take(self, lane: Lane, frame: bytes) -> None:
        """A piece is here. Raises: MessageRefused for one that nobody has asked for."""
        hash, at, length = DATA.unpack(frame[: DATA.size])
        piece = frame[DATA.size :]
        one, stop = self._fetches.get((lane.peer, hash)), lane.asked.get((hash, at))
        if one is None or stop is None or length > one.most or len(piece) != min(PIECE, stop - at, length - at):
            if one is not None:
                self.gone(lane, hash)  # of this peer nothing better is to be had
            raise MessageRefused("data that nobody has asked for", found=f"{len(piece)} bytes at {at} of {length}")
        if one.data is None:
            one.data = bytearray(length)
            if length > PIECE:
                one.missing.append((PIECE, length))
        if len(one.data) != length:
            self.gone(lane, hash)
            raise MessageRefused("data that changes its length", found=length, expected=len(one.data))
        one.data[at : at + len(piece)] = piece
        one.num_here += len(piece)
        del lane.asked[hash, at]
        if at + len(piece) < min(stop, length):
            lane.asked[hash, at + len(piece)] = stop
        if one.num_here == length:
            del self._fetches[lane.peer, hash]
            for then in one.then:
                then(bytes(one.data))
        self._ask_on()
