"""Two islands and the network between them: real sockets, real certificates."""

import hashlib
import os
import queue
import threading
import time

import pytest

from konvoi.errors import FleetError, MessageRefused
from konvoi.fleet.wire import grpc, lanes
from konvoi.fleet.wire.grpc import Peers
from konvoi.security.identity import Authority


def decode(data):
    if data == b"nonsense":
        raise MessageRefused("this makes no sense")
    return data


class End:
    """One side, and what it has heard."""

    def __init__(self, identity, **options):
        self.heard, self.refused, self.held = queue.Queue(), queue.Queue(), {}
        self.wire = Peers(
            identity,
            hello=options.pop("hello", b"run"),
            encode=bytes,
            decode=decode,
            on_refused=lambda peer, why: self.refused.put((peer, why)),
            **options,
        )
        self.wire.join(identity.name, lambda sender, message: self.heard.put((sender, message)), self.held.get)

    def keep(self, data):
        hash = hashlib.blake2b(data, digest_size=16).hexdigest()
        self.held[hash] = data
        return hash

    def fetch(self, peer, hash, seconds=20):
        found = queue.Queue()
        self.wire.fetch(self.wire.name, peer, hash, found.put)
        return found.get(timeout=seconds)


@pytest.fixture(scope="module")
def authority():
    return Authority.make("test")


@pytest.fixture
def ends(authority):
    made = []

    def make(name, **options):
        end = End(options.pop("identity", None) or authority.issue(name), **options)
        made.append(end)
        return end

    yield make
    for end in made:
        end.wire.close()


def at(end):
    return lambda: f"127.0.0.1:{end.wire.port}"


def meet(one, *others):
    for other in others:
        one.wire.dial({other.wire.name: at(other)})
    until(lambda: all(one.wire.open_lanes().get(o.wire.name, 0) >= one.wire.num_lanes for o in others))
    until(lambda: all(o.wire.open_lanes().get(one.wire.name, 0) >= one.wire.num_lanes for o in others))


def test_who_is_cut_off_is_told_to_be_gone_and_back_when_it_is_heard_again(ends, monkeypatch):
    """A link that was cut closes no connection; a thread that stands still is as silent."""
    monkeypatch.setattr(grpc, "PULSE_S", 0.1)
    monkeypatch.setattr(lanes, "HUSH_S", 0.5)
    one, other = ends("a"), ends("b")
    told = queue.Queue()
    one.wire.watch("a", lambda peer, whether: told.put((peer, whether)))
    meet(one, other)
    assert told.get(timeout=5) == ("b", True)
    time.sleep(1.0)
    assert told.empty()  # signs of life are enough
    other.wire._loop.call_soon_threadsafe(time.sleep, 1.5)
    assert told.get(timeout=5) == ("b", False)
    assert told.get(timeout=5) == ("b", True)
    assert one.wire.open_lanes() == {"b": 1}


def test_it_is_told_who_comes_within_reach_and_who_goes(ends):
    one, other = ends("a"), ends("b")
    told = queue.Queue()
    one.wire.watch("a", lambda peer, whether: told.put((peer, whether)))
    meet(other, one)
    assert told.get(timeout=10) == ("b", True)
    other.wire.close()
    assert told.get(timeout=10) == ("b", False)
    assert told.empty()


def until(is_so, seconds=15):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come to it"
        time.sleep(0.02)


def test_messages_go_both_ways_over_a_lane_that_one_side_has_opened(ends):
    a, b = ends("a"), ends("b")
    meet(a, b)
    a.wire.send("a", "b", b"hello b")
    assert b.heard.get(timeout=10) == ("a", b"hello b")
    b.wire.send("b", "a", b"hello a")
    assert a.heard.get(timeout=10) == ("b", b"hello a")


@pytest.mark.parametrize("num_lanes", [1, 3])
@pytest.mark.parametrize("size", [0, 1, 256 << 10, (256 << 10) + 1, 5_000_001])
def test_what_is_fetched_is_what_is_held(ends, num_lanes, size):
    a, b = ends("a", num_lanes=num_lanes), ends("b")
    meet(a, b)
    data = os.urandom(size)
    assert a.fetch("b", b.keep(data)) == data
    assert b.fetch("a", a.keep(data[::-1])) == data[::-1]
    assert a.fetch("b", "00" * 16) is None


def test_what_a_message_is_about_comes_with_it_where_it_is_small(ends):
    a, b = ends("a"), ends("b")
    meet(a, b)
    for size in (0, 1, 64 << 10, (64 << 10) + 1):
        data = os.urandom(size)
        hash = b.keep(data)
        b.wire.send("b", "a", b"sense", (hash, data))
        assert a.heard.get(timeout=10) == ("b", b"sense")
        del b.held[hash]
        found = queue.Queue()
        for _ in range(2):  # it is given away once
            a.wire.fetch("a", "b", hash, found.put)
        assert [found.get(timeout=10), found.get(timeout=10)] == [data if size <= 64 << 10 else None, None]


