"""The running chat, and people with browsers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.browser.person import Person
from tests.demo.chat import Chat, start
from tests.support.databases import TestServer

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="package")
def chat(server: TestServer, template: str) -> Iterator[Chat]:
    """The chat on two servers and a worker, which end tidily and with it all they started."""
    url = server.create(template)
    running = start(url)
    yield running
    assert running.stop() == 0
    server.drop(url)


@pytest.fixture
def person() -> Iterator[Callable[[], Person]]:
    """Make people, each with a browser; the test is skipped only where there is no Chromium to give them."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium with chromedriver is installed")
    with ExitStack() as browsers:

        def make() -> Person:
            made = Person(browser, driver)
            browsers.callback(made.close)
            return made

        yield make
