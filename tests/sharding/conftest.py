"""Tests on eight CPU devices: `tests/test_sharding.py` runs them in a process of their own."""

import os

import pytest

from tests.sharding.cases import Cases

if "--xla_force_host_platform_device_count=8" not in os.environ.get("XLA_FLAGS", ""):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def cases(tmp_path_factory) -> Cases:
    return Cases(tmp_path_factory.mktemp("checkpoints"))
