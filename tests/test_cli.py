"""The command line: what a config becomes, where a run's files go, and what is said when something is wrong."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from diff_oracle.cli import compose, entry_point, find_conf_dir


@dataclass
class ToyTraining:
    learning_rate: float = 1e-3
    steps: int = 10

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"training.steps must be at least 1, got {self.steps}")


@dataclass
class ToyConfig:
    oracle: str = "???"
    tasks: dict[str, Any] = field(default_factory=dict)
    training: ToyTraining = field(default_factory=ToyTraining)
    run_dir: str | None = None
    data_dir: str = "data"


Command = Callable[..., list[ToyConfig]]


def succeed(config: ToyConfig) -> float:
    Path(str(config.run_dir), "eval.json").write_text("{}")
    return config.training.learning_rate


@pytest.fixture
def conf_dir(tmp_path: Path) -> Path:
    conf = tmp_path / "conf"
    for name, text in {
        "toy": "defaults:\n  - base\n  - training: quick\n  - _self_\noracle: some/run\n",
        "bare": "defaults:\n  - base\n",
        "training/quick": "steps: 20\n",
        "training/misspelt": "step: 20\n",
        "task/alpha": "# @package tasks.alpha\nk: 5\n",
        "task/beta": "# @package tasks.beta\nk: 7\n",
    }.items():
        file = conf / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    shutil.copy(find_conf_dir() / "base.yaml", conf)
    return conf


@pytest.fixture(autouse=True)
def root_logging() -> Iterator[None]:
    """Hydra replaces the root's handlers; pytest wants its own back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def command(conf_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `toy` with the given words in an empty folder and gives the configs that its function got."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(*words: str, run: Callable[[ToyConfig], float | None] = succeed, name: str = "toy") -> list[ToyConfig]:
        seen = []

        def spy(config: ToyConfig) -> float | None:
            seen.append(config)
            return run(config)

        monkeypatch.setattr(sys, "argv", ["toy", *words])
        entry_point(name, ToyConfig, spy, conf_dir=conf_dir)()
        return seen

    return call


def files() -> list[str]:
    return sorted(str(file) for file in Path(".").rglob("*") if file.is_file())


def error_line(command: Command, capsys: pytest.CaptureFixture[str], *words: str, **kwargs: Any) -> str:
    """The one line that a wrong command says, without its prefix."""
    with pytest.raises(SystemExit) as exit_info:
        command(*words, **kwargs)
    assert exit_info.value.code == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    return stderr.removeprefix("error: ").strip()


def test_function_gets_real_dataclasses(command: Command) -> None:
    (config,) = command("+task=[alpha,beta]", "training.learning_rate=1", "tasks.beta.k=9", "run_dir=here")
    assert config == ToyConfig(
        oracle="some/run",
        tasks={"alpha": {"k": 5}, "beta": {"k": 9}},
        training=ToyTraining(learning_rate=1.0, steps=20),  # 20 is the file's, not the dataclass's
        run_dir="here",
    )
    assert type(config.tasks) is dict and type(config.training.learning_rate) is float


def test_field_that_no_file_mentions_can_be_set(command: Command) -> None:
    (config,) = command("+task=alpha", "data_dir=elsewhere")
    assert config.data_dir == "elsewhere"


def test_run_folder_holds_results_log_and_config(command: Command) -> None:
    command("+task=alpha", "run_dir=here/there")
    assert {"here/there/eval.json", "here/there/toy.log", "here/there/.hydra/config.yaml"} <= set(files())
    assert all(file.startswith("here/there/") for file in files())


def test_default_run_folder(command: Command) -> None:
    (config,) = command("+task=alpha")
    assert Path(str(config.run_dir)).parent == Path("runs/toy")
    assert all(file.startswith(f"{config.run_dir}/") for file in files())


def test_sweep_numbers_its_folders(command: Command) -> None:
    configs = command("-m", "+task=alpha,[alpha,beta]", "training.steps=1,2", "run_dir=sweep")
    assert [config.run_dir for config in configs] == [f"sweep/{job}" for job in range(4)]
    assert [(list(config.tasks), config.training.steps) for config in configs] == [
        (["alpha"], 1),
        (["alpha"], 2),
        (["alpha", "beta"], 1),
        (["alpha", "beta"], 2),
    ]


