"""Somebody at a page of the chat: does what a person does, and reads what a person sees."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import TypeVar

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

T = TypeVar("T")

PATIENCE = 20.0
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,800",
)


class Person:
    """A browser of one's own, with an empty profile.

    Args:
        browser: path of Chromium.
        driver: path of its chromedriver.
    """

    def __init__(self, browser: str, driver: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="chat-browser-", ignore_cleanup_errors=True)
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for option in (*OPTIONS, f"--user-data-dir={self._profile.name}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.page = webdriver.Chrome(options=options, service=Service(driver))

    def close(self) -> None:
        """Close the browser and remove its profile."""
        self.page.quit()
        self._profile.cleanup()

    def until(self, found: Callable[[], T]) -> T:
        """Return `found()` as soon as it is true."""
        return WebDriverWait(self.page, PATIENCE, 0.05).until(lambda _: found())

    def enter(self, address: str, name: str, room: str) -> None:
        """Open the page of a server at a room, and give a name."""
        self.page.get(f"{address}#{room}")
        self.until(lambda: self.text("#hello-server") != "a server")
        self.find("#name").send_keys(name, Keys.ENTER)
        self.until(lambda: self.text("#room-name") == room)

    def say(self, text: str) -> None:
        """Write a message and send it."""
        self.find("#text").send_keys(text, Keys.ENTER)

    def find(self, selector: str) -> WebElement:
        """Return the one element that a CSS selector names."""
        return self.page.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """Return the text that is seen in an element."""
        return self.find(selector).text

    def texts(self, selector: str) -> list[str]:
        """Return the texts of all elements that a selector names, read at one moment."""
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
        return list(self.page.execute_script(script, selector))

    def messages(self) -> list[str]:
        """Return what was said in the open room, in order, without what is still being sent."""
        return self.texts("ol:not([hidden]) .note[data-id] .text")

    def routes(self) -> list[str]:
        """Return the way each message came, such as "BA": from server B, shown by server A."""
        script = """return [...document.querySelectorAll("ol:not([hidden]) .note[data-id] .route")].map(
            (route) => [...route.querySelectorAll(".tag")].map((tag) => tag.textContent).join(""))"""
        return list(self.page.execute_script(script))

    def people(self) -> dict[str, str]:
        """Return who is shown in the open room, and at which server."""
        script = """return Object.fromEntries([...document.querySelectorAll("#people li")].map(
            (one) => [one.children[1].firstChild.textContent, one.querySelector(".tag").textContent]))"""
        return dict(self.page.execute_script(script))

    def sees(self, people: dict[str, str]) -> None:
        """Wait until exactly these people are shown in the open room, each with a server."""
        self.until(lambda: self.people() == people)

    def hears(self, text: str) -> None:
        """Wait until a message is shown."""
        self.until(lambda: text in self.messages())

    def reads(self, messages: list[str]) -> None:
        """Wait until exactly these messages are shown."""
        self.until(lambda: self.messages() == messages)

    def until_still(self) -> None:
        """Wait until nothing slides across the page."""
        self.until(lambda: self.page.execute_script("return document.getAnimations().length === 0"))

    def complaints(self) -> list[str]:
        """Return what the browser's console says against the page's own code, lost connections aside."""
        entries = self.page.get_log("browser")  # type: ignore[no-untyped-call]  # Selenium types most of itself
        return [
            entry["message"]
            for entry in entries
            if entry["source"] != "network" and "WebSocket" not in entry["message"]
        ]
