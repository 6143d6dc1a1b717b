"""A benchmark and a backend that are no part of evalkit: what a newcomer writes to add one."""
