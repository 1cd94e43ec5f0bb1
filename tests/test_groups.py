"""Tests that share what takes long to make go to one worker: pytest-xdist says so in their names, or does not do it."""

import os

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process")
@pytest.mark.xdist_group("groups")
def test_groups_are_understood(request):
    assert request.node.nodeid.endswith("@groups")
