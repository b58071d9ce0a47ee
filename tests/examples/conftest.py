"""Make the modules of the demo importable, as ``python docs/examples/demo`` does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "docs" / "examples" / "demo"

sys.path.append(str(DEMO))


@pytest.fixture(scope="session")
def demo() -> Path:
    """Locate the program."""
    return DEMO
