"""Explanations made up by hand: two texts, one of them hostile, and sites of every kind."""

from __future__ import annotations

from typing import Any

from diff_oracle.explain.explanations import Answer, Claim, ExplainedText, Explanation, Explanations, Reconstruction
from diff_oracle.subject.sites import DiffSite

CONVENTIONS = {
    "relative_size": "‖diff‖ / ‖before‖",
    "direct_effect": "direct logit shift of the token that the model finds likeliest behind the position",
    "skip_kl": "KL(base ‖ skipped) in nats",
    "attended": "shares of the weight of the site's heads; position 0 is the sink and stands apart",
}
TOKENS = ["<s>", "The", " cat", " sat", " on", " the", " mat", "."]
HOSTILE = ["<s>", "</script>", "<script>", "alert(1)", "\n", " ", "", "😀", " שלום", "&amp;"]


def make_text(tokens: list[str]) -> ExplainedText:
    return ExplainedText("".join(tokens[1:]), tokens, list(range(len(tokens))))


def make_answers(right: list[str], wrong: list[str], site: str) -> list[Answer]:
    """Two lists, a choice, and for a site with heads what it attended to."""
    named = [*right, *wrong]
    lists = [
        Answer(
            "logit_lens", kind, question, "\n".join(mark + token for token in named),
            "\n".join(mark + token for token in [*right, *(f"{token}s" for token in wrong)]), None,
            len(right) / len(named), [Claim(mark + token, token in right) for token in named],
        )
        for kind, question, mark in (("promoted", "Raises?", ""), ("suppressed", "Lowers?", "-"))
    ]  # fmt: skip
    size = Answer(
        "layer_skip", "size", "If skipped, how much changes?", "small", "large", False, 0.0, [Claim("small", False)]
    )
    seen = Answer("attention", "attended", "Attends to?", " cat", " cat", None, 1.0, [Claim(" cat", True)])
    return [*lists, size] + ([] if site.endswith(".mlp") else [seen])


def make_rebuilt(carried: float) -> Reconstruction:
    """Made of words that carried so much, where no words give a fifth."""
    return Reconstruction(0.6, 0.2 + carried, 0.2, carried, [" the", "<i>"], [" dog"])


def make_explanation(text: int, position: int, site: str, **changes: Any) -> Explanation:
    """Numbers and tokens that differ from item to item; `changes` are fields."""
    kind, number = DiffSite.parse(site).kind, 1 + sum(map(ord, site)) % 7 + position
    right, wrong = [" the", f" right{number}"], [f" wrong{number}"]
    fields: dict[str, Any] = {
        "text": text,
        "position": position,
        "site": site,
        "kind": kind,
        "relative_size": number / 20,
        "direct_effect": (-1) ** number * number / 5,
        "next_token": " mat",
        "skip_kl": number / 100,
        "promoted": [(token, 2.0 - i / 2) for i, token in enumerate([*right, " mat"])],
        "suppressed": [(" dog", -1.5), (" ran", -0.5)],
        "gained": [(" ran", 0.25), (" dog", 0.125)],
        "lost": [(" mat", -0.25)],
        "attended": [] if kind == "mlp" else [(max(1, position - 1), 0.5), (position, 0.125)],
        "sink_share": None if kind == "mlp" else 0.25,
        "answers": make_answers(right, wrong, site),
        "explanation": f"adds: the\nreads: token {number}",
        "explanation_claims": [Claim("adds: the", True), Claim(f"reads: token {number}", False)],
    }
    return Explanation(**fields | changes)


def make_explanations(n_layers: int = 2, n_heads: int = 3) -> Explanations:
    """Every layer, half and head at three positions of the first text and, of the second, at all tokens one head."""
    halves = [site for layer in range(n_layers) for site in (f"L{layer}", f"L{layer}.attn", f"L{layer}.mlp")]
    sites = [*halves, *(f"L{layer}H{head}" for layer in range(n_layers) for head in range(n_heads))]
    items = [make_explanation(0, position, site) for position in (2, 5, 7) for site in sites]
    items += [make_explanation(1, position, "L0H1", promoted=[("<b>", 1.0)]) for position in range(1, len(HOSTILE))]
    return Explanations("made", "runs/made", CONVENTIONS, [make_text(TOKENS), make_text(HOSTILE)], items)
