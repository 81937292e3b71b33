"""Keeps results and the README's tables in step.

    python scripts/results.py save runs/demo tiny_logit_lens   # run directory -> results/tiny_logit_lens.json
    python scripts/results.py readme                           # results/*.json -> the README's tables

A table stands in the README between `<!-- results/NAME.json -->` and `<!-- end -->`; no number is written by hand.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from diff_oracle.evaluation.report import markdown_table

ROOT = Path(__file__).parents[1]


def save(run_dir: Path, name: str) -> None:
    """Writes one JSON with the run's provenance and its scores, and the learning curve beside it.

    Absolute paths are cut to their last part: where things lay is nobody's business.

    Raises:
        ValueError: The run was not made by committed code.
    """
    text = (run_dir / "run.json").read_text()
    about = json.loads(re.sub(r'(?<=[\s"=])/[^\s",]+', lambda path: Path(path[0]).name, text))
    if about["commit"] is None or about["commit"].endswith("+dirty"):
        raise ValueError(
            f"{run_dir} was not made by committed code (commit {about['commit']}): commit and run it again"
        )
    content = about | {"eval": json.loads((run_dir / "eval.json").read_text())}
    (ROOT / "results").mkdir(exist_ok=True)
    (ROOT / "results" / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    shutil.copy(run_dir / "learning_curve.png", ROOT / "results" / f"{name}.png")


def update_readme(text: str) -> str:
    """The README with every table written anew."""

    def table(match: re.Match[str]) -> str:
        result = json.loads((ROOT / match[1]).read_text())
        return f"<!-- {match[1]} -->\n{_show(result)}\n<!-- end -->"

    return re.sub(r"<!-- (results/\S+\.json) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def _show(result: dict) -> str:
    return _show_run(result) if "eval" in result else _show_benchmark(result)


def _show_benchmark(result: dict) -> str:
    """What stands at the top of a benchmark's JSON: its setting, ratios and sizes."""
    about = result["provenance"]
    where = f"commit {about['commit'][:9]} · {about['machine']['device']}, {about['machine']['cores']} cores"
    lines = [
        f"| {name} | {f'{value:.3g}' if isinstance(value, float) else value} |"
        for name, value in result.items()
        if not isinstance(value, dict)
    ]
    return "\n".join([f"`{about['command']}` · {where}", "", "| | |", "| --- | --- |", *lines])


def _show_run(result: dict) -> str:
    machine, seconds = result["machine"], result["seconds"]
    times = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    where = f"commit {result['commit'][:9]} · {machine['device']}, {machine['cores']} cores"
    about = f"`{result['command']}` · {where} · {times}"
    return f"{about}\n\n{markdown_table(result['eval'])}"


def main() -> None:
    match sys.argv[1:]:
        case ["save", run_dir, name]:
            save(Path(run_dir), name)
        case ["readme"]:
            readme = ROOT / "README.md"
            readme.write_text(update_readme(readme.read_text()))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
