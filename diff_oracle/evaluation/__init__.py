"""Scores, their controls, their confidence intervals, the table."""
