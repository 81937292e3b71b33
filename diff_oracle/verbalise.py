"""Which heads and layers can be put into words? What measured claims carry of each, without any training.

    python -m diff_oracle.verbalise '+task=[logit_lens,attention,explanation]'
    python -m diff_oracle.verbalise '+task=[logit_lens,attention,explanation]' model=smollm2_135m

Builds the dataset if it is missing: all heads and layers at every position. Into the run directory go `sites.json` (FVE
of each site's mean, against its controls), `sites.png` and `run.json`.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from data_gen.build import BuildConfig, build
from diff_oracle.cli import entry_point
from diff_oracle.nla.by_site import SiteLine, draw_sites, score_sites
from diff_oracle.provenance import provenance
from diff_oracle.records import open_dataset
from diff_oracle.subject.loading import load_hf_model, pick_device
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite
from diff_oracle.tasks import make_tasks
from diff_oracle.tasks.explanation import ExplanationConfig
from diff_oracle.tasks.text import Vocabulary


@dataclass
class VerbaliseConfig(BuildConfig):
    """The dataset's part, and how much is resampled."""

    resamples: int = 1000
    """Bootstrap resamples of the test documents."""


def run(config: VerbaliseConfig) -> None:
    """Builds, fits, writes, prints."""
    assert config.run_dir is not None  # the command sets it
    started, run_dir, device = time.monotonic(), Path(config.run_dir), pick_device(config.device)
    made_by = provenance(device)  # now: by the end, another commit may be checked out
    named = [t.config for t in make_tasks(config.tasks) if isinstance(t.config, ExplanationConfig)]
    dataset_dir = build(config)
    subject = Subject(load_hf_model(config.model, device))
    dataset = open_dataset(dataset_dir, subject.identity.weights_hash, subject.identity.tokenizer_hash)
    vocabulary = Vocabulary(subject.tokenizer, subject.identity.vocab_size)
    explained = named[0] if named else ExplanationConfig()
    lines = list(score_sites(dataset, explained, subject, vocabulary, config.resamples, config.seed))
    (run_dir / "sites.json").write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n")
    draw_sites(lines, subject.identity.name).savefig(run_dir / "sites.png", dpi=110)
    about = made_by | {"seconds": time.monotonic() - started, "config": asdict(config)}
    (run_dir / "run.json").write_text(json.dumps(about, indent=2) + "\n")
    _print(lines)


def _print(lines: list[SiteLine]) -> None:
    """Means over sites of a kind, and how many sites are above or below 0 with their whole interval."""
    kinds = sorted({DiffSite.parse(line.site).group for line in lines})
    table = Table("FVE of the site's mean", *kinds, "sites above 0, below 0")
    for rung in dict.fromkeys(line.rung for line in lines):
        of_rung = [line for line in lines if line.rung == rung]
        means = [np.mean([x.value for x in of_rung if DiffSite.parse(x.site).group == kind]) for kind in kinds]
        above, below = sum(line.ci_low > 0 for line in of_rung), sum(line.ci_high < 0 for line in of_rung)
        table.add_row(rung, *(f"{mean:.3f}" for mean in means), f"{above}, {below} of {len(of_rung)}")
    Console().print(table)


main = entry_point("verbalise", VerbaliseConfig, run)

if __name__ == "__main__":
    main()
