"""Where what is made once is kept, also for a user without a home."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bert_serving.server.model import cache
from bert_serving.server.model.cache import cache_folder


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user with a number and no name, as in a container; yields the one folder to be had."""

    def unknown(_: int) -> None:
        raise KeyError("no such user")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache._temporary_folder.cache_clear()
    yield tmp_path / f"bert-serving-cache-{os.getuid()}"
    cache._temporary_folder.cache_clear()


def is_private(folder: Path) -> bool:
    status = folder.lstat()
    return (status.st_mode, status.st_uid) == (stat.S_IFDIR | 0o700, os.getuid())


def test_a_user_has_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/bert-serving")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/bert-serving")


def test_a_user_without_a_home_has_a_private_folder_for_all_processes(homeless: Path) -> None:
    assert cache_folder() == homeless
    assert is_private(homeless)
    cache._temporary_folder.cache_clear()
    assert cache_folder() == homeless


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: folder.mkdir() or folder.chmod(0o777),
        lambda folder: folder.symlink_to(folder.parent),
        lambda folder: folder.write_text("a file"),
    ],
)
def test_what_somebody_else_may_have_made_is_not_used(
    homeless: Path, make: Callable[[Path], None]
) -> None:
    make(homeless)
    folder = cache_folder()
    assert folder != homeless
    assert is_private(folder)
    assert cache_folder() == folder