def test_default_sweep_folder(command: Command) -> None:
    configs = command("-m", "+task=alpha", "training.steps=1,2")
    assert {Path(str(config.run_dir)).parents[1] for config in configs} == {Path("multirun/toy")}


def test_sweep_goes_on_past_a_failed_job(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: ToyConfig) -> float:
        if config.training.steps == 1:
            raise ValueError("loss is NaN")
        return succeed(config)

    with pytest.raises(SystemExit) as exit_info:
        command("-m", "+task=alpha", "training.steps=1,2", "run_dir=sweep", run=run)
    assert exit_info.value.code == 2
    assert "error: loss is NaN" in capsys.readouterr().err
    assert "sweep/1/eval.json" in files() and not Path("sweep/0").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "no task: add +task=NAME (choose from alpha, beta)"),
        (["+task=nope"], "unknown task 'nope': choose from alpha, beta"),
        (["+task=[alpha,nope]"], "unknown task 'nope': choose from alpha, beta"),
        (["-m", "+task=nope"], "unknown task 'nope': choose from alpha, beta"),
        (["+task=alpha", "training=nope"], "unknown training 'nope': choose from misspelt, quick"),
        (
            ["+task=alpha", "training.learning_rat=1"],
            "unknown key 'training.learning_rat': did you mean 'training.learning_rate'?",
        ),
        (
            ["+task=alpha", "+training.learning_rat=1"],
            "unknown key 'training.learning_rat': did you mean 'training.learning_rate'?",
        ),
        (["+task=alpha", "learning_rate=1"], "unknown key 'learning_rate': did you mean 'training.learning_rate'?"),
        (["+task=alpha", "trainin.steps=1"], "unknown key 'trainin': did you mean 'training'?"),
        (["+task=alpha", "training=misspelt"], "unknown key 'training.step': did you mean 'training.steps'?"),
        (["+task=alpha", "tasks.alpha.kk=1"], "unknown key 'tasks.alpha.kk': did you mean 'tasks.alpha.k'?"),
        (["+task=alpha", "+x=1"], "unknown key 'x': choose from oracle, tasks, training, run_dir, data_dir"),
        (
            ["+task=alpha", "training.steps=many"],
            "training.steps: Value 'many' of type 'str' could not be converted to Integer",
        ),
        (["+task=alpha", "training.steps=0"], "training.steps must be at least 1, got 0"),
    ],
)
def test_wrong_command_says_one_line_and_leaves_nothing(
    command: Command, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    assert error_line(command, capsys, *words) == line
    assert list(Path(".").iterdir()) == []


@pytest.mark.parametrize("words", [["task=alpha"], ["+task=alpha,beta"], ["+task=alpha", "training.steps=["]])
def test_hydras_own_complaints_are_one_line_too(
    command: Command, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert words[-1] in error_line(command, capsys, *words)


def test_missing_value_is_named(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_line(command, capsys, "+task=alpha", name="bare") == "no value for 'oracle': add oracle=VALUE"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("corpus is empty:\n  no document"), "corpus is empty: no document"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.json"), "No such file or directory: 'x.json'"),
        (
            OSError(errno.ENOSPC, "No space left on device", "data/shard"),
            "no space left on device: data/shard; free some, or choose another place with run_dir= and data_dir=",
        ),
    ],
)
def test_expected_error_of_the_function(
    command: Command, capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    def run(config: ToyConfig) -> float:
        raise error

    assert error_line(command, capsys, "+task=alpha", run=run) == line
    assert list(Path(".").iterdir()) == []


@pytest.mark.parametrize(("error", "code"), [(ValueError("loss is NaN"), 2), (RuntimeError("out of memory"), 1)])
def test_of_several_processes_one_that_fails_ends_the_sweep(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def run(config: ToyConfig) -> float:
        jobs.append(config.training.steps)
        raise error

    jobs: list[int] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as exit_info:
        command("-m", "+task=alpha", "training.steps=1,2", run=run)
    assert (exit_info.value.code, jobs) == (code, [1])


def test_results_of_a_failed_run_stay_with_the_traceback(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: ToyConfig) -> float:
        succeed(config)
        raise ValueError("loss is NaN")

    error_line(command, capsys, "+task=alpha", "run_dir=here", run=run)
    assert Path("here/eval.json").exists()
    assert "Traceback" in Path("here/toy.log").read_text()


@pytest.mark.parametrize("words", [["run_dir=mine"], ["run_dir='mine'"], ["++run_dir=mine"]])
def test_an_empty_folder_that_was_there_before_stays(
    command: Command, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    def run(config: ToyConfig) -> float:
        raise ValueError("loss is NaN")

    Path("mine").mkdir()
    error_line(command, capsys, "+task=alpha", *words, run=run)
    assert list(Path(".").rglob("*")) == [Path("mine")]


@pytest.mark.parametrize("words", [[], ["-m", "training.steps=1,2"]])
def test_interrupt_is_one_word_and_leaves_nothing(
    command: Command, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    def run(config: ToyConfig) -> float:
        jobs.append(config)
        raise KeyboardInterrupt

    jobs: list[ToyConfig] = []
    with pytest.raises(SystemExit) as exit_info:
        command(*words, "+task=alpha", run=run)
    assert exit_info.value.code == 130
    lines = [line for line in capsys.readouterr().err.splitlines() if "Launching" not in line and "\t#" not in line]
    assert lines == ["interrupted"]
    assert len(jobs) == 1  # a sweep ends too
    assert files() in ([], [f"{Path(str(jobs[0].run_dir)).parent}/multirun.yaml"])  # Hydra's record of the sweep


def test_interrupt_keeps_results(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: ToyConfig) -> float:
        succeed(config)
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        command("+task=alpha", "run_dir=here", run=run)
    assert capsys.readouterr().err == "interrupted\n"
    assert Path("here/eval.json").exists()
    assert "KeyboardInterrupt" in Path("here/toy.log").read_text()


def test_interrupt_has_a_traceback_for_those_who_ask(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: ToyConfig) -> float:
        raise KeyboardInterrupt

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(KeyboardInterrupt):
        command("+task=alpha", run=run)


@pytest.mark.parametrize("error", [TypeError, KeyError, AssertionError, RuntimeError])
def test_bug_keeps_its_traceback(command: Command, error: type[Exception]) -> None:
    def run(config: ToyConfig) -> float:
        raise error("bug")

    with pytest.raises(error):
        command("+task=alpha", run=run)


def test_full_error_brings_the_traceback_back(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: ToyConfig) -> float:
        raise ValueError("loss is NaN")

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="loss is NaN"):
        command("+task=alpha", run=run)
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_compose_gives_what_the_command_gets(command: Command, conf_dir: Path) -> None:
    words = ["+task=alpha", "training.steps=3", "run_dir=here"]
    assert command(*words) == [compose("toy", ToyConfig, words, conf_dir)]
    with pytest.raises(ValueError, match=r"^unknown key 'training\.step': did you mean 'training\.steps'\?$"):
        compose("toy", ToyConfig, ["+task=alpha", "training.step=3"], conf_dir)


def test_as_a_process(conf_dir: Path, tmp_path: Path) -> None:
    """Exit codes, streams and the log's form, as a shell sees them; the module is called __main__ then."""
    script = tmp_path / "toy.py"
    script.write_text(
        "import logging, pathlib\n"
        "from dataclasses import dataclass\n"
        "from diff_oracle.cli import entry_point\n"
        "@dataclass\n"
        "class Config:\n"
        "    oracle: str = ''\n"
        "    training: dict[str, int] | None = None\n"
        "    run_dir: str | None = None\n"
        "def run(config: Config) -> None:\n"
        "    logging.getLogger(__name__).info('working on %s', config.oracle)\n"
        "    logging.getLogger('httpx').info('noise')\n"
        "    print('table')\n"
        "    if config.oracle == 'gone':\n"
        "        raise ValueError('no oracle')\n"
        "main = entry_point('toy', Config, run, pathlib.Path(__file__).parent / 'conf')\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    env.pop("HYDRA_FULL_ERROR", None)

    def shell(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, str(script), *words], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    assert shell("oracle=a", "run_dir=here") == (0, "table\n", "working on a\n")
    assert shell("oracle=gone", "run_dir=there") == (2, "table\n", "working on gone\nerror: no oracle\n")
    assert shell("oracl=a") == (2, "", "error: unknown key 'oracl': did you mean 'oracle'?\n")
    assert not (tmp_path / "there").exists()
