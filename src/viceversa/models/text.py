"""What a text has to be before it enters a template."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TextLimits:
    """Limits that a model's tokenizer and context set to a prompt; by default none."""

    special_tokens: tuple[str, ...] = ()
    token_count: Callable[[str], int] = len
    tokens: float = float("inf")
    """Most that fit beside a picture."""


def plain_text(text: str, special_tokens: Sequence[str]) -> str:
    """Break special tokens that are spelled out in `text` by a space after their first character.

    For whatever a user or a model wrote, before it enters a template. Other text is unchanged.
    """
    pattern = _any_of(tuple(special_tokens))
    # a second round where breaking one token completes another
    while pattern is not None and pattern.search(text):
        text = pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
    return text


@functools.lru_cache(maxsize=8)
def _any_of(tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    # without spaces around: one more space would not break those, and the loop would not end
    spelled = {t.strip() for t in tokens if len(t.strip()) > 1}
    longest_first = sorted(spelled, key=lambda t: (-len(t), t))
    return re.compile("|".join(map(re.escape, longest_first))) if spelled else None
