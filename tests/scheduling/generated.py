"""Small programs drawn at random: lists of operations over a few shared objects."""

import random

from machine import Machine

STATE = {
    "x": 0, "y": 0, "d": {}, "l": [], "a": None, "b": None, "s": 1, "c": 0, "clock": 0, "q": [],
}  # fmt: skip


KINDS = (
    "read", "write", "increment", "copy", "contains", "put_item", "delete", "snapshot", "append",
    "pop", "take", "put", "notify", "acquire", "release", "missing",
    "sleep",
)  # fmt: skip
NESTED = ("locked", "locked", "locked", "when", "start", "wait")


def instructions(draw, kinds, names, depth=0):
    """One instruction; those with a block of their own are nested once."""
    kind = draw.choice(kinds if depth < 1 else [kind for kind in kinds if kind in KINDS])
    cell, key, lock = (draw.choice(name) for name in names)
    count = draw.randint(1, 2) if kind in NESTED else 0
    block = [instructions(draw, kinds, names, depth + 1) for _ in range(count)]
    return kind, cell, key, lock, draw.randint(1, 9), block


def body_of(script, base):
    """A generator function that interprets a script. Sites are numbered from `base`."""

    def block(machine, script, base):
        log = []
        for number, (kind, cell, key, lock, value, inner) in enumerate(script):
            site = base + number * 10
            if kind == "read":
                log.append((yield machine.read(cell, site=site)))
            elif kind == "write":
                yield machine.write(cell, value, site=site)
            elif kind in ("increment", "copy"):
                seen = yield machine.read(cell, site=site)
                target = cell if kind == "increment" else "xy"[cell == "x"]
                yield machine.write(target, seen + value, site=site + 1)
            elif kind == "contains":
                log.append((yield machine.contains("d", key, site=site)))
            elif kind == "put_item":
                yield machine.put_item("d", key, value, site=site)
            elif kind == "delete":
                yield machine.delete("d", key, site=site)
            elif kind == "snapshot":
                log.append((yield machine.snapshot("d", site=site)))
            elif kind == "append":
                yield machine.append("l", value, site=site)
            elif kind == "pop":
                log.append((yield machine.pop("l", site=site)))
            elif kind == "put":
                yield machine.put("q", value, site=site)
            elif kind == "take":
                log.append((yield machine.take("q", site=site)))
            elif kind == "acquire":
                yield machine.acquire("s", site=site)
            elif kind == "release":
                yield machine.release("s", site=site)
            elif kind == "sleep":
                yield from machine.sleep(value % 3, site=site)
            elif kind == "notify":
                yield machine.notify("c", site=site)
            elif kind == "wait":
                yield machine.lock(lock, site=site)
                yield from machine.wait("c", lock, site=site + 1)
                yield machine.unlock(lock, site=site + 2)
            elif kind == "locked":
                yield machine.lock(lock, site=site)
                log += yield from block(machine, inner, base * 100)
                yield machine.unlock(lock, site=site + 1)
            elif kind == "missing":  # check, then act
                if not (yield machine.contains("d", key, site=site)):
                    yield machine.put_item("d", key, value, site=site + 1)
            elif kind == "when":
                if (yield machine.read(cell, site=site)):
                    log += yield from block(machine, inner, base * 100)
            else:
                child = yield machine.start(body_of(inner, base * 100), site=site)
                if value > 4:
                    yield machine.join(child, site=site + 1)
        return tuple(log)

    return lambda machine: block(machine, script, base)


def generate(seed):
    """A program of two or three threads; the same one for the same seed."""
    draw = random.Random(seed)
    threads = draw.choice([2, 2, 2, 3])
    size = draw.randint(1, 3) if threads == 2 else draw.randint(1, 2)
    # Few kinds and few names each time, so that operations meet.
    kinds = draw.sample(KINDS, 3) + draw.sample(NESTED, 2)
    names = draw.choice(["x", "x", "xy"]), draw.choice(["k", "kn"]), draw.choice(["a", "ab"])
    scripts = [[instructions(draw, kinds, names) for _ in range(size)] for _ in range(threads)]
    bodies = [body_of(script, (number + 1) * 1000) for number, script in enumerate(scripts)]
    announced = draw.random() < 0.8
    return lambda: Machine(bodies, STATE, announced)
