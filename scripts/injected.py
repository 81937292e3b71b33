"""What is left of a diff behind an oracle's injector: how alike x/‖x‖ and v_j are, as the unembedding sees them.

    python scripts/injected.py RUN > results/NAME.json

Both are multiplied by the final norm's gain, for that is what raises and lowers tokens, and lose the mean of their
site, which tells nothing of the step. Of the test rows the mean cosine of the two: 1 or −1 where nothing is lost
(`map=none`, or a map that has learned nothing), 0 where nothing is left. Sites of fewer than `MIN_ROWS` rows are left
out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from diff_oracle.oracle.injection import final_gains
from diff_oracle.oracle.model import Oracle
from diff_oracle.provenance import provenance
from diff_oracle.records import open_dataset

MIN_ROWS = 10


@torch.no_grad()
def cosines(oracle: Oracle, diffs: np.ndarray, sites: np.ndarray) -> list[float]:
    """For each slot, the mean cosine over rows."""
    gains = final_gains(oracle.lm.get_base_model())
    vectors = torch.from_numpy(diffs)[:, None]
    unit = vectors / vectors.norm(dim=-1, keepdim=True)
    shown = torch.cat([unit, oracle.injector.directions(vectors)], dim=1) * gains
    parts = []
    for site in np.unique(sites):
        of_site = shown[torch.from_numpy(sites == site)]
        if len(of_site) >= MIN_ROWS:
            parts.append(of_site - of_site.mean(0))
    before, *slots = torch.cat(parts).unbind(1)
    return [float(torch.cosine_similarity(before, slot, dim=-1).mean()) for slot in slots]


def main(run_dir: Path) -> None:
    run = json.loads((run_dir / "run.json").read_text())
    oracle = Oracle.from_pretrained(run_dir / "oracle")
    identity = oracle.identity
    records = open_dataset(Path(run["dataset"]), identity.weights_hash, identity.tokenizer_hash).split("test")
    rows = records.take(range(len(records)))
    found = cosines(oracle, np.stack([row.diff for row in rows]), np.array([row.site for row in rows]))
    gains = np.quantile(final_gains(oracle.lm.get_base_model()).abs().numpy(), [0.1, 0.9])
    result = {
        "model": run["config"]["model"]["name"],
        "basis of the maps": oracle.config.injection.basis,
        "steps of training": run["config"]["training"]["steps"],
        "rows": len(rows),
        "gain of the final norm, 90th percentile / 10th": float(gains[1] / gains[0]),
        **{f"slot {slot}: cosine of what went in and what came out": value for slot, value in enumerate(found)},
        "provenance": provenance("cpu"),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
