"""The network of a lab, without one: packets in, packets out, and the clock is the test's."""

import dataclasses
import random

import pytest

from konvoi.errors import FleetError
from konvoi.lab import Link, fault
from konvoi.lab.switch import Switch


def packet(to, size=1000, mark=0):
    return bytes([0x45, mark]) + bytes(17) + bytes([to + 1]) + bytes(size - 20)


def switch(num_hosts=3, seed=0, **link):
    return Switch(range(num_hosts), dataclasses.asdict(Link(**link)), seed)


def arrivals(switch, until, step=0.001):
    """(seconds, host, packet) of all that arrives, to the clock's millisecond."""
    found, now = [], 0.0
    while now <= until:
        found += [(now, host, data) for host, data in switch.due(now)]
        now += step
    return found


def test_a_packet_takes_half_of_the_round_trip_and_its_own_time_on_both_links():
    one = switch(up=1, down=1, rtt=100)  # 1000 bytes take 8 ms on each
    one.take(0, packet(1), now=0.0)
    ((seconds, host, _),) = arrivals(one, 1.0)
    assert host == 1
    assert seconds == pytest.approx(0.008 + 0.050 + 0.008, abs=0.002)


def test_what_a_host_sends_and_receives_in_a_second_is_limited():
    one = switch(up=10, down=5, rtt=0, queue_ms=10_000)
    for number in range(1000):  # 1 MB: 0.8 s to send, 1.6 s to receive
        one.take(0, packet(1, mark=number % 250), now=0.0)
    found = arrivals(one, 3.0)
    assert len(found) == 1000
    assert found[-1][0] == pytest.approx(1.6, abs=0.01)
    assert [data[1] for _, _, data in found] == [number % 250 for number in range(1000)]


def test_two_senders_share_what_a_third_can_receive():
    one = switch(up=10, down=10, rtt=0, queue_ms=10_000)
    for _ in range(500):
        one.take(0, packet(2), now=0.0)
        one.take(1, packet(2), now=0.0)
    assert arrivals(one, 3.0)[-1][0] == pytest.approx(0.8, abs=0.01)


def test_a_full_queue_drops():
    one = switch(up=1, down=1, rtt=0, queue_ms=80)
    for _ in range(100):
        one.take(0, packet(1), now=0.0)
    assert len(arrivals(one, 2.0)) in (10, 11)  # of 8 ms each
    assert one.dropped[0] in (89, 90)


def test_jitter_keeps_a_hosts_packets_in_order():
    one = switch(rtt=10, jitter=50)
    for number in range(200):
        one.take(0, packet(1, mark=number), now=number * 0.001)
    found = arrivals(one, 1.0)
    assert [data[1] for _, _, data in found] == list(range(200))
    assert found[-1][0] > 0.205  # later than without


@pytest.mark.parametrize(("loss", "burst"), [(0.01, 1), (0.01, 5), (0.2, 3), (0.5, 2)])
def test_as_many_packets_are_lost_and_as_long_together_as_is_said(loss, burst):
    one = switch(loss=loss, burst=burst, seed=3)
    lost = [one._is_lost(0) for _ in range(150_000)]
    runs = sum(now and not before for before, now in zip([False, *lost], lost, strict=False))
    assert sum(lost) / len(lost) == pytest.approx(loss, rel=0.1)
    assert sum(lost) / runs == pytest.approx(max(burst, 1 / (1 - loss)), rel=0.08) or burst > 1
    if burst > 1:
        assert sum(lost) / runs == pytest.approx(burst, rel=0.1)


def test_a_host_that_is_cut_off_is_alone_until_it_is_healed():
    one = switch(rtt=100)
    one.take(0, packet(1), now=0.0)  # on its way when the cut comes
    one.obey("cut 1")
    one.take(0, packet(1), now=0.01)
    one.take(1, packet(2), now=0.01)
    one.take(0, packet(2), now=0.01)
    assert [host for _, host, _ in arrivals(one, 0.5)] == [2]
    one.obey("heal 1")
    one.take(1, packet(0), now=0.5)
    assert [host for _, host, _ in arrivals(one, 1.0)] == [0]


def test_one_direction_can_be_cut():
    one = switch()
    one.obey("deaf 0 1")
    one.take(1, packet(0), now=0.0)
    one.take(0, packet(1), now=0.0)
    one.take(2, packet(0), now=0.0)
    assert sorted(host for _, host, _ in arrivals(one, 0.5)) == [0, 1]
    one.obey("hear 0 1")
    one.take(1, packet(0), now=0.5)
    assert [host for _, host, _ in arrivals(one, 1.0)] == [0]


def test_what_is_no_packet_of_a_host_here_goes_nowhere():
    one = switch()
    for data in (b"", bytes(10), bytes([0x60]) + bytes(60), packet(7), random.Random(0).randbytes(40)):
        one.take(0, data, now=0.0)
    assert arrivals(one, 0.5) == []
    with pytest.raises(ValueError, match="no order"):
        one.obey("explode 1")


@pytest.mark.parametrize(
    "wrong", [{"up": 0}, {"loss": 1.0}, {"burst": 0.5}, {"rtt": -1}, {"mtu": 10}, {"loss": float("nan")}]
)
def test_a_link_that_cannot_be_is_refused(wrong):
    with pytest.raises(FleetError):
        Link(**wrong)


@pytest.mark.parametrize(
    "text",
    ["", "cut", "cut 1", "cut 1 at", "cut one at 3", "kill 1 at 3 for 5", "slow 1 at 3", "cut 1 to 0.2 at 3",
     "cut 1 every 10 for 20", "kill 1 every 0", "deaf 1 at 3", "cut 1 at 3 for 5 please"],
)  # fmt: skip
def test_a_fault_that_cannot_be_read_is_refused(text):
    with pytest.raises(FleetError, match=r"fault|slow|killed"):
        fault(text)


class Pretended:
    """What faults see of a lab."""

    cpu = 0.4

    def __init__(self):
        self.told = []
        self.hosts = [self] * 4

    def tell(self, order):
        self.told.append(order)

    def kill_workers(self):
        self.told.append("kill")

    def limit(self, cores):
        self.told.append(f"limit {cores:g}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cut 1 at 30 for 20", [(30, "cut 1"), (50, "heal 1")]),
        ("cut 1 at 30", [(30, "cut 1")]),
        ("deaf 0 2 at 1.5 for 2", [(1.5, "deaf 0 2"), (3.5, "hear 0 2")]),
        ("kill 2 every 30", [(30, "kill"), (60, "kill"), (90, "kill")]),
        ("slow 3 to 0.13 at 0 for 9", [(0, "limit 0.13"), (9, "limit 0.4")]),
    ],
)
def test_what_a_fault_does_and_when(text, expected):
    lab, found = Pretended(), []
    for (seconds, said, act), _ in zip(fault(text).moments(lab), range(len(expected)), strict=False):
        act()
        assert "island" in said
        found.append((seconds, lab.told[-1]))
    assert found == expected
