"""Sites: the names of diffs. First in the dataflow; imports nothing of the project.

    L7       block 7: resid_post[7] - resid_pre[7]
    L3:8     the blocks 3 to 7: resid_pre[8] - resid_pre[3]
    L7.attn  what block 7's attention adds to the residual, after any post-norm; L7.mlp likewise
    L7H3     what head 3 of block 7 adds, without a share of the output bias

Layers and heads are counted from 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

SiteKind = Literal["layer", "span", "attn", "mlp", "head"]

SITE_GROUPS: dict[SiteKind, str] = {"layer": "layers", "span": "spans", "attn": "attn", "mlp": "mlp", "head": "heads"}
"""Kind of a site -> what reports call its group."""

SITE_SETS = ("layers", "components", "heads", "spans")
"""Names that `expand_sites` takes besides single sites."""

_SPAN_LENGTHS = (2, 3, 4)
# One way to write a number, so that a site has one name: no sign, no leading zero, ASCII digits.
_NUMBER = "(0|[1-9][0-9]*)"
_PATTERN = re.compile(rf"L{_NUMBER}(?::{_NUMBER}|\.(attn|mlp)|H{_NUMBER})?")


@dataclass(frozen=True)
class DiffSite:
    """Where a diff is taken. Hashable; `DiffSite.parse(str(site)) == site`.

    Attributes:
        kind: What writes: a whole block, a span of blocks, a block's attention, its MLP, or one head.
        layer: The block, or the first block of a span.
        end: The block after a span's last one; None for other kinds.
        head: The attention head; None for other kinds.
    """

    kind: SiteKind
    layer: int
    end: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        assert (self.end is not None) == (self.kind == "span"), self
        assert (self.head is not None) == (self.kind == "head"), self
        if self.end is not None and self.end <= self.layer:
            raise ValueError(
                f"site {str(self)!r} is empty: a span La:b holds the blocks a to b - 1, so b must exceed a"
            )

    @classmethod
    def parse(cls, name: str) -> DiffSite:
        """Reads a site's name.

        Raises:
            ValueError: The name is malformed, or a span of it is empty.
        """
        match = _PATTERN.fullmatch(name)
        if match is None:
            raise ValueError(f"malformed site {name!r}: expected a form like L7, L3:8, L7.attn, L7.mlp or L7H3")
        layer, end, part, head = match.groups()
        if end is not None:
            return cls("span", int(layer), end=int(end))
        if head is not None:
            return cls("head", int(layer), head=int(head))
        if part is not None:
            return cls("attn" if part == "attn" else "mlp", int(layer))
        return cls("layer", int(layer))

    def __str__(self) -> str:
        if self.kind == "span":
            return f"L{self.layer}:{self.end}"
        if self.kind == "head":
            return f"L{self.layer}H{self.head}"
        return f"L{self.layer}" if self.kind == "layer" else f"L{self.layer}.{self.kind}"

    @property
    def group(self) -> str:
        """What reports call the group of sites of this kind."""
        return SITE_GROUPS[self.kind]

    @property
    def last_layer(self) -> int:
        """The last block that writes into this diff."""
        return self.layer if self.end is None else self.end - 1

    def overlaps(self, other: DiffSite) -> bool:
        """Whether a part of what is written here is written there too."""
        if self.last_layer < other.layer or other.last_layer < self.layer:
            return False
        kinds = {self.kind, other.kind}
        if kinds & {"layer", "span"}:
            return True
        if kinds == {"head"}:
            return self.head == other.head
        return "mlp" not in kinds or kinds == {"mlp"}

    def check(self, n_layers: int, n_heads: int) -> None:
        """Makes sure that a model has this site.

        Raises:
            ValueError: It has fewer blocks or heads.
        """
        if self.last_layer >= n_layers or (self.head is not None and self.head >= n_heads):
            raise ValueError(
                f"site {str(self)!r} is out of range: the subject has layers 0…{n_layers - 1} and heads 0…{n_heads - 1}"
            )


def expand_sites(names: Sequence[str], n_layers: int, n_heads: int) -> list[DiffSite]:
    """The sites that the names stand for, in their order, without duplicates.

    Args:
        names: Single sites, or sets: `layers`, `components` (every attn and mlp), `heads`, `spans` (2, 3 or 4 blocks).
        n_layers: Blocks of the subject.
        n_heads: Attention heads of a block.

    Raises:
        ValueError: A name is neither a set nor a site that the subject has, or a set is empty for this subject.
    """
    sites: dict[DiffSite, None] = {}
    for name in names:
        found = _expand(name, n_layers, n_heads)
        if not found:
            raise ValueError(f"site set {name!r} is empty: the subject has {n_layers} layers; leave the set out")
        for site in found:
            site.check(n_layers, n_heads)
            sites[site] = None
    return list(sites)


def _expand(name: str, n_layers: int, n_heads: int) -> list[DiffSite]:
    layers = range(n_layers)
    if name == "layers":
        return [DiffSite("layer", layer) for layer in layers]
    if name == "components":
        return [site for layer in layers for site in (DiffSite("attn", layer), DiffSite("mlp", layer))]
    if name == "heads":
        return [DiffSite("head", layer, head=head) for layer in layers for head in range(n_heads)]
    if name == "spans":
        return [
            DiffSite("span", start, end=start + length)
            for length in _SPAN_LENGTHS
            for start in range(n_layers - length + 1)
        ]
    if not name.startswith("L"):
        raise ValueError(
            f"unknown site {name!r}: choose from {', '.join(SITE_SETS)}, or name one like L7, L3:8, L7.attn, L7H3"
        )
    return [DiffSite.parse(name)]
