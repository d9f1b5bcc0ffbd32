"""The soak sees what it is there to see."""

from __future__ import annotations

import pytest

from .balance import Balance, Books, balance

SENT = dict.fromkeys(range(4), "sent")


@pytest.mark.parametrize(
    ("outcomes", "came", "expected"),
    [
        (SENT, [0, 1, 2, 3], {}),
        (SENT, [0, 1, 3], {"lost": 1}),
        (SENT, [0, 1, 1, 2, 3], {"duplicates": 1}),
        (SENT, [0, 2, 1, 3], {"disordered": 1}),
        ({**SENT, 4: "not sent"}, [0, 1, 2, 3, 4], {"unsent": 1}),
        ({**SENT, 4: "not sent"}, [0, 1, 2, 3], {}),
        ({**SENT, 4: "unsure"}, [0, 1, 2, 3], {"unsure": 1}),
        ({**SENT, 4: "unsure"}, [4, 0, 1, 2, 3], {"unsure": 1}),
    ],
)
def test_balance(outcomes: dict[int, str], came: list[int], expected: dict[str, int]) -> None:
    """Losses, duplicates and disorder are counted; what was unsure may come, late too, or not."""
    assert balance(outcomes, came, ordered=True) == Balance(sent=4, delivered=len(came), **expected)


def test_order_among_competing_readers_means_nothing() -> None:
    """Workers finish when they will; a killed one takes along what it had claimed, and no more."""
    assert balance(SENT, [3, 1], ordered=False, in_hand={0}) == Balance(sent=4, delivered=2, lost=1, excused=1)


def test_each_member_of_a_group_counts() -> None:
    """A group's message is due to each of its members, and to one that comes and goes if it likes."""
    books = Books()
    books.members.update({"a": "everybody", "b": "everybody", "c": "others"})
    books.outcomes["node group everybody"].update(SENT)
    for reader, came in (("a", [0, 1, 2, 3]), ("b", [0, 1]), ("passing.node!1", [2, 1])):
        books.came[reader, "node group everybody"] += came
    balances = books.deliveries()
    assert balances["group"] == Balance(sent=8, delivered=6, lost=2)
    assert balances["passing member"] == Balance(sent=2, delivered=2, disordered=1)
    assert not books.is_settled()
