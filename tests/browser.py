"""A headless Chromium for tests, and the sizes and colour schemes it can stand for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

#: Width and height of a window, CSS pixels.
DESKTOP, PHONE = (1280, 900), (390, 844)
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs Chromium: apt-get install chromium chromium-driver",
)


@contextmanager
def chromium() -> Iterator[Chrome]:
    """Start a browser that keeps its console, and end it."""
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    if os.geteuid() == 0:  # its sandbox does not start as root
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def show(
    driver: Chrome, page: Path, size: tuple[int, int] = DESKTOP, scheme: str = "light"
) -> None:
    """Open a file in a window of this size, on a device of this colour scheme."""
    width, height = size
    device = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get_log("browser")  # forget an earlier page's
    driver.get(page.resolve().as_uri())


def complaints(driver: Chrome) -> list[Any]:
    """Return what the console was told since the page was opened."""
    return [entry["message"] for entry in driver.get_log("browser")]
