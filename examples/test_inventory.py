"""Hypothesis draws the stock, the buyers, and who goes on when."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from pytest_freethread import Schedule, schedules


class Inventory:
    def __init__(self, stock: int) -> None:
        self.stock = stock
        self._lock = threading.Lock()

    def reserve(self) -> bool:
        with self._lock:  # without it, two buyers can both see the last item
            if self.stock == 0:
                return False
            self.stock -= 1
            return True


@given(schedule=schedules(), stock=st.integers(0, 9), buyers=st.integers(1, 3))
def test_never_oversold(schedule: Schedule, stock: int, buyers: int) -> None:
    inventory = Inventory(stock)
    schedule.run(*[inventory.reserve] * buyers)
    assert inventory.stock == max(0, stock - buyers)
