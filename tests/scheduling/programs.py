"""Programs for the model machine: the classics, and the ones that a leading peer gets wrong."""

from machine import Machine


def counter(k, threads=2, locked=True, announced=True):
    """Each thread adds one k times, under a lock or not."""

    def body(m):
        for _ in range(k):
            if locked:
                yield m.lock("lock")
            value = yield m.read("x")
            yield m.write("x", value + 1)
            if locked:
                yield m.unlock("lock")

    return lambda: Machine([body] * threads, {"x": 0, "lock": None}, announced)


def writers(k, threads=2):
    """Each thread writes one variable k times."""

    def body(m):
        for number in range(k):
            yield m.write("x", number)

    return lambda: Machine([body] * threads, {"x": None})


def independent(k, threads):
    """Each thread has a variable of its own."""

    def body_of(name):
        def body(m):
            for number in range(k):
                yield m.write(name, number)

        return body

    names = [f"x{thread}" for thread in range(threads)]
    return lambda: Machine([body_of(name) for name in names], dict.fromkeys(names))


def reader_and_writers(threads):
    """All but one thread write a variable of their own each; the last one reads them all.

    The example of Abdulla et al. (2014) on which sleep sets alone explore too much.
    """

    def writer_of(name):
        def body(m):
            yield m.write(name, 1)

        return body

    names = [f"x{thread}" for thread in range(threads - 1)]

    def reader(m):
        seen = ()
        for name in names:
            seen += ((yield m.read(name)),)
        return seen

    return lambda: Machine([*map(writer_of, names), reader], dict.fromkeys(names, 0))


def reorder(threads):
    """SCTBench's reorder_N: setters do a = 1; b = -1, a checker must see both or none."""

    def setter(m):
        yield m.write("a", 1)
        yield m.write("b", -1)

    def checker(m):
        ok = (yield m.read("a")) == 0 and (yield m.read("b")) == 0
        if not ok:
            ok = (yield m.read("a")) == 1 and (yield m.read("b")) == -1
        return ok

    return lambda: Machine([*[setter] * (threads - 1), checker], {"a": 0, "b": 0})


def twostage(threads):
    """SCTBench's twostage_N: data1 then data2 = data1 + 1 under two locks; a reader in between."""

    def writer(m):
        yield m.lock("first")
        yield m.write("data1", 1)
        yield m.unlock("first")
        yield m.lock("second")
        value = yield m.read("data1")
        yield m.write("data2", value + 1)
        yield m.unlock("second")

    def reader(m):
        yield m.lock("first")
        one = yield m.read("data1")
        yield m.unlock("first")
        if one == 0:
            return True
        yield m.lock("second")
        two = yield m.read("data2")
        yield m.unlock("second")
        return two == one + 1

    state = {"first": None, "second": None, "data1": 0, "data2": 0}
    return lambda: Machine([*[writer] * (threads - 1), reader], state)


def wrong(outcome):
    """Whether some thread says that what it saw was not right."""
    return any(result is False for _, result in outcome[3])
