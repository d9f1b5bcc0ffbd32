"""Connections to PostgreSQL, and what an error means for the statement that met it."""
