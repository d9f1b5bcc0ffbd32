"""What errors say, and the facts they carry."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from channels_pg_sa import errors


def test_every_error_can_be_caught_by_one_name() -> None:
    """ChannelLayerError is the base of them all."""
    found = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]
    assert len(found) > 8
    assert all(issubclass(cls, errors.ChannelLayerError) for cls in found)


def test_a_schema_error_says_what_to_run() -> None:
    """With the revision found, or none."""
    assert "has no channels_pg_sa tables" in str(errors.SchemaError(None, "0002"))
    error = errors.SchemaError("0001", "0002")
    assert "is at schema revision 0001" in str(error)
    assert "needs revision 0002" in str(error)
    assert "upgrade" in str(error)
    assert (error.found, error.needed) == ("0001", "0002")
    assert "update the package" in str(errors.SchemaError("0003", "0002"))


@pytest.mark.parametrize(
    ("found", "is_outdated"), [(None, True), ("0001", True), ("0002", False), ("0003", False), ("", False)]
)
def test_an_upgrade_mends_only_tables_that_are_missing_or_old(found: str | None, is_outdated: bool) -> None:
    """Not what is newer, damaged or without data."""
    assert errors.SchemaError(found, "0002").is_outdated == is_outdated


def test_a_schema_error_of_the_right_revision_says_what_is_missing() -> None:
    """To upgrade would do nothing."""
    error = errors.SchemaError("0002", "0002", database="shop", reason='function "channels_pg_sa_frame" is not there')
    said = 'The database "shop" is at schema revision 0002, but not all of it is as it should be: function "chan'
    assert said in str(error)


def test_a_schema_error_of_empty_tables_has_the_row_that_mends_them() -> None:
    """A copy without data has lost the secret."""
    error = errors.SchemaError("", "0002", schema="chat")
    assert 'has channels_pg_sa tables in the schema "chat", but in channels_pg_sa_installation no row' in str(error)
    assert "INSERT INTO channels_pg_sa_installation (revision) VALUES ('0002')" in str(error)


def test_a_schema_error_says_where_it_looked() -> None:
    """In tests, and with several databases, it may be another than one thinks."""
    error = errors.SchemaError(None, "0002", database="test_shop", schema="chat")
    assert 'The database "test_shop" has no channels_pg_sa tables in the schema "chat"' in str(error)
    assert (error.database, error.schema) == ("test_shop", "chat")


def test_a_message_too_large_has_its_size_and_the_limit() -> None:
    """As numbers, and readable."""
    error = errors.MessageTooLarge(20_000_000, 16_777_216)
    assert (error.size, error.limit) == (20_000_000, 16_777_216)
    assert "20,000,000 bytes; the limit is 16,777,216" in str(error)


@pytest.mark.parametrize(
    ("maybe", "reason", "text"),
    [
        (False, None, "Nothing was done, after 1.2 s: the database does not answer"),
        (True, "cut", "It may have been done, after 1.2 s: cut"),
    ],
)
def test_a_send_error_says_whether_it_may_have_been_sent(maybe: bool, reason: str | None, text: str) -> None:
    """And why, as far as anybody knows."""
    error = errors.SendError(maybe_sent=maybe, waited=1.23, reason=reason)
    assert str(error) == text
    assert (error.maybe_sent, error.waited, error.reason) == (maybe, 1.23, reason)


def test_a_pooler_error_says_which_setting_helps() -> None:
    """The address of the server itself."""
    assert '"listen_url"' in str(errors.PoolerError())


@pytest.mark.parametrize(
    "error",
    [
        errors.SchemaError("0001", "0002"),
        errors.MessageTooLarge(2, 1),
        errors.PoolerError(),
        errors.SendError(maybe_sent=True, waited=1.0, reason="cut"),
        errors.ChannelFull("jobs", 100),
        errors.DecodeError("no message"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_processes(error: Exception) -> None:
    """Celery pickles what a task raises, and concurrent.futures what a process pool's."""
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)
