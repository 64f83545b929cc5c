"""Contracts without a database of failures: each test finds them anew, and leaves none behind."""

import pytest
from hypothesis import settings

settings.register_profile("no_database", database=None)


@pytest.fixture(autouse=True)
def no_database():
    before = settings.get_current_profile_name()
    settings.load_profile("no_database")
    yield
    settings.load_profile(before)
