"""Programs that go wrong, for the golden texts; `test_explored_text.py` runs a copy of it."""

import threading


class Counter:
    def __init__(self):
        self.value = 0
        self.lock = threading.Lock()

    def increment(self):
        temp = self.value
        self.value = temp + 1

    def increment_in_two_steps(self):
        with self.lock:
            temp = self.value
        with self.lock:
            self.value = temp + 1

    def increment_half_locked(self):
        temp = self.value
        with self.lock:
            self.value = (
                temp  # what was there
                + 1
            )

    def is_two(self):
        return self.value == 2


def assert_two(counter):
    assert counter.value == 2, f"it is {counter.value}"


class Registry:
    def __init__(self):
        self.known = {"key": 1}
        self.made = 0
        self.instance = None

    def use(self):
        if "key" not in self.known:
            return None
        return self.known["key"]

    def forget(self):
        self.known.pop("key", None)

    def walk(self):
        total = 0
        for key in self.known:
            total += len(key)
        return total

    def add(self):
        self.known["other"] = 2

    def get(self):
        if self.instance is None:
            self.made += 1
            self.instance = [self.made]
        return self.instance

    def publish(self):
        self.instance = ["it"]

    def first_letter(self):
        return self.instance[0][0]

    def made_one(self):
        return self.made == 1


class Bank:
    def __init__(self):
        self.lock_a = threading.Lock()
        self.lock_b = threading.Lock()
        self.lock_c = threading.Lock()
        self.balance = 0

    def transfer(self):
        with self.lock_a:  # noqa: SIM117 - each lock has a line of its own
            with self.lock_b:
                self.balance -= 1

    def refund(self):
        with self.lock_b:  # noqa: SIM117 - as above
            with self.lock_a:
                self.balance += 1

    def a_b(self):
        with self.lock_a, self.lock_b:
            pass

    def b_c(self):
        with self.lock_b, self.lock_c:
            pass

    def c_a(self):
        with self.lock_c, self.lock_a:
            pass

    def twice(self):
        with self.lock_a:
            self.lock_a.acquire()

    def keep(self):
        self.lock_a.acquire()


class Mailbox:
    def __init__(self):
        self.condition = threading.Condition()
        self.letter = None

    def look_then_wait(self):
        if self.letter is None:
            with self.condition:
                self.condition.wait()

    def post(self):
        with self.condition:
            self.letter = "hello"
            self.condition.notify()


class Polite:
    def __init__(self):
        self.flags = [False, False]

    def first(self):
        self.flags[0] = True
        while self.flags[1]:
            pass
        self.flags[0] = False

    def second(self):
        self.flags[1] = True
        while self.flags[0]:
            pass
        self.flags[1] = False


total = 0


def begin():
    global total  # noqa: PLW0603 - what is told is a global
    total = 0


def add(_=None):
    global total  # noqa: PLW0603 - what is told is a global
    total += 1


def total_is_two():
    return total == 2


def start_two(counter):
    threads = [threading.Thread(target=counter.increment) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
