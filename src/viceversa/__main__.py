"""`python -m viceversa`, for launchers that start modules."""

from viceversa.cli import entry

entry()
