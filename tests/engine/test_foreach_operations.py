import pytest, torch, operation_cases
from operation_cases import *
from operation_cases import ULPS
from gradchain.engine.executors.foreach import Foreach
@pytest.fixture(autouse=True)
def _f(monkeypatch):
    monkeypatch.setitem(ULPS, "div", 1.0)
    operation_cases.use(Foreach("cpu"))
