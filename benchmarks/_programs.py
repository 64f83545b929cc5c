"""Small racy programs that a stress tool should catch, and one that it must leave alone.

Each is a fresh state with the `work` that all its threads do at once, and what must hold after.
Copied beside the tests that `benchmarks.stress` writes: no import of ours, so that it loads in an
environment that has one of the peers only.
"""

from __future__ import annotations

import threading
from typing import ClassVar

WRONG = "a thread's work was lost, or done twice"


class Program:
    """A round's state; `made` counts them, which is the number of rounds begun."""

    threads: ClassVar[int] = 2
    made: ClassVar[int] = 0

    def __init__(self) -> None:
        Program.made += 1

    def work(self) -> None:
        raise NotImplementedError

    def holds(self) -> bool:
        raise NotImplementedError


class LostUpdate(Program):
    """a: lost update"""

    def __init__(self) -> None:
        super().__init__()
        self.value = 0

    def work(self) -> None:
        temp = self.value
        self.value = temp + 1

    def holds(self) -> bool:
        return self.value == self.threads


class Increments(Program):
    """b: three times `+= 1`"""

    threads = 4

    def __init__(self) -> None:
        super().__init__()
        self.value = 0

    def work(self) -> None:
        for _ in range(3):
            self.value += 1

    def holds(self) -> bool:
        return self.value == 3 * self.threads


class LazySingleton(Program):
    """c: lazy singleton"""

    def __init__(self) -> None:
        super().__init__()
        self.instance: object | None = None
        self.built: list[object] = []

    def work(self) -> None:
        if self.instance is None:
            self.instance = object()
            self.built.append(self.instance)

    def holds(self) -> bool:
        return len(self.built) == 1


class GetOrCompute(Program):
    """g: get or compute"""

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[str, int] = {}
        self.computed: list[str] = []

    def work(self) -> None:
        if "key" not in self.results:
            self.computed.append("key")
            self.results["key"] = 1

    def holds(self) -> bool:
        return len(self.computed) == 1


class Locked(Program):
    """none: locked counter"""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.value = 0

    def work(self) -> None:
        with self.lock:
            self.value += 1

    def holds(self) -> bool:
        return self.value == self.threads


PROGRAMS: tuple[type[Program], ...] = (LostUpdate, Increments, LazySingleton, GetOrCompute, Locked)
