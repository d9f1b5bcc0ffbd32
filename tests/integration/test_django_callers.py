"""Sends from where Django projects send: admin actions, signals of models, views and both kinds of test case."""

# Django and Channels ship no types.
# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import pytest_asyncio
from asgiref.sync import async_to_sync
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.testing import WebsocketCommunicator
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.core.checks.registry import registry
from django.core.management import call_command
from django.db import connection, models, transaction
from django.db.models.signals import post_save
from django.http import HttpRequest, HttpResponse
from django.test import Client, TestCase, TransactionTestCase, override_settings
from django.urls import path

from channels_pg_sa.django import group_send, send
from tests.conformance.backends import text
from tests.support.databases import query
from tests.support.django_databases import entry
from tests.support.layers import LayerFactory, Message
from tests.support.waiting import PATIENCE

from .conftest import POSTGRES, close_built, run_case

Hear = Callable[[], list[Message]]
SESSIONS, AUTH, ADMIN = "django.contrib.sessions", "django.contrib.auth", "django.contrib.admin.apps.SimpleAdminConfig"
ADMIN_SETTINGS = {
    "INSTALLED_APPS": ["channels", "django.contrib.contenttypes", SESSIONS, AUTH, ADMIN],
    "MIDDLEWARE": [f"{SESSIONS}.middleware.SessionMiddleware", f"{AUTH}.middleware.AuthenticationMiddleware"],
}
ADMIN_CASES = [(True, "close", False), (False, "close_together", False), (False, "close", True)]


class Failure(Exception):
    """What ends a transaction."""


class Order(models.Model):
    """What the messages are about."""

    state = models.TextField()

    class Meta:
        """Where it is."""

        app_label = "callers"
        db_table = "orders"


class OrderAdmin(admin.ModelAdmin):
    """Closes orders."""

    actions = ["close", "close_together"]

    @admin.action(description="Close")
    def close(self, request: HttpRequest, orders: models.QuerySet[Order]) -> None:
        orders.update(state="closed")
        for order in orders:
            group_send("orders", text(order.pk))
        if "fail" in request.POST:
            raise Failure

    @admin.action(description="Close all or none")
    @transaction.atomic
    def close_together(self, request: HttpRequest, orders: models.QuerySet[Order]) -> None:
        self.close(request, orders)


class Listener(AsyncWebsocketConsumer):
    """Looks each order up as soon as it hears of it, and passes on its state."""

    groups = ["orders"]

    async def test_message(self, message: Message) -> None:
        def state() -> str:
            with closing(connection):
                return str(Order.objects.get(pk=message["number"]).state)

        await self.send(await asyncio.to_thread(state))


def tell(request: HttpRequest) -> HttpResponse:
    message = text(int(request.GET["number"]))
    send("jobs", message)
    group_send("orders", message)
    if "fail" in request.GET:
        raise Failure
    return HttpResponse("told")


@transaction.non_atomic_requests
def tell_at_once(request: HttpRequest) -> HttpResponse:
    return tell(request)


urlpatterns = [path("tell/", tell), path("tell-at-once/", tell_at_once)]


@pytest.fixture
def hear(make_own_layer: LayerFactory) -> Hear:
    """Receive all that came to the group `orders` and to the channel `jobs`, its member, since the last time."""
    layer = make_own_layer()
    async_to_sync(layer.group_add)("orders", "jobs")

    async def received() -> list[Message]:
        await layer.send("jobs", text(0))  # comes behind all that is there
        messages = []
        while (message := await asyncio.wait_for(layer.receive("jobs"), PATIENCE)) != text(0):
            messages.append(message)
        return messages

    return async_to_sync(received)


@pytest.fixture
def default(databases: Callable[..., None], layer_url: str) -> Iterator[None]:
    """The alias `default` is the test's own database, with a table of orders; the default layer uses it."""
    databases(default=entry(layer_url))
    with connection.schema_editor() as editor:
        editor.create_model(Order)
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": POSTGRES}}, ROOT_URLCONF=__name__):
        yield


