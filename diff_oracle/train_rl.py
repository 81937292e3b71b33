"""Trains a diff-NLA by reinforcement: explanations that rebuild their diffs better become likelier.

    python -m diff_oracle.train_rl nla=runs/nla run_dir=runs/rl
    python -m diff_oracle.train_rl -m +experiment=rl_arms nla=runs/nla run_dir=multirun/rl    # and the arms beside it
    python -m diff_oracle.report nla=multirun/rl                                              # which compares them
    accelerate launch --multi_gpu --num_processes 2 -m diff_oracle.train_rl nla=runs/nla    # GPUs, or CPUs

`nla` is a run of `diff_oracle.train_ar`. Into the run directory go the pair (`nla/`) in its best state on split
`select`, the ladder of split `test` before and after (`ladder_before.json`, `ladder.json`), `held_out_before.json` and
`held_out.json` (the same rows one by one), `health.json`, `health.png` and `run.json`. The folder is one that
`diff_oracle.evaluate nla=` reads. Killed, the same command goes on.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from diff_oracle.cli import entry_point
from diff_oracle.evaluation.bootstrap import Estimate
from diff_oracle.nla.arms import BEGAN, HELD_OUT_BEFORE, LADDER, LADDER_BEFORE
from diff_oracle.nla.evaluation import AR, Splits, evaluate_pair
from diff_oracle.nla.health import draw_health
from diff_oracle.nla.held_out import HELD_OUT, MORE_THAN, OF_OTHER, HeldOut, gains
from diff_oracle.nla.ladder import to_rows
from diff_oracle.nla.pair import AV, SIDECARS, DiffNLA
from diff_oracle.nla.report import print_ladder
from diff_oracle.nla.rl import ReinforcementLearning
from diff_oracle.nla.rows import Rows
from diff_oracle.nla.rungs import beyond, fit_before
from diff_oracle.nla.runs import FOLDERS, PAIR, PairRun, load_pair_run
from diff_oracle.nla.steps import RlConfig
from diff_oracle.oracle.model import Oracle
from diff_oracle.provenance import provenance
from diff_oracle.records import file_hash, open_dataset
from diff_oracle.subject.loading import load_hf_model, pick_device
from diff_oracle.subject.model import Subject
from diff_oracle.training.checkpoints import Checkpoints
from diff_oracle.training.precision import bf16_there
from diff_oracle.training.processes import count, join_processes, of_first, wait
from diff_oracle.training.sft import CHECKPOINTS

logger = logging.getLogger(__name__)


@dataclass
class TrainRlConfig:
    """Everything that a run depends on."""

    nla: str = "???"
    """A run directory of `diff_oracle.train_ar`, with a transformer that reads."""
    data_dir: str | None = None
    """Where the dataset's folder lies now, if it is not where training found it."""
    rl: RlConfig = field(default_factory=RlConfig)
    """How the pair is trained."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    run_dir: str | None = None
    """Where everything goes."""


def run(config: TrainRlConfig) -> float | None:
    """Measures, trains, measures, writes; returns the gain in FVE on split `select` over the pair as it began.

    Of several processes the first does all but the training by itself; the others return None.
    """
    assert config.run_dir is not None  # the command sets it
    device = pick_device(config.device)
    processes = join_processes(device)
    made_by = provenance(device)  # now: by the end, another commit may be checked out
    run_dir = Path(of_first(config.run_dir))  # each process's own clock may have named another one
    bf16 = bf16_there(config.rl.updates.bf16, device, "rl.updates.bf16")
    config = replace(config, rl=replace(config.rl, updates=replace(config.rl.updates, bf16=bf16)))
    if (run_dir / "run.json").is_file():
        raise ValueError(f"{run_dir} holds a finished run: choose another run_dir=, or delete it")
    source = load_pair_run(Path(config.nla), device)
    if AR not in source.readers:
        raise ValueError(f"nla={config.nla} has no transformer that reads: train one with diff_oracle.train_ar")
    bench = _Bench(config, source, device)
    started = time.monotonic()
    learning = bench.learning(run_dir)
    if processes.is_main_process:
        if not learning.begun:  # what another run may have left here
            for left in (HELD_OUT, HELD_OUT_BEFORE):
                (run_dir / left).unlink(missing_ok=True)
        before = bench.measure(run_dir, LADDER_BEFORE, HELD_OUT_BEFORE, made_by["commit"])
    wait()
    measured_at = time.monotonic()
    learning.fit()
    trained_at = time.monotonic()
    if not processes.is_main_process:
        return None
    bench.pair.save(run_dir / PAIR)
    for name, reader in source.readers.items():
        if name != AR:  # others than the one that learned with the writer: they are as they were
            reader.save(run_dir / FOLDERS[name])
    after = bench.measure(run_dir, LADDER, HELD_OUT, made_by["commit"])
    found = gains(after, before, source.ladder.resamples, source.seed)
    health = {"stopped": learning.stopped, "best_step": learning.best_step, "lines": learning.lines}
    about = made_by | {
        "processes": processes.num_processes,
        "seconds": {
            "train": trained_at - measured_at,
            "evaluate": measured_at - started + time.monotonic() - trained_at,
        },
        "oracle": str(bench.oracle_dir),
        "dataset": str(bench.dataset.path.resolve()),
        "rows": {name: len(rows) for name, rows in vars(bench.splits).items()},
        "named": asdict(source.named),
        # The settings of the pair's own run: with them `evaluate nla=` measures the same rows.
        "config": asdict(config) | {"ladder": asdict(source.ladder), "seed": source.seed},
    }
    draw_health(learning.lines, f"{config.rl.arm}: {run_dir.name}").savefig(run_dir / "health.png", dpi=120)
    _write(run_dir / "health.json", health | {"examples": learning.examples})
    _write(run_dir / "run.json", about)
    Checkpoints(run_dir / CHECKPOINTS).delete()
    print_ladder(json.loads((run_dir / LADDER).read_text()))
    _report(found, learning)
    return learning.gain


class _Bench:
    """A pair, the rows that it learns from and is measured on, and the model that was measured."""

    def __init__(self, config: TrainRlConfig, source: PairRun, device: str) -> None:
        self.config, self.source, self._device = config, source, device
        self.pair = DiffNLA(source.av, source.readers[AR], source.named)
        path = source.dataset if config.data_dir is None else Path(config.data_dir) / source.dataset.name
        identity = source.av.identity
        self.dataset = open_dataset(path, identity.weights_hash, identity.tokenizer_hash)
        self.splits = Splits.read(self.dataset, source.ladder, source.named, source.av, source.seed)
        self.subject = Subject(load_hf_model(source.av.base, device))
        about = json.loads((Path(config.nla) / "run.json").read_text())
        self.oracle_dir, self._measured_by = about["oracle"], about.get("commit")

    def learning(self, run_dir: Path) -> ReinforcementLearning:
        """The run, ready to begin or to go on."""
        train, select = self.splits.train, self.splits.select
        if self.pair.ar.config.target == "residual":
            before = fit_before(train, select)
            train, select = beyond(train, before), beyond(select, before)
        rl, base = self.config.rl, self.pair.av.identity.weights_hash
        select = Rows(*(values[: rl.selection_rows] for values in vars(select).values()))
        reference = Oracle.from_pretrained(Path(self.config.nla) / PAIR / AV, self._device)
        began = {name: file_hash(Path(self.config.nla) / PAIR / name) for name in SIDECARS}
        settings = {"rl": asdict(rl), "base": base, "nla": began, "rows": len(train), "processes": count()}
        return ReinforcementLearning(
            self.pair, reference, train, select, self.subject, self.source.ladder.truth, rl, run_dir, settings
        )

    def measure(self, run_dir: Path, ladder: str, held_out: str, commit: str | None) -> HeldOut:
        """The pair as it is, on split `test`; read from disk where a killed run, or `train_ar`, measured it.

        What `train_ar` measured in another state of the code, given its commit, is measured anew: a rung that was
        changed since would look like a gain.
        """
        began = Path(self.config.nla)
        if (run_dir / held_out).is_file():
            pass
        elif held_out == HELD_OUT_BEFORE and (began / HELD_OUT).is_file() and self._measured_by == commit:
            shutil.copy(began / LADDER, run_dir / ladder)
            shutil.copy(began / HELD_OUT, run_dir / held_out)
        else:
            source, splits = self.source, self.splits
            config = replace(source.ladder, shots=0)  # the base model, prompted, says what it said before
            found = evaluate_pair(self.pair.av, source.readers, source.named, splits, self.subject, config, source.seed)
            _write(run_dir / ladder, to_rows(found.lines))
            assert found.held_out is not None  # there is a transformer that reads
            found.held_out.save(run_dir / held_out)
        return HeldOut.load(run_dir / held_out)


def _write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def _report(found: dict[str, Estimate], learning: ReinforcementLearning) -> None:
    """What was gained, for people."""
    own = {metric: e for metric, e in found.items() if not metric.startswith((OF_OTHER, MORE_THAN))}
    shown = [f"{metric} {e.value:+.3f} [{e.ci_low:+.3f}, {e.ci_high:+.3f}]" for metric, e in own.items()]
    print(f"over {BEGAN}: {', '.join(shown)}")
    last = learning.lines[-1]["step"]
    print(f"best of {last} steps on select: {learning.best_step}")
    if learning.stopped is not None:
        print(f"stopped after step {last}: {learning.stopped}")


main = entry_point("train_rl", TrainRlConfig, run)

if __name__ == "__main__":
    main()