def test_what_is_large_is_told_the_length_of_and_asked_for_at_once_over_all_lanes(ends):
    a, b = ends("a", num_lanes=3), ends("b")
    meet(a, b)
    data, asked = os.urandom(300_000), []
    hash = b.keep(data)
    give = b.wire._fetching.give

    async def watched(lane, request, find):
        asked.append((lane, *lanes.GET.unpack(request)[1:]))
        await give(lane, request, find)

    b.wire._fetching.give = watched
    b.wire.send("b", "a", b"sense", (hash, data))
    assert a.heard.get(timeout=10) == ("b", b"sense")
    assert a.fetch("b", hash) == data
    assert sorted(request[1:] for request in asked) == [(0, 100_000), (100_000, 200_000), (200_000, 300_000)]
    assert len({id(lane) for lane, *_ in asked}) == 3


def test_of_how_many_lanes_are_wanted_the_kernel_tells(tmp_path):
    kernel = tmp_path / "congestion"
    assert lanes.lanes_wanted("10.0.0.1", kernel) == 3
    kernel.write_text("cubic\n")
    assert lanes.lanes_wanted("10.0.0.1", kernel) == 3
    assert lanes.lanes_wanted("127.0.0.1", kernel) == 1
    kernel.write_text("bbr\n")
    assert lanes.lanes_wanted("10.0.0.1", kernel) == 1


def test_of_what_nobody_asks_for_the_oldest_is_dropped(ends):
    a, b = ends("a"), ends("b")
    meet(a, b)
    for number in range(20):
        b.wire.send("b", "a", b"sense", (f"{number:032x}", bytes([number])))
        assert a.heard.get(timeout=10)
    found = queue.Queue()
    for number in (3, 4):
        a.wire.fetch("a", "b", f"{number:032x}", found.put)
    assert [found.get(timeout=10), found.get(timeout=10)] == [bytes([4]), None]


def test_messages_overtake_what_is_fetched(ends):
    a, b = ends("a"), ends("b")
    meet(a, b)
    hash, done = b.keep(os.urandom(64 << 20)), threading.Event()
    a.wire.fetch("a", "b", hash, lambda data: done.set())
    time.sleep(0.05)
    b.wire.send("b", "a", b"now")
    assert a.heard.get(timeout=10) == ("b", b"now")
    assert not done.is_set()
    assert done.wait(60)


def test_a_fetch_goes_on_where_it_was_when_the_peer_is_back(ends, authority):
    a, identity = ends("a"), authority.issue("b")
    b = ends("b", identity=identity)
    meet(a, b)
    data, found = os.urandom(200 << 20), queue.Queue()
    hash = b.keep(data)
    a.wire.fetch("a", "b", hash, found.put)
    until(lambda: a.wire.received_bytes > 20 << 20)
    b.wire.close()
    assert found.empty()
    had = a.wire.received_bytes
    again = ends("b", identity=identity, address=f"127.0.0.1:{b.wire.port}")
    again.held[hash] = data
    assert found.get(timeout=60) == data
    assert a.wire.received_bytes - had < len(data)


def test_who_has_no_certificate_of_this_run_is_not_heard(ends):
    stranger = ends("b", identity=Authority.make("test").issue("b"))
    a = ends("a")
    stranger.wire.dial({"a": at(a)})
    a.wire.dial({"b": at(stranger)})
    time.sleep(1.0)
    assert not a.wire.open_lanes()
    assert not stranger.wire.open_lanes()


def test_a_member_cannot_stand_for_another(ends):
    """What answers at b's address has a certificate, and it is c's."""
    a, c = ends("a"), ends("c")
    a.wire.dial({"b": at(c)})
    time.sleep(1.0)
    assert not a.wire.open_lanes()


def test_another_recipe_is_refused_and_named(ends):
    a, b = ends("a"), ends("b", hello=b"another")
    a.wire.dial({"b": at(b)})
    assert b.refused.get(timeout=10)[0] == "a"
    assert a.refused.get(timeout=10)[0] == "b"
    assert not a.wire.open_lanes()


def test_nonsense_is_refused_and_the_lane_stays(ends):
    a, b = ends("a"), ends("b")
    meet(a, b)
    a.wire.send("a", "b", b"nonsense")
    assert b.refused.get(timeout=10) == ("a", "this makes no sense")
    a.wire.send("a", "b", b"sense")
    assert b.heard.get(timeout=10) == ("a", b"sense")


def test_who_is_banned_is_cut_off(ends):
    a, b = ends("a"), ends("b")
    meet(a, b)
    b.wire.ban("a")
    until(lambda: not b.wire.open_lanes())
    a.wire.send("a", "b", b"still here")
    time.sleep(1.0)
    assert b.heard.empty()
    assert not b.wire.open_lanes()


def test_timers_and_work_come_in_order(ends):
    a, found = ends("a"), queue.Queue()
    for number in range(5):
        a.wire.work(lambda number=number: number, found.put)
    assert [found.get(timeout=10) for _ in range(5)] == [0, 1, 2, 3, 4]
    a.wire.after(0.2, lambda: found.put("late"))
    a.wire.after(0.0, lambda: found.put("soon"))
    assert [found.get(timeout=10), found.get(timeout=10)] == ["soon", "late"]


def test_an_address_that_cannot_be_is_an_error(ends):
    with pytest.raises(FleetError, match="cannot listen"):
        ends("a", address="no.such.host.invalid:0")
