"""``python -m sa_wfstate``: see :mod:`sa_wfstate.cli`."""

import sys

from .cli import main

sys.exit(main())
