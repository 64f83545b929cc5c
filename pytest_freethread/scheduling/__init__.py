"""Who runs next: pure strategies, without threads and without a clock.

A `Scheduler` answers two questions, whether there is another execution and who runs next among
these pending operations. Each strategy is a module of its own and names its paper.
"""

from __future__ import annotations

from pytest_freethread.errors import SettingError
from pytest_freethread.records import Pending
from pytest_freethread.scheduling.dfs import DFS
from pytest_freethread.scheduling.directed import Directed
from pytest_freethread.scheduling.dpor import DPOR
from pytest_freethread.scheduling.pct import PCT
from pytest_freethread.scheduling.plain import Plain
from pytest_freethread.scheduling.portfolio import Portfolio, PreemptionBound
from pytest_freethread.scheduling.pos import POS
from pytest_freethread.scheduling.protocol import Diverged, Scheduler, Stays, dependent
from pytest_freethread.scheduling.replay import Replay, decode, encode
from pytest_freethread.scheduling.surw import SURW
from pytest_freethread.scheduling.turns import Turns
from pytest_freethread.scheduling.walk import RandomWalk

__all__ = [
    "DFS",
    "DPOR",
    "PCT",
    "POS",
    "STRATEGIES",
    "SURW",
    "Directed",
    "Diverged",
    "Pending",
    "Plain",
    "Portfolio",
    "PreemptionBound",
    "RandomWalk",
    "Replay",
    "Scheduler",
    "Stays",
    "Turns",
    "decode",
    "dependent",
    "encode",
    "make",
]

_SAMPLERS: dict[str, type[RandomWalk | PCT | POS | SURW]] = {
    "random": RandomWalk,
    "pct": PCT,
    "pos": POS,
    "surw": SURW,
}
STRATEGIES = ("auto", *_SAMPLERS, "dfs", "dpor")


def make(strategy: str | Scheduler, *, seed: int, preemptions: int | None) -> Scheduler:
    """The scheduler that a setting stands for.

    Args:
        strategy: one of `STRATEGIES`, or a scheduler.
        seed: where its randomness starts.
        preemptions: how many switches away from a thread that could go on each execution may have;
            None: any number.

    Raises:
        SettingError: there is no such strategy, or it takes no bound.
    """
    if preemptions is not None and preemptions < 0:
        raise SettingError(f"preemptions={preemptions}: must be at least 0, or None for no bound")
    match strategy:
        case "auto":
            return Portfolio(seed, preemptions)
        case "dfs":
            return DFS(preemptions)
        case "dpor":
            if preemptions is not None:
                raise SettingError(
                    f"preemptions={preemptions}: strategy 'dpor' takes no bound; 'dfs' does"
                )
            return DPOR()
        case str():
            if strategy not in _SAMPLERS:
                raise SettingError(
                    f"strategy={strategy!r}: there is no such strategy; there are "
                    f"{', '.join(map(repr, STRATEGIES))}, or a Scheduler of your own"
                )
            scheduler: Scheduler = _SAMPLERS[strategy](seed)
        case _:
            scheduler = strategy
    return scheduler if preemptions is None else PreemptionBound(scheduler, preemptions)
