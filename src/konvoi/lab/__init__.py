"""A wide-area network in a box: hosts of one machine, each with its share of the processor, joined by slow links."""

from konvoi.lab.faults import Fault, fault
from konvoi.lab.lab import Lab
from konvoi.lab.link import Link

__all__ = ["Fault", "Lab", "Link", "fault"]
