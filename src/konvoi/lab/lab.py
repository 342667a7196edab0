"""A lab while it stands: its hosts, the switch between them, and what is done to them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from konvoi.errors import FleetError
from konvoi.fleet.local import Local
from konvoi.lab import hosts
from konvoi.lab.faults import MOST, Fault
from konvoi.lab.hosts import Host
from konvoi.lab.link import Link


class Lab:
    """Use with `with`. What it has made is gone afterwards, its hosts' processes too.

    `cpu`: cores of each host, of which all together should leave 0.3 for the switch. `faults` begin to count when
    `begin` is called. `say` is told what happens.
    """

    def __init__(
        self,
        num_hosts: int,
        link: Link | None = None,
        *,
        cpu: float | None = None,
        faults: Sequence[Fault] = (),
        seed: int = 0,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        if not 2 <= num_hosts <= 200:
            raise FleetError("a lab has 2 to 200 hosts", found=num_hosts)
        for fault in faults:
            if any(not 0 <= host < num_hosts for host in fault.hosts):
                raise FleetError(
                    "there is no such island in this lab", found=fault.text, expected=f"0 to {num_hosts - 1}"
                )
            if fault.needs_quota and cpu is None:
                raise FleetError("this fault needs hosts with a quota", found=fault.text, hint="--cpu 0.4")
        self.num_hosts, self.link, self.cpu = num_hosts, link or Link(), cpu
        self.faults, self.seed, self.say = tuple(faults), seed, say
        self.hosts: list[Host] = []
        self.traffic: dict[
            str, list[int]
        ] = {}  # of each host, when it has ended: bytes sent, packets dropped, attempts to reach it
        self._closing = contextlib.ExitStack()
        self._is_over, self._lock = threading.Event(), threading.Lock()
        self._begun: threading.Thread | None = None

    def __enter__(self) -> Lab:
        hosts.check_root()
        with contextlib.ExitStack() as stack:
            hosts.sweep()
            tag, files = hosts.tag(os.getpid()), []
            for number in range(self.num_hosts):
                host, file = hosts.make(tag, number, self.link, self.cpu)
                self.hosts.append(host)
                files.append(file)
                stack.callback(hosts.remove, host)
                stack.callback(os.close, file)
            self._switch = self._start_switch(files)
            stack.callback(self._stop_switch)
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._begun is not None:
            self._begun.join()
        self._closing.close()

    def _start_switch(self, files: Sequence[int]) -> subprocess.Popen[str]:
        config = json.dumps({"files": list(files), "link": asdict(self.link), "seed": self.seed})
        root = str(Path(__file__).resolve().parents[2])
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "konvoi.lab.switch", config],
            pass_fds=files,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)},
            start_new_session=True,  # Ctrl-C is for the run, which ends before its network does
        )

    def _stop_switch(self) -> None:
        try:
            told, _ = self._switch.communicate(timeout=10)
            self.traffic = json.loads(told)
        except (subprocess.TimeoutExpired, ValueError):
            self._switch.kill()
            self._switch.wait()

    def fleet(self, seen: Callable[[str, int], None] = lambda name, step: None) -> Local:
        """One island of one worker on each host; the faults begin when all have taken a step. Those that are killed
        come back as often as they are. `seen` is called with an island's name and a step that it has taken."""
        waiting = {f"island-{number}" for number in range(self.num_hosts)}

        def on_step(name: str, step: int) -> None:
            seen(name, step)
            waiting.discard(name)
            if not waiting:
                self.begin()

        return Local(
            self.num_hosts,
            "cpu",
            max_restarts=MOST,
            oversubscribe=True,
            islands=self.num_hosts,
            sites=tuple(host.site for host in self.hosts),
            on_step=on_step,
        )

    # -- what is done to it -------------------------------------------------------------------------------------------

    def tell(self, order: str) -> None:
        """An order for the switch. Raises: FleetError where it is gone."""
        assert self._switch.stdin is not None
        try:
            self._switch.stdin.write(order + "\n")
            self._switch.stdin.flush()
        except OSError:
            raise FleetError("the lab's switch has ended", hint="its own error stands above") from None

    def begin(self) -> None:
        """From now on the faults' seconds count. A second call does nothing."""
        with self._lock:
            if self._begun is None and self.faults:
                self._begun = threading.Thread(target=self._do_all, name="konvoi-faults", daemon=True)
                self._begun.start()

    def _do_all(self) -> None:
        started = time.monotonic()
        for seconds, text, act in sorted(
            (moment for fault in self.faults for moment in fault.moments(self)), key=lambda moment: moment[0]
        ):
            if self._is_over.wait(max(0.0, started + seconds - time.monotonic())):
                return
            self.say(f"lab: at {seconds:.0f} s {text}")
            act()

    # -- what it is, and was ------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """
        >>> Lab(4, Link(loss=0.001), cpu=0.4).describe()
        '4 hosts of 0.4 cores; up=100.0, down=100.0, rtt=80.0, loss=0.001'
        """
        cores = "" if self.cpu is None else f" of {self.cpu:g} cores"
        faults = "".join(f"; {fault.text}" for fault in self.faults)
        return f"{self.num_hosts} hosts{cores}; {self.link.describe()}{faults}"

    def describe_traffic(self) -> str:
        """
        >>> lab = Lab(2)
        >>> lab.traffic = {"sent": [2_000_000, 1_500_000], "dropped": [3, 0]}
        >>> lab.describe_traffic()
        'island-0 sent 2.0 MB, island-1 sent 1.5 MB; 3 packets found a queue full'
        """
        sent = ", ".join(f"island-{n} sent {size / 1e6:.1f} MB" for n, size in enumerate(self.traffic.get("sent", ())))
        dropped = sum(self.traffic.get("dropped", ()))
        return f"{sent}; {dropped} packets found a queue full" if sent else "its switch told nothing"
