"""Shared fixtures of the tests of attacks."""

import logging
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def quiet_and_repeatable() -> Iterator[None]:
    """Compute with one thread, and write no log."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)
