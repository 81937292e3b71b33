"""An installed wheel is whole: configuration and bundled model travel with it, and it runs from any directory."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def run(*words: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done = run("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = run("-m", "pip", "install", "--no-deps", "--no-index", "--target", folder, wheel, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_wheel_holds_what_the_repository_holds(wheel: Path) -> None:
    def tracked(folder: str, pattern: str) -> set[str]:
        return {str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / folder).rglob(pattern) if file.is_file()}

    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert any(name.startswith("diff_oracle/conf/task/") for name in packed)
    assert any(name.startswith("diff_oracle/assets/tiny/") and name.endswith(".safetensors") for name in packed)
    assert packed == (
        tracked("diff_oracle", "*.py")
        | tracked("diff_oracle", "*.j2")
        | {"diff_oracle/py.typed"}
        | tracked("diff_oracle/assets", "*")
        | tracked("data_gen", "*.py")
        | {f"diff_oracle/{name}" for name in tracked("conf", "*")}
    )


def test_installed_wheel_runs_from_another_directory(installed: Path, tmp_path: Path) -> None:
    """It finds its own configuration: the unknown task is refused with the list of the known ones."""
    here = run("-c", "import diff_oracle; print(diff_oracle.__file__)", cwd=tmp_path, PYTHONPATH=str(installed))
    assert here.stdout.strip() == str(installed / "diff_oracle" / "__init__.py")
    done = run("-m", "diff_oracle.train", "+task=nope", cwd=tmp_path, PYTHONPATH=str(installed), HYDRA_FULL_ERROR="0")
    tasks = sorted(file.stem for file in (REPOSITORY / "conf" / "task").glob("*.yaml"))
    assert done.stderr.splitlines()[-1] == f"error: unknown task 'nope': choose from {', '.join(tasks)}"
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []
