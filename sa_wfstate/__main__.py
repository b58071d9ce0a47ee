"""``python -m sa_wfstate``, the command ``wfstate``: see :mod:`sa_wfstate.cli.main`."""

import sys

from .cli.main import main

sys.exit(main())
