"""A stand-in for pg_cron, which no wheel brings: it keeps jobs, and never runs them."""

from __future__ import annotations

# Names, types and defaults are those of pg_cron 1.6, and so is whose job it is: the current user's.
STAND_IN = """
CREATE SCHEMA cron;
CREATE TABLE cron.job (
    jobid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    schedule text NOT NULL,
    command text NOT NULL,
    database text NOT NULL DEFAULT current_database(),
    username text NOT NULL DEFAULT current_user,
    jobname text
);
GRANT SELECT, INSERT ON cron.job TO PUBLIC;
CREATE FUNCTION cron.schedule(job_name text, schedule text, command text) RETURNS bigint LANGUAGE sql AS $body$
    INSERT INTO cron.job (jobname, schedule, command) VALUES (job_name, schedule, command) RETURNING jobid
$body$;
"""
