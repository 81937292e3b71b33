"""The front of every command: Hydra outside, dataclasses inside.

An entry point is a thin module with a dataclass, a plain function and two lines:

    main = entry_point("train", TrainConfig, run)

    if __name__ == "__main__":
        main()

Hydra composes `conf/train.yaml` with the command line, the result becomes a `TrainConfig`, and `run` is called with
`config.run_dir` set to the folder of this run. The dataclass is the schema: its fields are the known keys, its types
are checked, and what is wrong with a command is said in one line. HYDRA_FULL_ERROR=1 brings the traceback back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import os
import shutil
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

ConfigT = TypeVar("ConfigT")

# What a person can mend. Everything else is a bug of ours and keeps its traceback.
EXPECTED_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException)


def entry_point(
    name: str, schema: type[ConfigT], run: Callable[[ConfigT], float | None], conf_dir: Path | None = None
) -> Callable[[], None]:
    """Makes a command's `main()` out of the name of its configuration, its dataclass and its function.

    Args:
        name: The file in `conf/`, without `.yaml`; its defaults list begins with `base`.
        schema: The dataclass of the whole configuration, with a field `run_dir: str | None = None`. With a field
            `tasks: dict[str, Any]` the command wants at least one `+task=NAME`.
        run: Gets the dataclass. What it returns is the job's value in a sweep.
        conf_dir: Another folder of configuration files, for tests.

    Returns:
        A function that reads the command line. A ValueError, an OSError or a wrong configuration ends it with one line
        on stderr and exit code 2, in a sweep after the other jobs; Ctrl-C ends it at once, with exit code 130. A run
        folder without results is removed, unless it was there before. Where `accelerate launch` or `torchrun` started
        several processes, an error ends a sweep at once: the others may be waiting for the one that failed.
    """

    def main() -> None:
        folder = conf_dir or find_conf_dir()
        wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
        failed, launcher, in_company = False, os.getpid(), int(os.environ.get("WORLD_SIZE", "1")) > 1
        # Hydra makes the folder of a run before it calls anything of ours.
        there_before = {path for path in _named_run_dirs(sys.argv[1:]) if path.is_dir()}

        def report(error: Exception) -> None:
            nonlocal failed
            failed = True
            print(f"error: {explain(error, schema, folder)}", file=sys.stderr)

        def job(composed: DictConfig) -> float | None:
            run_dir = _job_dir()

            def tidy_up() -> None:
                keep = run_dir in there_before
                _tidy_up(run_dir, log=f"{name}.log", keep=keep, own_place=composed.run_dir is None)

            try:
                config = _to_dataclass(composed, schema, folder)
                cast(Any, config).run_dir = str(run_dir)
                return run(config)
            except EXPECTED_ERRORS as error:
                if wants_traceback:
                    raise
                tidy_up()
                if os.getpid() != launcher:  # a cluster's job: its stderr is a file, so the launcher says it
                    raise
                report(error)
                if in_company:
                    sys.exit(2)
                return None
            except Exception:
                if not in_company:
                    raise
                traceback.print_exc()
                sys.exit(1)  # Hydra would go on to the next job
            except KeyboardInterrupt:
                if not wants_traceback:
                    tidy_up()
                raise

        _register(schema)
        command = hydra.main(version_base="1.3", config_path=str(folder), config_name=name)(job)
        try:
            # Makes Hydra raise its errors instead of printing them over several lines.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            command()
        except EXPECTED_ERRORS as error:
            if wants_traceback:
                raise
            report(error)
        except KeyboardInterrupt:
            if wants_traceback:
                raise
            print("interrupted", file=sys.stderr)
            sys.exit(130)  # 128 + SIGINT, as shells say it
        finally:
            if not wants_traceback:
                del os.environ["HYDRA_FULL_ERROR"]
        if failed:
            sys.exit(2)

    return main


def compose(name: str, schema: type[ConfigT], overrides: Sequence[str] = (), conf_dir: Path | None = None) -> ConfigT:
    """The dataclass that the command `name` would run with, for tests and notebooks.

    Raises:
        ValueError: What the command would have said in one line.
    """
    folder = conf_dir or find_conf_dir()
    _register(schema)
    try:
        with hydra.initialize_config_dir(str(folder), version_base="1.3"):
            return _to_dataclass(hydra.compose(name, list(overrides)), schema, folder)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error, schema, folder)) from error


def find_conf_dir() -> Path:
    """The folder of configuration files: inside the package in a wheel, beside it in the repository."""
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def explain(error: Exception, schema: type, conf_dir: Path) -> str:
    """What is wrong and what to do about it, in one line."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__  # Hydra wraps OmegaConf's errors and loses the key
    if isinstance(error, HydraException | OmegaConfBaseException) and cause is not None:
        return _explain_value(cause, schema, conf_dir)
    if isinstance(error, MissingConfigException):
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        if options := _options(conf_dir, group):
            return f"unknown {group} {choice!r}: choose from {', '.join(options)}"
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}: {_first_line(error)}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        place = f": {error.filename}" if error.filename else ""  # a failed write does not say where
        return f"no space left on device{place}; free some, or choose another place with run_dir= and data_dir="
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename!r}"
    return " ".join(str(error).split()) or type(error).__name__


