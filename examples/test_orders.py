"""Objects of one's own: fixtures of a function belong to one thread and one round.

The order book has no locks, and needs none: each thread gets its own, and its own `tmp_path`.
What the threads do share is everything else: modules, classes, caches, fixtures of wider scope.

    pytest --freethread -v examples/test_orders.py
"""

import functools
import json
from pathlib import Path

import pytest


@functools.cache
def unit_price(article: str) -> int:
    return {"nut": 2, "bolt": 3}[article]


class OrderBook:
    def __init__(self) -> None:
        self.orders: list[tuple[str, int]] = []

    def order(self, article: str, amount: int) -> int:
        self.orders.append((article, amount))
        return amount * unit_price(article)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.orders))


@pytest.fixture
def book() -> OrderBook:
    return OrderBook()


@pytest.fixture(scope="module")
def articles() -> tuple[str, ...]:
    return ("nut", "bolt")


@pytest.mark.parametrize(("article", "amount", "price"), [("nut", 10, 20), ("bolt", 7, 21)])
def test_an_order_has_a_price(book: OrderBook, article: str, amount: int, price: int) -> None:
    assert book.order(article, amount) == price


def test_every_order_is_in_the_book(book: OrderBook, articles: tuple[str, ...]) -> None:
    for article in articles:
        book.order(article, 1)
    assert book.orders == [("nut", 1), ("bolt", 1)]


def test_a_book_is_saved_where_no_other_is(
    book: OrderBook, tmp_path: Path, thread_index: int
) -> None:
    path = tmp_path / "orders.json"
    assert not path.exists()
    book.order("nut", thread_index)
    book.save(path)
    assert json.loads(path.read_text()) == [["nut", thread_index]]
