"""What each role does once its process has a layer."""

from __future__ import annotations

from benchmarks.actors.base import WARM, Actor, Counter, Report, Stage
from benchmarks.actors.members import Idling, Joining
from benchmarks.actors.rally import Echoing, Pinging
from benchmarks.actors.readers import Reading
from benchmarks.actors.senders import Sending
from benchmarks.actors.web import Serving, Visiting
from benchmarks.scenarios import (
    Echo,
    Idler,
    Joiner,
    Pinger,
    QueueWorker,
    Receiver,
    Role,
    Sender,
    WebClients,
    WebServer,
)

__all__ = ["WARM", "Actor", "Counter", "Report", "Stage", "act"]


def act(role: Role, stage: Stage) -> Actor:
    """Return the actor for `role`; raise TypeError for a role that needs a process without an event loop."""
    match role:
        case Receiver() | QueueWorker():
            return Reading(stage, role)
        case Sender():
            return Sending(stage, role)
        case Pinger():
            return Pinging(stage, role)
        case Echo():
            return Echoing(stage)
        case Joiner():
            return Joining(stage, role)
        case Idler():
            return Idling(stage, role)
        case WebServer():
            return Serving(stage, role)
        case WebClients():
            return Visiting(stage, role)
    raise TypeError(f"{role} does not run in an event loop")
