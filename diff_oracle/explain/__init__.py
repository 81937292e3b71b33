"""Explanations that can be checked: what a site did at a position of a text, as the oracle says it and as measured.

from diff_oracle.explain import explain
"""

from diff_oracle.explain.asking import Explainer, explain
from diff_oracle.explain.explanations import Answer, Claim, ExplainedText, Explanation, Explanations

__all__ = ["Answer", "Claim", "ExplainedText", "Explainer", "Explanation", "Explanations", "explain"]
