"""Where the commands print."""

from __future__ import annotations

from rich.console import Console

console = Console(markup=False)  # paths and prompts may look like it
