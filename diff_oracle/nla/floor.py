"""The bag-of-words reader inside of a reconstructor: fitted in closed form, then fixed; the transformer adds to it.

    reconstruction = x' W_site + b_site + transformer        x: the claims as vectors (`nla.bag`)

A transformer alone must learn a map for each site from its name in the prompt, which takes long: on `tiny` it stays
below a bag of words. Beside one it learns what a bag of words cannot tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diff_oracle.nla.bag import ClaimFeatures
from diff_oracle.nla.linear import POOLED, SiteRidge
from diff_oracle.nla.rows import Claims, Rows


class Floor(nn.Module):
    """Reads claims by a linear map for each site; a site that it does not know by that of all sites together.

    Attributes:
        sites: In the order of the maps; the last is that of all sites.
    """

    weight: Float[Tensor, "site feature d_model"]
    bias: Float[Tensor, "site d_model"]

    def __init__(
        self,
        features: ClaimFeatures,
        sites: Sequence[str],
        weight: Float[Tensor, "site feature d_model"],
        bias: Float[Tensor, "site d_model"],
    ) -> None:
        super().__init__()
        self._features, self.sites = features, list(sites)
        self._index = {site: i for i, site in enumerate(self.sites)}
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    @classmethod
    def fit(
        cls, features: ClaimFeatures, train: Rows, select: Rows, claims: tuple[Sequence[Claims], Sequence[Claims]]
    ) -> Floor:
        """Ridge regression for each site; the penalties are chosen on `select`."""
        ridge = SiteRidge(train.sites, features(claims[0]), train.target)
        ridge.select(select.sites, features(claims[1]), select.target)
        maps = ridge.maps()
        sites = [site for site in maps if site != POOLED] + [POOLED]
        weight, bias = (torch.from_numpy(np.stack([maps[site][i] for site in sites])).float() for i in (0, 1))
        return cls(features, sites, weight, bias)

    def forward(self, sites: Sequence[str], claims: Sequence[Claims]) -> Float[Tensor, "row d_model"]:
        """The reconstructions, in the units of what it was fitted to."""
        x = torch.from_numpy(self._features(claims)).to(self.weight)
        known = torch.tensor([self._index.get(site, len(self.sites) - 1) for site in sites], device=x.device)
        result = self.bias[known]
        for site in known.unique().tolist():  # one product a site: a row's own copy of its map would be large
            rows = known == site
            result[rows] += x[rows] @ self.weight[site]
        return result

    def save(self, file: Path) -> None:
        """Writes a safetensors file; the features are made anew from the model."""
        tensors = {"weight": self.weight.cpu().contiguous(), "bias": self.bias.cpu().contiguous()}
        save_file(tensors, file, metadata={"sites": "\n".join(self.sites)})

    @classmethod
    def load(cls, file: Path, features: ClaimFeatures) -> Floor:
        """Reads what `save` wrote."""
        with safe_open(file, "pt") as opened:
            sites = opened.metadata()["sites"].split("\n")
        saved = load_file(file)
        return cls(features, sites, saved["weight"], saved["bias"])
