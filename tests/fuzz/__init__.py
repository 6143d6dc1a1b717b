"""A campaign of generated inputs against evalkit's commands; ``python -m tests.fuzz --help``."""
