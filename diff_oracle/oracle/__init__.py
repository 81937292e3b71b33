"""The model that reads diffs: prompts, injectors, the oracle itself."""
