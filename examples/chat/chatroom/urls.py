"""The chat's only page, and the address that says that this process answers."""

from __future__ import annotations

import os

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import path

from chatroom.rules import NAME_LENGTH, ROOM_LENGTH, TEXT_LENGTH

# The page loads nothing from elsewhere, and runs no script but its own, whatever a message holds.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'"
)


def page(request: HttpRequest) -> HttpResponse:
    """Return the page."""
    limits = {"name_length": NAME_LENGTH, "room_length": ROOM_LENGTH, "text_length": TEXT_LENGTH}
    response = render(request, "chatroom/index.html", limits)
    response["Content-Security-Policy"] = POLICY
    return response


def health(request: HttpRequest) -> JsonResponse:
    """Say which server process answers."""
    return JsonResponse({"server": os.environ.get("CHAT_SERVER", ""), "pid": os.getpid()})


urlpatterns = [path("", page), path("health", health)]
