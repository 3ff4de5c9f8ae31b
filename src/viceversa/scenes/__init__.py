"""The built-in world: coloured shapes on a grid, with captions, questions and an exact verifier."""
