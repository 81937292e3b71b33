"""Puts a trained oracle of the bundled model into the package, where `oracle=tiny` finds it.

    python -m diff_oracle.train +experiment=explainer run_dir=runs/explainer
    python -m diff_oracle.train_ar oracle=runs/explainer run_dir=runs/nla
    python -m diff_oracle.train_rl nla=runs/nla run_dir=runs/rl
    python -m scripts.bundle_oracle runs/rl         # or runs/nla: the pair's oracle is taken

The one that is there began with an explainer of 1,500 steps and had 40 steps of reinforcement learning (docs/nla.md).
It becomes a run directory: `oracle/`, and `run.json`, which says how it was made and what it scored on split `test`.
"""

import json
import shutil
import sys
from pathlib import Path

from diff_oracle.nla.arms import LADDER
from diff_oracle.nla.evaluation import AR
from diff_oracle.nla.runs import oracle_of
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.storage import CARD, TINY, TINY_RUN
from scripts.results import about_run

SHOWN = (("fve", f"AV: {AR}"), ("true_claims", "AV: bag"), ("coverage", "AV: bag"))


def bundle(run_dir: Path, folder: Path = TINY_RUN) -> None:
    """Copies the oracle of a pair's run.

    Raises:
        ValueError: The run was not made by committed code, or its oracle is of another model than the bundled one.
    """
    about = about_run(json.loads((run_dir / "run.json").read_text()), run_dir)
    oracle = Oracle.from_pretrained(oracle_of(run_dir))
    if oracle.base.source != "bundled":
        raise ValueError(f"{run_dir} is of {oracle.identity.name}: an oracle of the bundled model is wanted")
    scores = {
        f"{metric} {row['site_group']}": row["value"]
        for metric, rung in SHOWN
        for row in json.loads((run_dir / LADDER).read_text())
        if (row["metric"], row["rung"]) == (metric, rung) and row["site_group"] in ("all", "heads", "layers")
    }
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    oracle.save(folder / "oracle")
    card = folder / "oracle" / CARD
    card.write_text(card.read_text().replace(str(folder / "oracle"), TINY))
    (folder / "run.json").write_text(json.dumps(about | {"test": scores}, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    bundle(Path(sys.argv[1]))
