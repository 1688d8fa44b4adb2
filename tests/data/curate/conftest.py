"""Fixtures for curation."""

import pytest


@pytest.fixture
def many_tasks(monkeypatch):
    """Cuts a small pool into many blocks and buckets."""
    monkeypatch.setattr("counterpoint.data.curate.runner.ROWS_A_BLOCK", 1)
    monkeypatch.setattr("counterpoint.data.curate.runner.BUCKET_BYTES", 1 << 13)
