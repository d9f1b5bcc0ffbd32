"""What a person may send, and what a worker makes of it."""

from __future__ import annotations

import random

import pytest

from channels_pg_sa.names import check_group
from chatroom.jobs import Job, parse, work
from chatroom.rules import BURST, PER_SECOND, Pace, Refused, clean_name, clean_room, clean_text, room_group, room_key


@pytest.mark.parametrize("value", ["", "   ", "\u200b", "\u202e", "\x00", "\u200d", None, 7, ["Ada"], "a" * 33])
def test_a_name_that_shows_nothing_or_is_too_long_is_refused(value: object) -> None:
    """Invisible characters are no name, and neither is what is no text."""
    with pytest.raises(Refused) as refusal:
        clean_name(value)
    assert refusal.value.code == "name"


def test_a_name_is_brought_to_its_normal_form() -> None:
    """Blanks, compatibility forms and characters that turn the text around cannot tell two names apart."""
    assert clean_name("  Ada\u00a0 \n Lovelace\u202e ") == "Ada Lovelace"
    assert clean_name("\uff21da") == "Ada"
    assert clean_name("\U0001f469\u200d\U0001f680") == "\U0001f469\u200d\U0001f680"


@pytest.mark.parametrize("room", ["Lobby", "\u2603", "<b>", "caf\u00e9/..", "\u6771\u4eac", "r" * 40, "'; drop table"])
def test_any_room_has_a_valid_group(room: str) -> None:
    """A room's group is a valid name for every layer, and one for all spellings that differ in case."""
    assert check_group(room_group(clean_room(room)))
    assert room_group(room.upper()) == room_group(room.lower())
    assert room_key("STRASSE") == room_key("stra\u00dfe")


def test_a_text_keeps_its_lines_and_loses_what_cannot_be_sent() -> None:
    """Line ends stay; control characters and halves of characters, which no encoding carries, go."""
    assert clean_text(" one\n\ttwo\x07\ud800 ") == "one\n\ttwo"
    for wrong in ("", " \n ", "\x00", None, "x" * 2001):
        with pytest.raises(Refused):
            clean_text(wrong)
    assert len(clean_text("x" * 2000)) == 2000


def test_a_pace_allows_a_burst_and_then_what_time_gives() -> None:
    """After a burst a message must wait for its turn, and a long pause saves up no more than one burst."""
    pace = Pace(at=100.0)
    for _ in range(BURST):
        pace.spend(100.0)
    with pytest.raises(Refused):
        pace.spend(100.0)
    pace.spend(100.0 + 1.5 / PER_SECOND)
    for _ in range(BURST):
        pace.spend(9999.0)
    with pytest.raises(Refused):
        pace.spend(9999.0)


def test_jobs_give_their_results() -> None:
    """Each command has one meaning; ordinary talk is no job."""
    dice = random.Random(1)
    assert parse("hello /roll") is None
    assert work(Job("count", "one two"), dice) == "2 words, 6 characters without blanks"
    assert work(Job("count", "a"), dice) == "1 word, 1 character without blanks"
    assert work(Job("morse", "SOS, \u00e9"), dice) == "... --- ... --..-- / ?"
    assert work(Job("roll", "1d2"), dice) in ("1d2: 1", "1d2: 2")
    rolled = work(Job("roll", "3d6"), dice)
    assert sum(map(int, rolled.partition(": ")[2].partition(" = ")[0].split(" + "))) == int(rolled.partition(" = ")[2])
    assert parse("/ROLL") == Job("roll", "")


@pytest.mark.parametrize(
    "text", ["/", "/fly", "/roll 0d6", "/roll 101d6", "/roll 2d1", "/roll d", "/roll 1d6 x", "/count", "/morse  "]
)
def test_a_job_that_nobody_can_do_is_refused(text: str) -> None:
    """It is refused before any worker sees it, with the way it should be written."""
    with pytest.raises(Refused, match=r"/fly|/roll|/count|/morse|2d6"):
        parse(text)
