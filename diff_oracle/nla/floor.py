"""The bag-of-words reader inside of a reconstructor: fitted in closed form, then fixed; the transformer adds to it.

    reconstruction = x' W_site + b_site + transformer        x: the claims as vectors (`nla.bag`)

A transformer alone must learn a map for each site from its name in the prompt, which takes long; beside this one only
what a bag of words cannot tell is left to it. Unlike the ladder's rungs `…: bag`, it is fitted to each explanation
twice, whole and with some claims left out: without any it is to tell the site's mean.
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
from diff_oracle.nla.linear import SiteRidge
from diff_oracle.nla.rows import Claims, Rows
from diff_oracle.randomness import keyed_rng


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
        cls,
        features: ClaimFeatures,
        train: Rows,
        select: Rows,
        claims: tuple[Sequence[Claims], Sequence[Claims]],
        seed: int = 0,
    ) -> Floor:
        """Ridge regression for each site, the penalties chosen on `select`; what is left out is keyed by the seed."""
        x = [np.vstack([features(of_split), features(_all_shortened(of_split, seed))]) for of_split in claims]
        ridge = SiteRidge(train.sites * 2, x[0], np.vstack([train.target] * 2))
        maps = ridge.select(select.sites * 2, x[1], np.vstack([select.target] * 2)).maps()
        of_sites = [(site, torch.from_numpy(w).float(), torch.from_numpy(b).float()) for site, w, b in maps]
        sites, weights, biases = zip(*of_sites, strict=True)
        return cls(features, sites, torch.stack(weights), torch.stack(biases))

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


def shortened(claims: Claims, rng: np.random.Generator) -> Claims:
    """Some of the claims, any number from none to all, in their order."""
    kept = np.sort(rng.permutation(len(claims))[: rng.integers(len(claims) + 1)])
    return [claims[i] for i in kept]


def _all_shortened(explanations: Sequence[Claims], seed: int) -> list[Claims]:
    return [shortened(claims, keyed_rng(seed, "floor", i)) for i, claims in enumerate(explanations)]
