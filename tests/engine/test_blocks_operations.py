"""Every operation and reduction alone, by blocks."""

from __future__ import annotations

import operation_cases
import pytest
from operation_cases import *  # noqa: F403  # its tests
from torch_call_cases import *  # noqa: F403  # its tests

from gradchain.engine.executors.blocks import Blocks


@pytest.fixture(autouse=True)
def _blocks():
    operation_cases.use(Blocks())
