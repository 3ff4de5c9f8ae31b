"""Turns a template into a page that takes no script and no style but its own, and writes it."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

ASSETS = Path(__file__).parent / "assets"


def render(
    template: str, context: Mapping[str, Any], plots: Iterable[Mapping[str, Any]], inside: bool
) -> str:
    """Fill a template of `assets`.

    `plots` (charts) bring the rules of their style along. `inside`: the page holds its pictures.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rules = {name: rule for plot in plots for name, rule in plot.get("rules", {}).items()}
    style = _asset("report.css") + "".join(f".{name} {{ {rules[name]} }}\n" for name in rules)
    script = _asset("report.js")
    return environment.get_template(template).render(
        **context, style=Markup(style), script=Markup(script), policy=_policy(style, script, inside)
    )


def _policy(style: str, script: str, inside: bool) -> str:
    """Return the content-security policy: this style, this script, pictures; nothing else."""
    # a page that is opened from a folder has no origin that every browser calls 'self'
    sources = "data:" if inside else "data: 'self' file:"
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            f"img-src {sources}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def write_page(target: Path, page: str) -> Path:
    """Write a page whole or not at all; an older one is replaced, a missing folder made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}-{os.getpid()}.tmp")
    try:
        # a lone surrogate of a broken JSON string must not lose the page
        draft.write_text(page, encoding="utf-8", errors="replace", newline="\n")
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return target
