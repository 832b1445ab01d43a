import subprocess

import pytest

from jaxlab.report import provenance


def git(folder, *words):
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "experiments").mkdir()
    path = tmp_path / "experiments" / "x.py"
    path.write_text("a = 1\n")
    (tmp_path / ".gitignore").write_text("/venv/\n")
    return path


def test_commit_and_local_changes(checkout):
    assert provenance.commit(checkout) is None  # nothing committed yet
    git(checkout.parent, "add", "-A", "..")
    git(checkout.parent, "commit", "-qm", "x")
    clean = provenance.commit(checkout)
    assert clean is not None and len(clean["commit"]) == 40 and clean["dirty"] is False
    (checkout.parent / "notes.txt").write_text("no code")
    assert provenance.commit(checkout) == clean
    checkout.write_text("a = 2\n")
    assert provenance.commit(checkout) == clean | {"dirty": True}


def test_an_ignored_environment_is_not_the_checkouts_code(checkout):
    git(checkout.parent, "add", "-A", "..")
    git(checkout.parent, "commit", "-qm", "x")
    inside = checkout.parents[1] / "venv" / "x.py"
    inside.parent.mkdir()
    inside.write_text("a = 1\n")
    assert provenance.commit(inside) is None


def test_outside_a_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit(tmp_path / "x.py") is None
