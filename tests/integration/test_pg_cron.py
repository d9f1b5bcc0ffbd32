"""Messages of a job of pg_cron, as docs/sql.md says."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.conformance.backends import Conversation
from tests.support.cron import STAND_IN
from tests.support.databases import TestServer, database_name, query
from tests.support.layers import LayerFactory
from tests.support.markdown import blocks
from tests.support.roles import role
from tests.support.urls import with_parameters

PAGE = "sql.md"
TALK = Conversation(patience=10)


@pytest.fixture
def scheduler(server: TestServer, layer_url: str) -> Iterator[str]:
    """A role that may schedule jobs, by the grant that pg_cron's documentation names, and nothing else."""
    with role(server, layer_url, f"scheduler_of_{database_name(layer_url)}") as name:
        query(layer_url, STAND_IN)
        query(layer_url, f"GRANT USAGE ON SCHEMA cron TO {name}")
        yield name


async def test_the_documented_job_sends(make_own_layer: LayerFactory, layer_url: str, scheduler: str) -> None:
    """Its command does, run as the role that scheduled it, once that role has the documented grants, and not before.

    `cron` is a stand-in with the signature of pg_cron's own function, and the test runs the command. So this does not
    show that pg_cron takes the schedule, that it runs jobs in this database and as that role, or how it connects.
    """
    layer = make_own_layer()
    channel = await layer.new_channel()
    await layer.group_add("orders", channel)
    as_scheduler = with_parameters(layer_url, options=f"-c role={scheduler}")
    (job,) = blocks(PAGE, "From pg_cron", "sql")
    query(as_scheduler, job)
    ((schedule, command, username, database),) = query(
        layer_url, "SELECT schedule, command, username, database FROM cron.job"
    )
    assert (schedule, username, database) == ("*/5 * * * *", scheduler, database_name(layer_url))
    as_owner_of_job = with_parameters(layer_url, options=f"-c role={username}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="channels_pg_sa_group_send"):
        query(as_owner_of_job, command)
    (grants,) = blocks(PAGE, "Who may send", "sql")
    query(layer_url, grants.replace("reporter", scheduler))
    query(as_owner_of_job, command)
    assert await TALK.next(layer, channel) == {"type": "orders.refresh"}
    assert await TALK.is_empty(layer, channel)
