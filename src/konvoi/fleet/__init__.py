"""WHERE a job runs: fleets are frozen values."""

from konvoi.fleet.local import local

__all__ = ["local"]
