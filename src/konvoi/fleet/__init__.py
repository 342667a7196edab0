"""WHERE a job runs: fleets are frozen values."""

from konvoi.fleet.local import local
from konvoi.fleet.simulated import simulated

__all__ = ["local", "simulated"]
