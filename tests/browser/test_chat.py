"""Two pages of two server processes, as their readers see them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.person import Person
from tests.demo.chat import Chat

pytestmark = pytest.mark.processes

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


def test_two_pages_of_two_servers_see_each_message_once(chat: Chat, person: Callable[[], Person]) -> None:
    """What either says is seen once by both, in order, with the servers that it came through."""
    ada, grace = person(), person()
    ada.enter(chat.addresses["A"], "Ada", "Meeting")
    grace.enter(chat.addresses["B"], "Grace", "Meeting")
    for one in (ada, grace):
        one.sees({"Ada": "A", "Grace": "B"})

    said = [f"{speaker} {number}" for number in range(5) for speaker in ("from A", "from B")]
    for text in said:
        (ada if "A" in text else grace).say(text)
        for one in (ada, grace):
            one.hears(text)

    assert ada.messages() == grace.messages() == said
    assert ada.routes() == ["AA", "BA"] * 5
    assert grace.routes() == ["AB", "BB"] * 5
    assert ada.complaints() == grace.complaints() == []


def test_a_worker_answers_both_pages(chat: Chat, person: Callable[[], Person]) -> None:
    """A job asked at one server is done by the worker process, and both pages show its answer once."""
    ada, grace = person(), person()
    ada.enter(chat.addresses["A"], "Ada", "Jobs")
    grace.enter(chat.addresses["B"], "Grace", "Jobs")
    ada.sees({"Ada": "A", "Grace": "B"})
    ada.say("/morse sos")
    for one in (ada, grace):
        one.reads(["/morse sos", "... --- ..."])
        assert one.texts(".note.job .who b") == [f"Worker {chat.pids['worker-1']}"]


def test_another_room_counts_what_is_unread(chat: Chat, person: Callable[[], Person]) -> None:
    """A room that is not open counts its messages, and its button, pressed while they come in, opens it."""
    ada, grace = person(), person()
    ada.enter(chat.addresses["A"], "Ada", "Quiet")
    grace.enter(chat.addresses["B"], "Grace", "Busy")
    ada.until(lambda: "Busy" in ada.texts(".room b"))
    ada.find("[data-key=busy]").click()
    ada.until(lambda: ada.text("#room-name") == "Busy")
    ada.find("[data-key=quiet]").click()
    button = ada.find("[data-key=busy]")
    for number in range(3):
        grace.say(f"message {number}")
    ada.until(lambda: ada.texts("[data-key=busy] .unread") == ["3 unread"])
    button.click()
    ada.reads([f"message {number}" for number in range(3)])
    assert ada.texts(".unread") == []


def test_markup_stays_text(chat: Chat, person: Callable[[], Person]) -> None:
    """Names, rooms and messages with markup in them are shown as they were written, and nothing in them runs."""
    ada, grace = person(), person()
    room, script = (
        "<b>Bold</b>",
        "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>",
    )
    ada.enter(chat.addresses["A"], "<i>Ada</i>", room)
    grace.enter(chat.addresses["B"], "Grace", room)
    ada.say(script)
    grace.reads([script])
    assert grace.text(".note .who b") == "<i>Ada</i>"
    assert grace.page.title == room
    assert grace.texts(".logs img, .logs script, .logs i, h1 b") == []


def test_a_wrong_message_is_explained_and_kept(chat: Chat, person: Callable[[], Person]) -> None:
    """What the server refuses comes back into the box, with the reason beside it, and nobody else sees it."""
    ada, grace = person(), person()
    ada.enter(chat.addresses["A"], "Ada", "Faults")
    grace.enter(chat.addresses["B"], "Grace", "Faults")
    ada.say("/fly away")
    ada.until(lambda: "There is no /fly" in ada.text("#fault"))
    assert ada.find("#text").get_property("value") == "/fly away"
    ada.find("#text").clear()
    ada.say("well then")
    for one in (ada, grace):
        one.reads(["well then"])


def test_a_killed_server_is_seen_and_survived(chat: Chat, person: Callable[[], Person]) -> None:
    """Its page says that it waits, its people vanish elsewhere, and all meet again when it is back."""
    ada, grace = person(), person()
    ada.enter(chat.addresses["A"], "Ada", "Storm")
    grace.enter(chat.addresses["B"], "Grace", "Storm")
    ada.sees({"Ada": "A", "Grace": "B"})

    os.kill(chat.pids["B"], signal.SIGKILL)
    grace.until(lambda: "does not answer" in grace.text("#lost"))
    grace.say("a text to keep")
    assert grace.find("#text").get_property("value") == "a text to keep"
    ada.sees({"Ada": "A"})
    assert ada.texts(".aside")[-1] == "Grace is gone"

    chat.await_restart("B")
    grace.until(lambda: not grace.find("#lost").is_displayed())
    for one in (ada, grace):
        one.sees({"Ada": "A", "Grace": "B"})
    grace.say("")
    for one in (ada, grace):
        one.reads(["a text to keep"])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_has_room_for_all(chat: Chat, person: Callable[[], Person], theme: str) -> None:
    """At the width of a phone nothing overflows, each control has a name, and the panels open and close."""
    ada = person()
    ada.page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    scheme = {"name": "prefers-color-scheme", "value": theme}
    ada.page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    ada.enter(chat.addresses["A"], "Ada with a name of the full length", f"Pocket {theme}")
    ada.say("x" * 300)
    ada.until(lambda: len(ada.messages()) == 1)
    assert ada.page.execute_script("return document.documentElement.scrollWidth") <= PHONE["width"]
    for side in ("rooms", "details"):
        ada.find(f"[data-open={side}]").click()
        ada.until_still()
        panel = ada.find(f"#{side}")
        assert panel.is_displayed()
        assert int(panel.get_property("scrollWidth")) <= int(panel.get_property("clientWidth"))
        assert _nameless(ada) == []
        ada.find(f"#{side} .close").click()
        ada.until_still()
        assert not ada.find(f"#{side}").is_displayed()


def _nameless(person: Person) -> list[dict[str, Any]]:
    nodes = person.page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = [node for node in nodes if node.get("role", {}).get("value") in ("button", "textbox", "dialog", "log")]
    assert controls
    return [node for node in controls if not node["name"]["value"]]