@pytest.fixture
def client(default: None) -> Iterator[Client]:
    """The browser of a superuser, in a project with Django's admin."""
    site = admin.AdminSite()
    site.register(Order, OrderAdmin)
    # The apps register system checks, which would fail in a test without these apps.
    checks = patch.object(registry, "registered_checks", set(registry.registered_checks))
    with checks, override_settings(**ADMIN_SETTINGS), override_settings(ROOT_URLCONF=(path("admin/", site.urls),)):
        call_command("migrate", verbosity=0)
        client = Client(raise_request_exception=False)
        client.force_login(get_user_model().objects.create_superuser("administrator"))
        yield client


@pytest_asyncio.fixture
async def socket(default: None, hear: Hear) -> AsyncIterator[WebsocketCommunicator]:
    """A browser whose consumer listens, while orders tell when they are saved."""

    def tell_of_saved(instance: Order, **_: Any) -> None:
        group_send("orders", text(instance.pk))

    post_save.connect(tell_of_saved, sender=Order)
    browser = WebsocketCommunicator(Listener.as_asgi(), "/")
    await browser.connect(PATIENCE)
    yield browser
    post_save.disconnect(tell_of_saved, sender=Order)
    await close_built()


@pytest.mark.parametrize(("atomic", "action", "kept"), ADMIN_CASES)
def test_from_admin_action(client: Client, hear: Hear, layer_url: str, atomic: bool, action: str, kept: bool) -> None:
    """One that fails in its transaction changes nothing and tells nobody; without one, what was done is done."""
    connection.settings_dict["ATOMIC_REQUESTS"] = atomic
    good, bad = (Order.objects.create(state="new").pk for _ in range(2))
    post = partial(client.post, "/admin/callers/order/")
    assert post({"action": action, "_selected_action": good}).status_code == 302
    assert hear() == [text(good)]
    assert post({"action": action, "_selected_action": bad, "fail": "yes"}).exc_info[0] is Failure
    assert hear() == ([text(bad)] if kept else [])
    assert query(layer_url, "SELECT state FROM orders ORDER BY id") == [("closed",), ("closed" if kept else "new",)]


async def test_from_post_save(socket: WebsocketCommunicator, hear: Hear) -> None:
    """It tells at the commit, when a consumer that wakes finds the row; after a rollback never."""

    def save(state: str, *, fail: bool = False) -> list[Message]:
        with closing(connection), suppress(Failure), transaction.atomic():
            Order.objects.create(state=state)
            assert hear() == []
            if fail:
                raise Failure
        return hear()

    assert await asyncio.to_thread(save, "lost", fail=True) == []
    assert await asyncio.to_thread(save, "kept") == [text(2)]
    assert await socket.receive_from(PATIENCE) == "kept"
    await socket.disconnect(timeout=PATIENCE)


@pytest.mark.usefixtures("default")
def test_from_a_view(hear: Hear) -> None:
    """With ATOMIC_REQUESTS it tells if it returns, and nobody if it fails; unless it is exempt."""
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    client = Client(raise_request_exception=False)
    assert client.get("/tell/?number=1").content == b"told"
    assert hear() == [text(1), text(1)]
    assert client.get("/tell/?number=2&fail=yes").exc_info[0] is Failure
    assert hear() == []
    assert client.get("/tell-at-once/?number=3&fail=yes").exc_info[0] is Failure
    assert hear() == [text(3), text(3)]


@pytest.mark.usefixtures("default")
def test_in_a_transactiontestcase_commits_deliver(hear: Hear) -> None:
    """What it sends comes, in a transaction at the commit; what it rolls back does not."""

    class Case(TransactionTestCase):
        def test_sending(self) -> None:
            send("jobs", text(1))
            with suppress(Failure), transaction.atomic():
                group_send("orders", text(2))
                raise Failure
            with transaction.atomic():
                group_send("orders", text(3))
                assert hear() == [text(1)]
            assert hear() == [text(3)]

    run_case(Case)


@pytest.mark.usefixtures("default")
def test_in_a_testcase_on_commit_callbacks_deliver(make_own_layer: LayerFactory, hear: Hear) -> None:
    """The layer's own send happens if captureOnCommitCallbacks is to execute it."""
    layer = make_own_layer()

    class Case(TestCase):
        def test_sending(self) -> None:
            for number, execute in ((1, False), (2, True)):
                with self.captureOnCommitCallbacks(execute=execute), transaction.atomic():
                    transaction.on_commit(partial(layer.group_send_sync, "orders", text(number)))
                    assert hear() == []
                assert hear() == ([text(number)] if execute else [])

    run_case(Case)
