"""Who decides in the tests of controlled executions."""

import random


def stay(enabled, current, _pending):
    """Go on as long as that is possible, then the first one."""
    return current if current in enabled else enabled[0]


def drawn(seed):
    """A chooser that draws."""
    draw = random.Random(seed)
    return lambda enabled, *_: draw.choice(enabled)


class Tree:
    """Goes through all orders, depth first; a bound on preemptions keeps the tree small."""

    def __init__(self, preemptions=None):
        self.preemptions = preemptions
        self.path = []  # of [the options at a choice, the index of the one taken]
        self.depth = self.spent = 0

    def choose(self, enabled, current, _pending):
        if self.depth == len(self.path):
            options = list(enabled)
            if current in enabled:
                options.remove(current)
                options.insert(0, current)
                if self.preemptions is not None and self.spent >= self.preemptions:
                    options = [current]
            self.path.append([options, 0])
        options, taken = self.path[self.depth]
        assert set(options) <= set(enabled), "the same choices led to another place"
        self.depth += 1
        self.spent += current in enabled and options[taken] != current
        return options[taken]

    def advance(self):
        self.depth = self.spent = 0
        while self.path and self.path[-1][1] + 1 == len(self.path[-1][0]):
            self.path.pop()
        if self.path:
            self.path[-1][1] += 1
        return bool(self.path)
