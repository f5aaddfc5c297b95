"""Where files lie, and their hashes."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dp.files.cache import ASSETS, Asset, cache_folder, digest, forget, locate, place, verify
from dp.weights.checkpoints import read

EMBEDDED = "digits_classifier.safetensors"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DP_CACHE", str(tmp_path))
    return tmp_path


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def notes(cache) -> dict:
    return json.loads((cache / "hashes.json").read_text())


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DP_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("DP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "dp"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "dp"


def test_embedded_files_come_first(cache):
    (cache / EMBEDDED).write_bytes(b"another")
    assert locate(Asset(EMBEDDED)) == ASSETS / EMBEDDED


def test_files_and_folders_in_the_cache(cache):
    (cache / "deep").mkdir()
    (cache / "deep" / "a.bin").write_bytes(b"a")
    assert locate(Asset("deep/a.bin")) == cache / "deep" / "a.bin"
    assert locate(Asset("deep")) == cache / "deep"


def test_a_missing_file_in_one_line(cache):
    with pytest.raises(FileNotFoundError) as caught:
        locate(Asset("a.bin", "https://example.org/a.bin", 141.5))
    line = str(caught.value)
    assert "\n" not in line
    for part in ("a.bin (141.5 MB)", "published at https://example.org/a.bin", "dp fetch", str(cache)):
        assert part in line


def test_no_command_for_what_cannot_be_fetched(cache):
    with pytest.raises(FileNotFoundError, match="published at nowhere, it must be trained; put it into") as caught:
        locate(Asset("a.bin", "nowhere, it must be trained"))
    assert "dp fetch" not in str(caught.value)


@pytest.mark.parametrize("file", ["../evil", "/etc/evil", "a/../../evil", ".", ""])
def test_no_place_outside_the_cache(cache, file):
    with pytest.raises(ValueError, match="leads out of that folder"):
        place(Asset(file))


def test_a_pinned_hash(cache):
    path = cache / "a.bin"
    path.write_bytes(b"right")
    assert verify(path, Asset("a.bin", sha256=sha(b"right").upper())) == sha(b"right")
    with pytest.raises(
        ValueError,
        match=rf"^need {path} with SHA-256 0{{12}}\.\.\., got {sha(b'right')[:12]}\.\.\.: it cannot be fetched, put "
        "the earlier one back, or set its sha256 if this one is right$",
    ):
        verify(path, Asset("a.bin", sha256="0" * 64))
    assert not (cache / "hashes.json").exists()


def test_first_use_is_noted_and_a_later_change_refused(cache):
    path, asset = cache / "a.bin", Asset("a.bin")
    path.write_bytes(b"first")
    assert verify(path, asset) == sha(b"first") == notes(cache)["a.bin"]
    assert verify(path, asset) == sha(b"first")
    path.write_bytes(b"later")
    with pytest.raises(ValueError, match=r"as noted in hashes\.json on first use, got ") as caught:
        verify(path, asset)
    assert str(caught.value).endswith(f"or take its line out of {cache / 'hashes.json'} if this one is right")
    assert notes(cache) == {"a.bin": sha(b"first")}


def test_the_pin_of_an_archive_is_not_that_of_what_it_holds(cache):
    path, asset = cache / "a.bin", Asset("a.bin", sha256="0" * 64, unpack=True)
    path.write_bytes(b"first")
    assert verify(path, asset) == notes(cache)["a.bin"]
    path.write_bytes(b"later")
    with pytest.raises(ValueError, match="as noted"):
        verify(path, asset)


FOLDER = "https://drive.google.com/drive/folders/1aB-c_9"


@pytest.mark.parametrize(
    ("url", "again"),
    [
        ("https://example.org/a", True),
        (["nowhere", "https://example.org/a"], True),
        ("nowhere", False),
        (None, False),
        (FOLDER, False),
    ],
)
@pytest.mark.parametrize("pinned", [True, False])
def test_only_what_can_be_fetched_again_is_to_be_deleted(cache, url, again, pinned):
    path, asset = cache / "a.bin", Asset("a.bin", url, sha256=sha(b"first") if pinned else None)
    path.write_bytes(b"first")
    verify(path, asset)
    path.write_bytes(b"later")
    with pytest.raises(ValueError, match="with SHA-256 ") as caught:
        verify(path, asset)
    assert ("delete" in str(caught.value)) == ("fetch it again" in str(caught.value)) == again


def test_a_wrong_embedded_file_is_not_to_be_deleted(monkeypatch, tmp_path):
    monkeypatch.setattr("dp.files.cache.ASSETS", tmp_path)
    (tmp_path / "a.bin").write_bytes(b"a")
    with pytest.raises(ValueError, match=r"it comes with the package, install that again or restore it with git$"):
        verify(tmp_path / "a.bin", Asset("a.bin", sha256="0" * 64))


def test_a_directory_is_called_one(cache):
    path = cache / "a.bin"
    path.mkdir()
    with pytest.raises(ValueError, match=rf"^need the file {path}, got a directory: move it away"):
        verify(path, Asset("a.bin", "https://example.org/a.bin", sha256="0" * 64))
    (path / "b").write_bytes(b"b")
    noted = Asset("a.bin")
    verify(path, noted)
    (path / "b").write_bytes(b"c")
    with pytest.raises(ValueError, match=r"got a directory with [0-9a-f]{12}\.\.\.: it cannot be fetched"):
        verify(path, noted)
    with pytest.raises(ValueError, match=rf"got the directory {path}: move it away"):
        read(path)


def test_a_folder_has_a_hash(cache):
    folder = cache / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_bytes(b"a")
    (folder / "b").write_bytes(b"b")
    first = verify(folder, Asset("data"))
    shutil.copytree(folder, cache / "copy")
    assert digest(cache / "copy") == first
    (folder / "b").rename(folder / "c")
    with pytest.raises(ValueError, match="as noted"):
        verify(folder, Asset("data"))


def test_embedded_files_and_those_elsewhere_are_not_noted(cache, tmp_path_factory):
    verify(ASSETS / EMBEDDED, Asset(EMBEDDED))
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "a.bin"
    elsewhere.write_bytes(b"a")
    verify(elsewhere, Asset(str(elsewhere)))
    assert list(cache.iterdir()) == []


def test_the_hash_of_a_file_that_was_written_anew_is_forgotten(cache, tmp_path_factory):
    for name in ("a.bin", "b.bin"):
        (cache / name).write_bytes(b"first")
        verify(cache / name, Asset(name))
    (cache / "a.bin").write_bytes(b"second")
    forget(cache / "a.bin")
    forget(tmp_path_factory.mktemp("elsewhere") / "b.bin")
    assert notes(cache) == {"b.bin": sha(b"first")}
    assert verify(cache / "a.bin", Asset("a.bin")) == sha(b"second")


@pytest.mark.parametrize("text", ["{torn", "[1]", '{"a.bin": null}', '{"a.bin": "abc"}'])
def test_damaged_notes(cache, text):
    (cache / "hashes.json").write_text(text)
    (cache / "a.bin").write_bytes(b"a")
    with pytest.raises(
        ValueError, match=r"need a JSON mapping to hashes in .*hashes\.json, got something else: delete it"
    ):
        verify(cache / "a.bin", Asset("a.bin"))


def test_several_processes_note_without_losing_anything(cache):
    names = [f"{i}.bin" for i in range(24)]
    for name in names:
        (cache / name).write_bytes(name.encode())
    code = (
        "import sys; from dp.files.cache import Asset, cache_folder, verify\n"
        "for name in sys.argv[1:]: verify(cache_folder() / name, Asset(name))"
    )
    several = [
        subprocess.Popen([sys.executable, "-c", code, *names[k % 3 :: 3], *names[::5]], cwd=ROOT) for k in range(4)
    ]
    assert [process.wait(60) for process in several] == [0] * 4
    assert notes(cache) == {name: sha(name.encode()) for name in names}
    assert sorted(p.name for p in cache.iterdir()) == sorted([*names, "hashes.json", "hashes.lock"])


@pytest.fixture
def read_only(cache):
    """The cache, holding a.bin, and impossible to write, for root too."""
    (cache / "a.bin").write_bytes(b"a")
    if os.geteuid():
        cache.chmod(0o555)
        yield cache
        cache.chmod(0o755)
        return
    if subprocess.run(["mount", "--bind", cache, cache], capture_output=True).returncode:
        pytest.skip("root, and no right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", cache], check=True, capture_output=True)
        yield cache
    finally:
        subprocess.run(["umount", cache], check=True)


def test_a_read_only_cache_is_used_without_noting(read_only):
    with pytest.raises(OSError, match=r"ead-only|denied"):
        (read_only / "b").write_bytes(b"")
    assert verify(read_only / "a.bin", Asset("a.bin")) == sha(b"a")
    assert not (read_only / "hashes.json").exists()
