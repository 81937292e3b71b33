"""The model under study: sites, loading, diffs and the logit lens. The only place that imports transformer_lens."""
