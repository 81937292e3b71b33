"""Where a result comes from: a commit is named only if it is this code's own."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from diff_oracle import records
from diff_oracle.provenance import provenance
from diff_oracle.records import git_commit


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit and the package in it; `records` believes to lie there."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):  # set where a git hook runs the tests
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "diff_oracle" / "records.py"
    file.parent.mkdir()
    file.write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "start")
    monkeypatch.setattr(records, "__file__", str(file))
    return tmp_path


def test_the_commit_and_whether_tracked_files_differ_from_it(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert git_commit() == commit
    (checkout / "untracked.txt").write_text("results")
    assert git_commit() == commit
    (checkout / "diff_oracle" / "records.py").write_text("changed = True")
    assert git_commit() == f"{commit}+dirty"
    git(checkout, "add", ".")
    assert git_commit() == f"{commit}+dirty"


def test_a_package_installed_inside_another_repository_has_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout / "venv" / "site-packages" / "diff_oracle" / "records.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    monkeypatch.setattr(records, "__file__", str(installed))
    assert git_commit() is None
    git(checkout, "add", ".")  # not even where somebody keeps it under version control
    git(checkout, "commit", "-m", "vendored")
    assert git_commit() is None


def test_no_git_and_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "diff_oracle").mkdir()
    monkeypatch.setattr(records, "__file__", str(tmp_path / "diff_oracle" / "records.py"))
    assert git_commit() is None
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None


def test_provenance_is_json_and_says_how_and_with_what() -> None:
    about = json.loads(json.dumps(provenance("cpu")))
    assert set(about) == {"command", "commit", "date", "versions", "machine"}
    assert {"diff_oracle", "python", "torch", "transformer-lens"} <= set(about["versions"])
    assert about["machine"]["device"] == "cpu"
