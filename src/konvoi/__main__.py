"""`python -m konvoi` is the command `konvoi`."""

import sys

from konvoi.cli import main

sys.exit(main())