def _explain_value(error: OmegaConfBaseException, schema: type, conf_dir: Path) -> str:
    key = error.full_key or ""
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        known = [*_keys(schema), *_task_keys(conf_dir)]
        if key.rpartition(".")[0] in _keys(schema, only_dicts=True) and not key.startswith("tasks."):
            return f"unknown key {key!r}: a key of one's own is added with +{key}=VALUE"
        match = _nearest(key, known)
        siblings = [k for k in known if k.rpartition(".")[0] == key.rpartition(".")[0]]
        hint = f"did you mean {match!r}?" if match else f"choose from {', '.join(siblings or known)}"
        return f"unknown key {key!r}: {hint}"
    if isinstance(error, MissingMandatoryValue):
        return f"no value for {key!r}: add {key}=VALUE"
    return f"{key}: {_first_line(error)}" if key else _first_line(error)


def _nearest(key: str, known: Sequence[str]) -> str | None:
    """The known key most like `key`: beside it, or a namesake elsewhere (`rate` for `training.rate`)."""
    parent, _, leaf = key.rpartition(".")
    beside = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    anywhere = {k.rpartition(".")[2]: k for k in reversed(known)}
    for keys, cutoff in ((beside, 0.6), (anywhere, 0.75)):
        if close := difflib.get_close_matches(leaf, keys, n=1, cutoff=cutoff):
            return keys[close[0]]
    return None


def _keys(schema: type, prefix: str = "", only_dicts: bool = False) -> Iterator[str]:
    """Every key of a dataclass and of the dataclasses in it, dotted; or those that hold keys of the user's own."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if not only_dicts or typing.get_origin(hints[field.name]) is dict:
            yield prefix + field.name
        for part in typing.get_args(hints[field.name]) or (hints[field.name],):  # `Nested | None` has parts
            if dataclasses.is_dataclass(part):
                yield from _keys(cast(type, part), f"{prefix}{field.name}.", only_dicts)


def _options(conf_dir: Path, group: str) -> list[str]:
    """The choices of a config group: its files."""
    return sorted(file.stem for file in (conf_dir / group).glob("*.yaml")) if group else []


def _task_keys(conf_dir: Path) -> Iterator[str]:
    """The keys of the tasks' own settings. They are in no dataclass: a command takes any set of tasks."""
    for task in _options(conf_dir, "task"):
        settings = cast(DictConfig, OmegaConf.load(conf_dir / "task" / f"{task}.yaml"))
        yield from (f"tasks.{task}.{key!s}" for key in settings)


def _register(schema: type) -> None:
    """Puts in place what `conf/base.yaml` refers to: the command's schema and the resolver `or`."""
    ConfigStore.instance().store(name="schema", node=schema)
    OmegaConf.register_new_resolver("or", lambda value, default: default if value is None else value, replace=True)


def _to_dataclass(composed: DictConfig, schema: type[ConfigT], conf_dir: Path) -> ConfigT:
    # Hydra lets `+key=value` add a key that the schema does not have; a second merge does not.
    plain = OmegaConf.to_container(composed, resolve=True)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
    if getattr(config, "tasks", None) == {}:
        raise ValueError(f"no task: add +task=NAME (choose from {', '.join(_options(conf_dir, 'task'))})")
    return cast(ConfigT, config)


def _job_dir() -> Path:
    """The folder that Hydra made for this job, as the user wrote it."""
    settings = HydraConfig.get()
    if settings.mode == RunMode.MULTIRUN:
        return Path(settings.sweep.dir) / settings.sweep.subdir
    return Path(settings.run.dir)


def _named_run_dirs(words: Sequence[str]) -> list[Path]:
    """The run folder that a command line names, as one element; empty where it names none."""
    named = [word.partition("=")[2].strip("'\"") for word in words if word.lstrip("+").startswith("run_dir=")]
    return [Path(value) for value in named if value]


def _tidy_up(run_dir: Path, log: str, keep: bool, own_place: bool) -> None:
    """Removes a failed run without results; otherwise its log gets the traceback that the terminal does not show.

    Args:
        run_dir: The run's folder.
        log: The name of its log file.
        keep: Whether the folder itself stays, emptied of what Hydra wrote.
        own_place: Whether the folder was named by the clock, in a place that is removed too if nothing else is in it.
    """
    if not run_dir.is_dir():  # another process with the same run folder was first
        return
    if {file.name for file in run_dir.iterdir()} <= {".hydra", log}:
        shutil.rmtree(run_dir / ".hydra", ignore_errors=True)
        (run_dir / log).unlink(missing_ok=True)
        if not keep:
            run_dir.rmdir()
        if own_place:
            with contextlib.suppress(OSError):  # other runs are in it
                os.removedirs(run_dir.parent)
        return
    with contextlib.suppress(OSError), (run_dir / log).open("a") as file:  # the disk may be what failed
        traceback.print_exc(file=file)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
