"""Stub for testing: delete this file as soon as the real 0001 is here."""

from __future__ import annotations

import re

from alembic import op
from sqlalchemy import DDL
from sqlalchemy.schema import CreateIndex, CreateTable, DropTable, SetColumnComment

from channels_pg_sa.schema import REVISION, installation, metadata, routines

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make it."""
    for table in metadata.sorted_tables:
        op.execute(CreateTable(table))
        for index in sorted(table.indexes, key=lambda i: i.name):
            op.execute(CreateIndex(index))
        for column in table.columns:
            if column.comment:
                op.execute(SetColumnComment(column))
    op.execute(DDL(routines().replace("%", "%%")))
    op.execute(installation.insert().values(revision=REVISION))


def downgrade() -> None:
    """Unmake it."""
    for table in metadata.sorted_tables:
        op.execute(DropTable(table))
    for name in dict.fromkeys(re.findall(r"FUNCTION @\.(\w+)", routines())):
        op.execute(f"DROP FUNCTION {name}")
