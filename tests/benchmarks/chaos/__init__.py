"""Whole runs under faults, beside an undisturbed one."""
