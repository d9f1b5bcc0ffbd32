"""What a database holds, as PostgreSQL's catalog has it: to compare two, and to see that nothing is left."""

from __future__ import annotations

from tests.support.databases import query

# Every kind of object that a migration can leave behind, each with all that tells two of a name apart.
_OBJECTS = """
WITH space AS (
    SELECT oid FROM pg_namespace WHERE nspname = coalesce(nullif(%(schema)s, ''), 'public')
)
SELECT 'relation', concat_ws(' ', relname, relkind, relpersistence, c.reloptions, t.reloptions, obj_description(c.oid))
FROM pg_class c LEFT JOIN (SELECT oid AS toast, reloptions FROM pg_class) t ON toast = reltoastrelid
WHERE relnamespace IN (SELECT oid FROM space)
UNION ALL
SELECT 'column', concat_ws(' ', c.relname, attname, attnum, format_type(atttypid, atttypmod), attnotnull, attstorage,
       attidentity, collname, pg_get_expr(adbin, adrelid), col_description(c.oid, attnum))
FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
LEFT JOIN pg_collation l ON l.oid = attcollation
WHERE relnamespace IN (SELECT oid FROM space) AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
UNION ALL
SELECT 'constraint', concat_ws(' ', conname, conrelid::regclass, pg_get_constraintdef(oid))
FROM pg_constraint WHERE connamespace IN (SELECT oid FROM space)
UNION ALL
SELECT 'index', pg_get_indexdef(indexrelid)
FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE relnamespace IN (SELECT oid FROM space)
UNION ALL
SELECT 'routine', concat_ws(' ', pg_get_functiondef(oid), proacl, obj_description(oid))
FROM pg_proc WHERE pronamespace IN (SELECT oid FROM space) AND prokind IN ('f', 'p')
UNION ALL
SELECT 'trigger', concat_ws(' ', pg_get_triggerdef(g.oid), g.tgenabled)
FROM pg_trigger g JOIN pg_class c ON c.oid = tgrelid
WHERE relnamespace IN (SELECT oid FROM space) AND NOT tgisinternal
UNION ALL
SELECT 'type', typname FROM pg_type WHERE typnamespace IN (SELECT oid FROM space)
ORDER BY 1, 2
"""


def objects(url: str, schema: str | None = None) -> list[tuple[str, str]]:
    """Return kind and full definition of all that is in a PostgreSQL schema, by default public."""
    return [(kind, definition) for kind, definition in query(url, _OBJECTS, {"schema": schema or ""})]


def without_versions(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Leave out Alembic's own table."""
    return [(kind, definition) for kind, definition in found if "channels_pg_sa_version" not in definition]
