"""A config that reads pictures from a folder that is still to be filled."""

from __future__ import annotations

from pathlib import Path

import pytest

from viceversa.config import Config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config()
    config.data.images = str(tmp_path / "photos")
    config.data.cache_dir = str(tmp_path / "cache")
    return config


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return tmp_path / "photos"


@pytest.fixture
def quiet_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
