"""What the tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders import random_janus, save


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Janus in a folder."""
    folder = tmp_path_factory.mktemp("model")
    save(random_janus(), folder)
    return folder
