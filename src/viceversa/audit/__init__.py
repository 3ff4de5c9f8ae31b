"""Before training: how well the self-reward separates right from wrong, and what to train."""
