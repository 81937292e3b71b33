"""Explanations that can be checked: what a site did at a position of a text, as the oracle says it and as measured."""
