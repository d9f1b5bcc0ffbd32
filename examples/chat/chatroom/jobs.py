"""The jobs a worker does for a room: which words ask for one, and its result."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chatroom.rules import Refused

if TYPE_CHECKING:
    import random

CHANNEL = "chat-jobs"
USAGE = {"roll": "/roll 2d6", "count": "/count some words", "morse": "/morse some words"}
_DICE = re.compile(r"(\d{0,3})d(\d{1,4})", re.IGNORECASE)
_MOST_DICE = 100

_SIGNS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!'/()&:=+-\"@"
_CODES = """
.- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --..
----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----.
.-.-.- --..-- ..--.. -.-.-- .----. -..-. -.--. -.--.- .-... ---... -...- .-.-. -....- .-..-. .--.-.
"""
_MORSE = dict(zip(_SIGNS, _CODES.split(), strict=True))


@dataclass(frozen=True, slots=True)
class Job:
    """One command and its argument, known to be workable."""

    command: str
    argument: str


def parse(text: str) -> Job | None:
    """Return the job a message asks for, or None if it is ordinary talk; raise Refused for one nobody can do."""
    if not text.startswith("/"):
        return None
    command, _, argument = text[1:].partition(" ")
    command, argument = command.lower(), argument.strip()
    if command not in USAGE:
        raise Refused("job", f"There is no /{command[:20]}. There are {', '.join(USAGE.values())}.")
    if command == "roll":
        _dice(argument)
    elif not argument:
        raise Refused("job", f"That needs words to work on: {USAGE[command]}.")
    return Job(command, argument)


def work(job: Job, dice: random.Random) -> str:
    """Return the result of a job as a sentence."""
    if job.command == "roll":
        return _roll(job.argument, dice)
    return _count(job.argument) if job.command == "count" else _morse(job.argument)


def _dice(argument: str) -> tuple[int, int]:
    found = _DICE.fullmatch(argument or "1d6")
    number, sides = (int(found[1] or 1), int(found[2])) if found else (0, 0)
    if not 1 <= number <= _MOST_DICE or not 2 <= sides <= 1000:
        raise Refused("job", f"Dice are written like 2d6: 1 to {_MOST_DICE} dice of 2 to 1000 sides.")
    return number, sides


def _roll(argument: str, dice: random.Random) -> str:
    number, sides = _dice(argument)
    rolled = [dice.randint(1, sides) for _ in range(number)]
    shown = " + ".join(map(str, rolled[:12])) + (" + ..." if number > 12 else "")
    return f"{number}d{sides}: {shown} = {sum(rolled)}" if number > 1 else f"{number}d{sides}: {rolled[0]}"


def _count(text: str) -> str:
    words, letters = len(text.split()), sum(not char.isspace() for char in text)
    return f"{words:,} word{'s'[: words != 1]}, {letters:,} character{'s'[: letters != 1]} without blanks"


def _morse(text: str) -> str:
    return " / ".join(" ".join(_MORSE.get(char, "?") for char in word.lower()) for word in text.split())
