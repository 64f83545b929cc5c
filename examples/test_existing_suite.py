"""A suite that knows nothing of threads: with one flag its tests run in many at once.

Functions, classes and `unittest.TestCase`s are rerun as they are. A test that cannot be, here for
its `monkeypatch`, runs on one thread, and the summary says so.

    pytest --freethread -v examples/test_existing_suite.py
"""

import os
import re
import unittest

import pytest


def slug(title: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", title.lower()))


def language() -> str:
    return os.environ.get("LANG", "C").partition(".")[0]


class Cart:
    def __init__(self) -> None:
        self.items: dict[str, int] = {}

    def add(self, article: str, amount: int = 1) -> None:
        if amount < 1:
            raise ValueError(f"{amount} is no amount")
        self.items[article] = self.items.get(article, 0) + amount

    def count(self) -> int:
        return sum(self.items.values())


def test_a_title_becomes_a_slug() -> None:
    assert slug("Thread safety, tested!") == "thread-safety-tested"


def test_the_language_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "eo.UTF-8")
    assert language() == "eo"


class TestCart:
    def setup_method(self) -> None:
        self.cart = Cart()

    def test_amounts_add_up(self) -> None:
        self.cart.add("nut", 2)
        self.cart.add("nut")
        assert self.cart.items == {"nut": 3}

    def test_nothing_is_no_amount(self) -> None:
        with pytest.raises(ValueError, match="0 is no amount"):
            self.cart.add("nut", 0)


class CartCase(unittest.TestCase):
    def setUp(self) -> None:
        self.cart = Cart()

    def test_an_empty_cart(self) -> None:
        assert self.cart.count() == 0

    def test_several_articles(self) -> None:
        for article in ("nut", "bolt"):
            with self.subTest(article=article):
                self.cart.add(article, 2)
        assert self.cart.count() == 4
