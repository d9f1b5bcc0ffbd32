"""What the worker writes and the server reads."""

from __future__ import annotations

from django.db import models


class Report(models.Model):
    """How many primes there are below a limit."""

    limit = models.IntegerField(db_column="below")
    primes = models.IntegerField()

    class Meta:
        """The example makes its table with tables.sql."""

        app_label = "reports"
        db_table = "example_report"
