"""The hosts of a lab: network namespaces with a TUN device each, and a quota of the processor. Linux, and root."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from konvoi.errors import FleetError
from konvoi.fleet.local import Site
from konvoi.lab.link import Link

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
PERIOD_US = 50_000
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Host:
    """A machine of the lab."""

    name: str  # of its namespace
    address: str
    device: str  # the network's, inside
    group: Path | None  # its cgroup; None: no quota

    @property
    def site(self) -> Site:
        enter = f"echo $$ > {self.group}/cgroup.procs && " if self.group else ""
        return Site(("sh", "-c", f'{enter}exec ip netns exec {self.name} "$@"', "sh"), self.address)

    def processes(self) -> list[int]:
        """Those in its cgroup; none where it has no quota."""
        return [int(line) for line in (self.group / "cgroup.procs").read_text().split()] if self.group else []

    def kill_workers(self) -> int:
        """Kill -9 what processes of this host have started, and not these themselves. Returns how many."""
        here = set(self.processes())
        children = [process for process in here if _parent(process) in here]
        for process in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return len(children)

    def limit(self, cores: float) -> None:
        """Give it so many cores from now on."""
        if self.group is None:
            raise FleetError("this host has no quota that could be changed", hint="--cpu")
        if (self.group / "cpu.max").exists():
            (self.group / "cpu.max").write_text(f"{int(PERIOD_US * cores)} {PERIOD_US}")
        else:
            (self.group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (self.group / "cpu.cfs_quota_us").write_text(str(int(PERIOD_US * cores)))


def check_root() -> None:
    """Raises: FleetError where a lab cannot be built."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise FleetError("a lab makes network namespaces, and needs root for that", hint="sudo, or a container's root")
    if shutil.which("ip") is None:
        raise FleetError("a lab needs the program `ip`", hint="apt-get install iproute2")
    if not Path("/dev/net/tun").exists():
        raise FleetError("a lab needs TUN devices", found="no /dev/net/tun")


def make(tag: str, number: int, link: Link, cores: float | None) -> tuple[Host, int]:
    """A host and its open TUN device. Raises: FleetError."""
    name, device, address = f"{tag}h{number}", f"{tag}t{number}", f"10.77.0.{number + 1}"
    file, made = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK), None
    try:
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN | IFF_NO_PI))
        _ip("netns", "add", name)
        _ip("link", "set", device, "netns", name)
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "set", device, "mtu", str(link.mtu))
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
        _ip("-n", name, "link", "set", device, "up")
        if link.congestion:
            _allow(link.congestion)
            _run("ip", "netns", "exec", name, "sysctl", "-qw", f"net.ipv4.tcp_congestion_control={link.congestion}")
        host = Host(name, address, device, _group(name) if cores is not None else None)
        if cores is not None:
            made = host
            host.limit(cores)
    except BaseException:
        os.close(file)
        remove(made or Host(name, address, device, None))
        raise
    return host, file


def tag(process: int) -> str:
    """What the hosts' names of this process begin with."""
    return f"kv{process:x}"


def sweep() -> None:
    """Remove the hosts of labs whose process was killed."""
    told = subprocess.run(("ip", "netns", "list"), stdout=subprocess.PIPE, text=True, check=False).stdout
    for name in re.findall(r"^kv[0-9a-f]+h\d+\b", told, re.MULTILINE):
        process = int(name[2:].partition("h")[0], 16)
        if not Path(f"/proc/{process}").exists():
            group = _controller() / f"konvoi-{name}"
            remove(Host(name, "", "", group if group.exists() else None))


def remove(host: Host) -> None:
    """Its processes have ended, or are ended now."""
    for process in host.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    subprocess.run(("ip", "netns", "del", host.name), stderr=subprocess.DEVNULL, check=False)
    if host.group is not None:
        for _ in range(50):  # a killed process leaves its group a moment later
            with contextlib.suppress(OSError):
                host.group.rmdir()
                return
            signal.sigtimedwait([], 0.1)


def _controller() -> Path:
    return CGROUPS / "cpu" if (CGROUPS / "cpu").is_dir() else CGROUPS


def _group(name: str) -> Path:
    group = _controller() / f"konvoi-{name}"
    try:
        group.mkdir()
    except OSError as error:
        raise FleetError(
            "this machine's control groups cannot be used", found=str(error), hint="leave out --cpu"
        ) from None
    if not any((group / file).exists() for file in ("cpu.max", "cpu.cfs_quota_us")):
        group.rmdir()
        raise FleetError("the control group has no quota of the processor", found=str(group), hint="leave out --cpu")
    return group


def _allow(congestion: str) -> None:
    """A namespace may only choose what the machine allows. Raises: FleetError."""
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    if congestion not in available:
        raise FleetError("this kernel has no such congestion control", found=congestion, expected=", ".join(available))
    allowed = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
    if congestion not in allowed.read_text().split():
        allowed.write_text(f"{allowed.read_text().strip()} {congestion}")


def _parent(process: int) -> int | None:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError):
        return None


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FleetError("a lab's network could not be made", found=f"{' '.join(command)}: {done.stderr.strip()}")
