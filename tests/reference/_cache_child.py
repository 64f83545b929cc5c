"""What other processes do in the tests: ``python _cache_child.py STORY PATH [ROUND]``."""

import os
import sys
import threading
import warnings

from pytest_freethread.reference.cache import Cache, CacheFileError


def write_until_killed(path: str, round_: str) -> None:
    """Set and delete from four threads for ever; print each change that was acknowledged."""
    cache = Cache(path, max_entries=100_000)

    def write(thread: int) -> None:
        number = 0
        while True:
            key = f"{round_}-{thread}-{number}"
            cache.set(key, {"number": number, "padding": "x" * (number * 37 % 3000)})
            # One write call per line: the kernel has it whole before the kill, or not at all.
            os.write(1, f"set {key} {number}\n".encode())
            if number % 5 == 4:
                cache.delete(key)
                os.write(1, f"delete {key} {number}\n".encode())
            number += 1

    for thread in range(4):
        threading.Thread(target=write, args=(thread,)).start()


def create(path: str) -> None:
    """Announce, create the file, announce again, and wait for the kill."""
    os.write(1, b"creating\n")
    cache = Cache(path)
    cache.set("created", True)
    os.write(1, b"created\n")
    sys.stdin.read()


def open_again(path: str) -> None:
    """Say why the file cannot be opened."""
    try:
        Cache(path).close()
    except CacheFileError as error:
        os.write(1, f"{error}\n".encode())


def forget_to_close(path: str) -> None:
    """Reach the end of the program with the cache open."""
    forgotten = Cache(path)
    forgotten.set("kept", 1)
    globals()["forgotten"] = forgotten


def fork(path: str) -> None:
    """Use the cache of the parent in a forked child, which must not hang."""
    cache = Cache(path, front_entries=1)
    cache.set("a", 1)
    cache.set("b", 2)
    # Forking with threads around, which newer interpreters warn of, is the point here.
    warnings.simplefilter("ignore", DeprecationWarning)
    child = os.fork()
    if child == 0:
        for use in (lambda: cache.set("a", 3), lambda: cache.get("a")):
            try:
                use()
            except CacheFileError as error:
                os.write(1, f"{error}\n".encode())
        os._exit(0)
    os.waitpid(child, 0)
    cache.close()


if __name__ == "__main__":
    stories = (write_until_killed, create, open_again, forget_to_close, fork)
    {story.__name__: story for story in stories}[sys.argv[1]](*sys.argv[2:])
