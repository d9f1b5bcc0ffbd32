"""The statements as the driver takes them: SQLAlchemy's text, compiled once for one schema."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.sql import Executable

from channels_pg_sa.schema import tables

from . import listings, memberships, messages, nodes, one_message
from .parts import routines_in


@dataclass(frozen=True, slots=True)
class Compiled:
    """A statement as the driver takes it.

    Args:
        sql: its text.
        literals: the values that the statement itself has for some parameters.
        parameters: the names of the others.
    """

    sql: str
    literals: Mapping[str, Any]
    parameters: tuple[str, ...]

    def given(self, **parameters: Any) -> Compiled:
        """Return the statement with these parameters."""
        return replace(self, literals={**self.literals, **parameters}, parameters=())


@functools.cache
def compiled(schema: str | None) -> Mapping[str, Compiled]:
    """Return the statements for a PostgreSQL schema by name, each compiled once."""
    return _Statements(schema)


class _Statements(dict[str, Compiled]):
    """Compiles each when it is first asked for: all together would hold up the event loop that opens a layer."""

    def __init__(self, schema: str | None) -> None:
        super().__init__()
        self._schema = schema
        self._builders = builders(schema)

    def __missing__(self, name: str) -> Compiled:
        build = self._builders.get(name)
        statement = listings.with_parameters(tables(self._schema))[name] if build is None else build()
        found = self[name] = _compile(statement, self._schema)
        return found


def builders(schema: str | None) -> dict[str, Callable[[], Executable]]:
    """Return by name what builds each statement but the listings."""
    routine = routines_in(schema)
    topic = routine("topic")
    return {
        **_named(messages.send, messages.send_within_capacity, messages.publish, messages.claim, messages.fetch),
        **_named(messages.forget, messages.waiting, messages.sweep_messages),
        "send_one": lambda: one_message.send_one(routine),
        "publish_one": lambda: one_message.publish_one(routine),
        **_named(memberships.join, memberships.leave, memberships.members, memberships.plain_members),
        **_named(memberships.restore, memberships.sweep_memberships),
        **_named(nodes.enter, nodes.known_node, nodes.register, nodes.beat, nodes.renew, nodes.unregister),
        **_named(nodes.adopt_orphans, nodes.bury_nodes, nodes.sweep_nodes, nodes.flush, nodes.notify),
        "put_back": lambda: messages.put_back(topic),
        "message_table": lambda: messages.message_table(schema),
        "dead_room": lambda: messages.dead_room(schema),
        "listen": lambda: nodes.listen(routine("listen")),
        "notify_nodes": lambda: nodes.notify_nodes(topic),
        "sweeping": lambda: nodes.sweep_lock(exclusive=True),
        "registering": lambda: nodes.sweep_lock(exclusive=False),
    }


def _named(*builders: Callable[[], Executable]) -> dict[str, Callable[[], Executable]]:
    return {builder.__name__: builder for builder in builders}


def _compile(statement: Executable, schema: str | None) -> Compiled:
    options = {"schema_translate_map": {None: schema}, "render_schema_translate": True} if schema else {}
    result = statement.compile(dialect=PGDialect_psycopg(), **options)  # type: ignore[attr-defined, no-untyped-call]
    literals = {name: bind.value for bind, name in result.bind_names.items() if not bind.required}
    return Compiled(str(result), literals, tuple(result.params.keys() - literals.keys()))
