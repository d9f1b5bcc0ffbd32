"""The tests of channels_pg_sa."""
