"""Commands that are killed wherever they write: ``python -m tests.kills``."""
