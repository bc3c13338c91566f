"""Every operation and reduction alone, by the native executor."""

from __future__ import annotations

import operation_cases
import pytest
from operation_cases import *  # noqa: F403  # its tests

from gradchain.engine.executors.native import Native


@pytest.fixture(autouse=True)
def _native():
    operation_cases.use(Native())
