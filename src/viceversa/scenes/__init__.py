"""The built-in world: coloured shapes on a grid, with captions, questions and an exact verifier."""

from viceversa.scenes.language import (
    QUESTION_KINDS,
    Claims,
    Question,
    caption,
    parse_caption,
    questions,
)
from viceversa.scenes.render import SIZE, render, render_image
from viceversa.scenes.spec import (
    HELD_OUT_KINDS,
    KINDS,
    SPLITS,
    Object,
    Spec,
    draw_spec,
    draw_specs,
)
from viceversa.scenes.verify import (
    Scene,
    caption_matches,
    picture_matches,
    read_pictures,
    verify_pictures,
)

__all__ = [
    "HELD_OUT_KINDS",
    "KINDS",
    "QUESTION_KINDS",
    "SIZE",
    "SPLITS",
    "Claims",
    "Object",
    "Question",
    "Scene",
    "Spec",
    "caption",
    "caption_matches",
    "draw_spec",
    "draw_specs",
    "parse_caption",
    "picture_matches",
    "questions",
    "read_pictures",
    "render",
    "render_image",
    "verify_pictures",
]
