import pytest
from triton.runtime.interpreter import InterpreterBuilder

from moe_align import dispatch


@pytest.fixture
def plan_with(monkeypatch):
    """Change a constant of a module; what was planned before is not launched meanwhile, nor what is planned later."""

    def change(module, name, value):
        monkeypatch.setattr(module, name, value)
        dispatch._launcher.cache_clear()

    yield change
    dispatch._launcher.cache_clear()


@pytest.fixture
def stored_addresses(monkeypatch):
    """Every address that an interpreted kernel stores to, once a store; nothing is recorded on a GPU.

    Two programs that store the same value to one place are a race that no output shows.
    """
    addresses = []
    store = InterpreterBuilder.create_masked_store

    def recording(self, pointers, value, mask, *hints):
        addresses.extend(pointers.data[mask.data].tolist())
        return store(self, pointers, value, mask, *hints)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", recording)
    return addresses
