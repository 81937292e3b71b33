"""Measurement: from text to datasets of diffs with measured labels."""
