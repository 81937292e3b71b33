"""Hand-made ladders on disk, as `diff_oracle.train_ar` leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Lines = list[dict[str, Any]]
FVE = {
    "global mean": -0.2, "site mean": 0.0, "token mean": 0.1, "before": 0.2, "gold: bag": 0.5, "gold: AR": 0.6,
    "rotated_codebook: bag": 0.51, "AV: bag": 0.4, "AV: AR": 0.45, "AV: AR of another seed": 0.42,
    "gold: AR of another seed": 0.6, "AV, false claims removed: bag": 0.3, "AV, shuffled: bag": -0.4,
}  # fmt: skip
GAINS = {
    "AV: bag - before": 0.2, "gold: bag - rotated_codebook: bag": -0.01, "AV: bag, before - before": 0.15,
    "rotated_codebook: bag, before - before": 0.2, "AV: bag - AV, false claims removed: bag": 0.1,
}  # fmt: skip
SHARES = {
    "AV, false claims removed: bag / AV: bag": 0.75, "AV: bag / gold: bag": 0.8, "AV: AR / gold: AR": 0.75,
    "AV: bag / AV: AR": 0.89, "AV: AR of another seed / AV: AR": 0.93,
}  # fmt: skip
CLAIMS = {"AV: bag": (0.7, 0.4), "text: explained": (0.1, 0.05)}
KL = {
    "true diff": 1.0, "no diff": 0.0, "gold: bag": 0.8, "AV: bag": 0.6, "before": 0.7,
    "error of the same size, isotropic": 0.75, "same cosine, isotropic": 0.65,
}  # fmt: skip


def make_line(rung: str, metric: str, value: float, group: str = "all", width: float = 0.04) -> dict[str, Any]:
    """A line with the interval value ± width / 2."""
    return {
        "rung": rung, "site_group": group, "metric": metric, "value": value, "ci_low": value - width / 2,
        "ci_high": value + width / 2, "n": 60, "n_docs": 20,
    }  # fmt: skip


def make_lines(groups: Mapping[str, float] | None = None) -> Lines:
    """A ladder; in each group of sites every FVE and gain is so much higher."""
    lines = []
    for group, more in (groups or {"all": 0.0, "heads": 0.05, "layers": -0.19}).items():
        lines += [make_line("denominator", "fve", 0.8, group), make_line("denominator", "fve_global", 0.9, group)]
        lines += [make_line(rung, "fve", value + more, group) for rung, value in FVE.items()]
        lines += [make_line(rung, "kl_recovered", value, group) for rung, value in KL.items()]
        lines += [make_line(rung, "kl", 2 - 2 * value, group) for rung, value in KL.items()]
        for rung, (true, coverage) in CLAIMS.items():
            lines += [make_line(rung, "true_claims", true, group), make_line(rung, "coverage", coverage, group)]
        lines += [make_line(rung, "fve_gain", value + more, group) for rung, value in GAINS.items()]
        lines += [make_line(rung, "fve_share", value + more, group) for rung, value in SHARES.items()]
    return lines


EXAMPLE = {
    "site": "L3H2", "context": "<|endoftext|> the value\n  is", "cosine": 0.5, "other_lines": ["and so on"],
    "said": [
        {"claim": "raises: return", "true": True, "measured": True},
        {"claim": "raises: yield", "true": True, "measured": False},
        {"claim": "lowers: import", "true": False, "measured": False},
    ],
    "measured": [{"claim": "raises: return", "said": True}, {"claim": "reads: def", "said": False}],
}  # fmt: skip


def make_ladder(
    folder: Path,
    lines: Sequence[Mapping[str, Any]] | None = None,
    examples: Sequence[Mapping[str, Any]] = (EXAMPLE,),
    **config: Any,
) -> Path:
    """A run directory with a ladder."""
    folder.mkdir(parents=True)
    settings = {"ladder": {"truth": {"among": 50}}, "run_dir": str(folder), **config}
    about = {
        "command": f"python -m diff_oracle.train_ar run_dir={folder}", "commit": "0123456789abcdef",
        "machine": {"device": "cpu", "cores": 2}, "seconds": {"train": 61.4, "evaluate": 7.0},
        "dataset": "/somewhere/tiny-pydoc-0", "config": settings,
    }  # fmt: skip
    contents = {"run": about, "ladder": list(lines or make_lines()), "explanations": list(examples)}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
