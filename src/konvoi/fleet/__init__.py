"""WHERE a job runs: fleets are frozen values."""

from konvoi.fleet.local import Local, local

__all__ = ["Local", "local"]
