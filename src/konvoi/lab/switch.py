"""The network between a lab's hosts: takes each packet from one, and gives it to another when it would have arrived.

A process of its own: `python -m konvoi.lab.switch CONFIG`, with the hosts' TUN devices as open files. It obeys
lines on its standard input: `cut 1`, `heal 1` (a host is alone, and no more), `deaf 0 1`, `hear 0 1` (host 0 does not
get what host 1 sends), `close 1`, `open 1` (nobody can open a connection to it, and whoever tries is counted),
`rtt 300`, `loss 0.02`. When its input is closed it ends, and tells the bytes that each has sent.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import selectors
import sys
import time
from collections.abc import Sequence
from typing import Any

READ_AT_ONCE = 64  # packets of a host, before another's turn
LOOK_S = 0.05


class Switch:
    """Host n has the address that ends with n + 1."""

    def __init__(self, files: Sequence[int], link: dict[str, Any], seed: int) -> None:
        self.files = list(files)
        self.up, self.down = link["up"] * 125e3, link["down"] * 125e3  # bytes a second
        self.delay, self.jitter = link["rtt"] / 2000, link["jitter"] / 1000
        self.loss, self.burst, self.queue_s = link["loss"], link["burst"], link["queue_ms"] / 1000
        self.random = random.Random(seed)
        count = len(self.files)
        self.up_free, self.down_free, self.latest = [0.0] * count, [0.0] * count, [0.0] * count
        self.losing = [False] * count
        self.sent, self.dropped = [0] * count, [0] * count
        self.cut: set[int] = set()
        self.deaf: set[tuple[int, int]] = set()
        self.closed: set[int] = set()
        self.attempts = [0] * count  # to open a connection to a host that is closed
        self.waiting: list[tuple[float, int, int, bytes]] = []  # when, a number, to whom, the packet
        self.number = 0

    def take(self, source: int, packet: bytes, now: float) -> None:
        """A packet leaves a host: into the queue of those that are on their way, or nowhere."""
        if len(packet) < 20 or packet[0] >> 4 != 4:
            return  # not of IPv4
        target = packet[19] - 1
        if not 0 <= target < len(self.files) or self._is_lost(source):
            return
        if source in self.cut or target in self.cut or (target, source) in self.deaf:
            return
        if target in self.closed and _opens(packet):
            self.attempts[target] += 1
            return
        start = max(now, self.up_free[source])
        if start - now > self.queue_s:
            self.dropped[source] += 1
            return
        self.up_free[source] = start + len(packet) / self.up
        arrives = self.up_free[source] + self.delay + self.random.random() * self.jitter
        arrives = self.latest[source] = max(arrives, self.latest[source])  # those of one host stay in order
        begins = max(arrives, self.down_free[target])
        if begins - arrives > self.queue_s:
            self.dropped[target] += 1
            return
        self.down_free[target] = begins + len(packet) / self.down
        self.sent[source] += len(packet)
        self.number += 1
        heapq.heappush(self.waiting, (self.down_free[target], self.number, target, packet))

    def _is_lost(self, source: int) -> bool:
        """Two states: in one all is lost, in the other nothing, so that runs of losses are as long as `burst` says."""
        if not self.loss:
            return False
        begins = self.loss / (self.burst * (1 - self.loss))
        self.losing[source] = self.random.random() < (1 - 1 / self.burst if self.losing[source] else begins)
        return self.losing[source]

    def due(self, now: float) -> list[tuple[int, bytes]]:
        """Packets that have arrived by now, with their hosts."""
        found = []
        while self.waiting and self.waiting[0][0] <= now:
            _, _, target, packet = heapq.heappop(self.waiting)
            if target not in self.cut:
                found.append((target, packet))
        return found

    def obey(self, line: str) -> None:
        """Raises: ValueError for what is no order."""
        match line.split():
            case ["cut", host]:
                self.cut.add(int(host))
            case ["heal", host]:
                self.cut.discard(int(host))
            case ["deaf", host, other]:
                self.deaf.add((int(host), int(other)))
            case ["hear", host, other]:
                self.deaf.discard((int(host), int(other)))
            case ["close", host]:
                self.closed.add(int(host))
            case ["open", host]:
                self.closed.discard(int(host))
            case ["rtt", milliseconds]:
                self.delay = float(milliseconds) / 2000
            case ["loss", share]:
                self.loss = float(share)
            case _:
                raise ValueError(f"no order: {line!r}")

    def run(self, orders: int) -> None:
        """Until `orders` is closed."""
        selector, rest = selectors.DefaultSelector(), b""
        selector.register(orders, selectors.EVENT_READ, -1)
        for number, file in enumerate(self.files):
            selector.register(file, selectors.EVENT_READ, number)
        while True:
            for target, packet in self.due(time.monotonic()):
                try:
                    os.write(self.files[target], packet)
                except OSError:
                    self.dropped[target] += 1
            wait = min(LOOK_S, max(0.0, self.waiting[0][0] - time.monotonic())) if self.waiting else LOOK_S
            for key, _ in selector.select(wait):
                if key.data < 0:
                    told = os.read(orders, 4096)
                    if not told:
                        return
                    *lines, rest = (rest + told).split(b"\n")
                    for line in lines:
                        self.obey(line.decode())
                    continue
                for _ in range(READ_AT_ONCE):
                    try:
                        packet = os.read(key.fd, 65536)
                    except BlockingIOError:
                        break
                    self.take(key.data, packet, time.monotonic())


def _opens(packet: bytes) -> bool:
    """Whether it is the first of a TCP connection: SYN without ACK."""
    begin = (packet[0] & 15) * 4
    return packet[9] == 6 and len(packet) > begin + 13 and packet[begin + 13] & 0x12 == 0x02


def main() -> None:
    config = json.loads(sys.argv[1])
    switch = Switch(config["files"], config["link"], config["seed"])
    switch.run(0)
    sys.stdout.write(json.dumps({"sent": switch.sent, "dropped": switch.dropped, "attempts": switch.attempts}) + "\n")


if __name__ == "__main__":
    main()
