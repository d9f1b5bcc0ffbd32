"""What a person may send: the bounds of names, rooms, texts and pace, each refusal worded for that person."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass

NAME_LENGTH = 32
ROOM_LENGTH = 40
TEXT_LENGTH = 2000
ROOMS_PER_PERSON = 20
BURST = 100
PER_SECOND = 20.0

# Emoji and several scripts are written with the joiners; every other invisible character could disguise a name.
_JOINERS = frozenset("\u200c\u200d")


class Refused(Exception):
    """What was sent cannot be taken.

    Args:
        code: a short word for programs.
        reason: a sentence for the person.
    """

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(reason)


def clean_name(value: object) -> str:
    """Return a person's name in its normal form; raise Refused if it is empty, too long or no text."""
    return _one_line(value, "name", "Your name", NAME_LENGTH)


def clean_room(value: object) -> str:
    """Return a room's name in its normal form; raise Refused if it is empty, too long or no text."""
    return _one_line(value, "room", "A room's name", ROOM_LENGTH)


def clean_text(value: object) -> str:
    """Return the text of a message without outer blanks; raise Refused if nothing is left or it is too long."""
    if not isinstance(value, str):
        raise Refused("text", "A message has to be text.")
    text = "".join(char for char in value if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs")).strip()
    if not text:
        raise Refused("text", "A message cannot be empty.")
    if len(text) > TEXT_LENGTH:
        raise Refused("text", f"A message can have {TEXT_LENGTH:,} characters; this one has {len(text):,}.")
    return text


def room_key(room: str) -> str:
    """Return what two spellings of one room's name have in common."""
    return room.casefold()


def room_group(room: str) -> str:
    """Return the group of a room: a hash, because a group's name is short and ASCII, and a room's need not be."""
    return "room." + hashlib.sha256(room_key(room).encode()).hexdigest()[:32]


def _one_line(value: object, code: str, subject: str, limit: int) -> str:
    if not isinstance(value, str):
        raise Refused(code, f"{subject} has to be text.")
    text = unicodedata.normalize("NFKC", value)
    text = " ".join("".join(char for char in text if _shows(char) or char.isspace()).split())
    if not any(_shows(char) and char not in _JOINERS for char in text):
        raise Refused(code, f"{subject} cannot be empty.")
    if len(text) > limit:
        raise Refused(code, f"{subject} can have {limit} characters; this one has {len(text):,}.")
    return text


def _shows(char: str) -> bool:
    return char in _JOINERS or not unicodedata.category(char).startswith("C")


@dataclass(slots=True)
class Pace:
    """How much one socket may still send: BURST messages at once, PER_SECOND in the long run."""

    left: float = BURST
    at: float = 0.0

    def spend(self, now: float) -> None:
        """Count one message at `now` (monotonic seconds); raise Refused if it comes too soon."""
        self.left = min(float(BURST), self.left + (now - self.at) * PER_SECOND)
        self.at = now
        if self.left < 1:
            raise Refused("pace", "That was too much at once. Wait a moment, then send it again.")
        self.left -= 1
