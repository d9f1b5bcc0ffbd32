"""Run each conformance test over each backend; a difference of InMemoryChannelLayer is declared by the test itself."""

from __future__ import annotations

import pytest

from tests.support.layers import Layer, LayerFactory

from .backends import IN_MEMORY, OURS, Backend, Conversation, Maker


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `backend`, with InMemoryChannelLayer as the test's declaration says."""
    if "backend" not in metafunc.fixturenames:
        return
    definition = metafunc.definition
    parameters = [pytest.param(backend, id=backend.name, marks=backend.marks) for backend in OURS]
    if not definition.get_closest_marker("not_in_memory"):
        breaks = definition.get_closest_marker("in_memory_breaks")
        reason, broken = breaks.args if breaks else ("", False)
        fails = [pytest.mark.xfail(reason=reason, strict=True)] if broken else []
        parameters.insert(0, pytest.param(IN_MEMORY, id=IN_MEMORY.name, marks=[*IN_MEMORY.marks, *fails]))
    metafunc.parametrize("backend", parameters)


@pytest.fixture
def make(backend: Backend, request: pytest.FixtureRequest) -> Maker:
    """Build layers of the backend; one in memory needs no database."""
    factory: LayerFactory | None = None if backend.in_memory else request.getfixturevalue("make_layer")
    return Maker(backend, factory)


@pytest.fixture
def talk(backend: Backend) -> Conversation:
    """Receive with the backend's deadline."""
    return Conversation(backend.patience)


@pytest.fixture
def layer(make: Maker) -> Layer:
    """A layer of the backend with the default settings."""
    return make()
