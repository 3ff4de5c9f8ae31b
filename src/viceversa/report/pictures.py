"""The pictures of a run folder as a page shows them: linked where they lie, or inside the page."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

#: Pixels. Larger pictures inside a page are shrunk: they are shown smaller still.
PICTURE_SIDE = 256
#: Pictures this small are shown enlarged, each pixel a square.
SMALL_SIDE = PICTURE_SIDE // 3


@dataclass(frozen=True)
class Pictures:
    """Finds the pictures of `run_dir` for a page in `page_dir`; none outside the folder is shown.

    Linked ones load when they are scrolled to, so that a page of thousands opens at once. `inside`
    puts them into the page as data URIs: one file that can be sent alone.
    """

    run_dir: Path
    page_dir: Path
    inside: bool = False

    def picture(self, name: Any) -> dict[str, Any]:
        """Return `src`, `size` and `small` of a picture, or a `note` why there is none."""
        if not isinstance(name, str) or not name:
            return {"note": "no picture recorded"}
        try:
            path = (self.run_dir / name).resolve()
            if not path.is_relative_to(self.run_dir.resolve()):
                return {"note": f"{name} is outside the run folder: skipped"}
            if not path.is_file():
                return {"note": f"{name} is not there"}
            with Image.open(path) as opened:
                small = max(opened.size) <= SMALL_SIDE
                src = _data_uri(opened, small) if self.inside else self._link(path)
                return {"src": src, "size": opened.size, "small": small}
        except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError):
            return {"note": f"{name} cannot be read as a picture"}

    def shown(self, text: Any, image: Any) -> dict[str, Any]:
        """Return an input or output as text or picture; a caption of no words is still a text."""
        return {"text": text} if isinstance(text, str) else self.picture(image)

    def digest(self, name: Any) -> str:
        """Return what a picture has in common with its copies; empty where `picture` shows none."""
        linked = replace(self, inside=False)  # to find it there is no need to put it into a page
        if "src" not in linked.picture(name):
            return ""
        return hashlib.sha256((self.run_dir / name).read_bytes()).hexdigest()

    def _link(self, path: Path) -> str:
        """Return the path from the page, quoted: a colon would make a scheme of what precedes."""
        return quote(Path(os.path.relpath(path, self.page_dir.resolve())).as_posix())


def _data_uri(opened: Image.Image, small: bool) -> str:
    image = opened.convert("RGB")
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    if small:  # printers smooth what is enlarged, whatever the page's style says
        factor = PICTURE_SIDE // max(image.size)
        size = (image.width * factor, image.height * factor)
        image = image.resize(size, Image.Resampling.NEAREST)
    kind, options = ("png", {}) if small else ("webp", {"quality": 90, "method": 2})
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
