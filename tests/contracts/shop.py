"""A contract that is broken, at lines that stay where they are."""

from pytest_freethread import operation


class Counter:
    def __init__(self):
        self.value = 0

    @operation()
    def increment(self):
        value = self.value + 1
        self.value = value
        return value

    def state(self):
        return f"value {self.value}"
