"""Public benchmarks: pictures in the layouts that their official scorers read, and POPE."""
