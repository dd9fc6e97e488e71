"""What all tests share: where real data lies, and a cache of their own."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Derived data goes to a folder of this test run, not to the user's cache."""
    os.environ["GEN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def gen_data() -> Path:
    """The folder of real data. Skips only where GEN_DATA is not set: a set that lacks a data set is a failure."""
    value = os.environ.get("GEN_DATA")
    if not value:
        pytest.skip("GEN_DATA is not set")
    return Path(value)
