"""Oracles that say in words what one step inside a language model does."""

__version__ = "0.1.0"
