import errno
import hashlib
import json
import os
import socket
import tempfile
from pathlib import Path

import huggingface_hub.constants
import pytest
from safetensors import SafetensorError

from l2v.errors import L2VError
from l2v.models.settings import EncoderSettings
from l2v.process import find_home
from l2v.runs.files import cache_folder, draft_folder, read_json, write_json, write_text
from l2v.runs.hashes import file_hash, folder_hash, source_hash
from l2v.runs.lineage import AdapterRecord, Lineage
from l2v.runs.locations import Source, commit_of, locate, model_file, package_file


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with a file in it, which must not be imported to find the file."""
    folder = tmp_path / "site" / "weights_of_test"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def test_a_hub_id_is_pinned_by_the_commit_that_it_is_now(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--own--model"
    (repository / "refs").mkdir(parents=True)
    found = []
    for commit in ("a" * 40, "b" * 40):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text("{}")
        (repository / "refs" / "main").write_text(commit)
        assert commit_of(Source("own/model", "own/model")) == commit
        found.append(EncoderSettings("own/model").fingerprint())
    assert found[0] != found[1]
    assert commit_of(Source(str(tmp_path), str(tmp_path))) is None


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_large_file_is_hashed_again_only_when_it_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr("l2v.runs.hashes._LARGE", 4)
    file, small = tmp_path / "large", tmp_path / "small"
    file.write_bytes(b"weights")
    small.write_bytes(b"abc")
    for one in (file, small):
        os.utime(one, (1e9, 1e9))  # what was just written may be written again
    first = file_hash(file)
    assert first == hashlib.sha256(b"weights").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr("l2v.runs.hashes._digest", lambda path: pytest.fail(f"read {path}"))
        assert file_hash(file) == first
        with pytest.raises(pytest.fail.Exception, match="small"):
            file_hash(small)
    times = file.stat()
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_hash(file) == hashlib.sha256(b"WEIGHTS").hexdigest()


def test_a_model_folder_is_located(model):
    source = locate(str(model))
    assert source == Source(str(model), str(model)) and source.is_local
    assert source.arguments() == {"local_files_only": True}


def test_a_relative_folder_becomes_absolute(model, monkeypatch):
    monkeypatch.chdir(model.parent)
    assert locate("./model") == Source("./model", str(model))


def test_the_home_folder_is_expanded(model, monkeypatch):
    monkeypatch.setenv("HOME", str(model.parent))
    assert locate("~/model").path == str(model)


def test_a_gguf_file_is_located_by_its_folder_and_name(package):
    source = locate(str(package / "model.gguf"))
    assert (source.path, source.gguf_file) == (str(package), "model.gguf")
    assert source.arguments() == {"local_files_only": True, "gguf_file": "model.gguf"}


def test_a_file_in_a_package_is_located_without_importing_it(package):
    source = locate("package:weights_of_test/model.gguf")
    assert source == Source("package:weights_of_test/model.gguf", str(package), "model.gguf")


@pytest.mark.parametrize("name", ["owner/model-7b_v1.5", "gpt2"])
def test_a_hub_id_is_taken_with_its_revision(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = locate(name, "abc123")
    assert source == Source(name, name, revision="abc123") and not source.is_local
    assert source.arguments() == {"revision": "abc123"}


def test_a_folder_comes_before_a_hub_id_of_the_same_name_and_has_no_revision(model, monkeypatch):
    monkeypatch.chdir(model.parent)
    assert locate("model", "abc123").arguments() == {"local_files_only": True}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{tmp}/missing", "no such file or folder"),
        ("./missing", "no such file or folder"),
        ("a/b/c", "no such file or folder"),
        ("two words", "no such file or folder"),
        ("{tmp}", "the folder has no config.json, so it holds no model"),
        ("{tmp}/notes.txt", "expected a model folder, a .gguf file or a hub id, found a file"),
        ("package:no_such_package_of_test/model.gguf", "the package 'no_such_package_of_test' is not installed"),
        ("package:", "the package '' is not installed"),
        ("package:../model.gguf", "the package '..' is not installed"),
        ("package:weights_of_test/other.gguf", "the package 'weights_of_test' has no file 'other.gguf'"),
        ("package:weights_of_test", "the package 'weights_of_test' has no file ''"),
    ],
)
def test_what_cannot_be_located_is_told_in_one_line(name, message, tmp_path, package):
    (tmp_path / "notes.txt").write_text("cat")
    with pytest.raises(L2VError, match=message) as error:
        locate(name.format(tmp=tmp_path))
    assert "\n" not in str(error.value) and name.format(tmp=tmp_path) in str(error.value)


def test_an_error_names_the_override_that_it_was_given(tmp_path):
    with pytest.raises(L2VError, match=f"^stage.base={tmp_path}/missing: "):
        locate(f"{tmp_path}/missing", override="stage.base")


def test_a_package_file_is_found(package):
    assert package_file("package:weights_of_test/model.gguf") == package / "model.gguf"


def test_files_beside_the_weights_are_found_in_a_folder(model):
    assert model_file(locate(str(model)), "config.json") == model / "config.json"
    assert model_file(locate(str(model)), "other.json") is None


def test_files_beside_a_gguf_belong_to_something_else(package):
    (package / "config.json").write_text("{}")
    assert model_file(locate(str(package / "model.gguf")), "config.json") is None


def test_files_of_a_hub_repository_come_from_its_revision(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    first, second, absent = ("a" * 40, "b" * 40, "c" * 40)
    for revision in (first, second):
        folder = tmp_path / "models--owner--model" / "snapshots" / revision
        folder.mkdir(parents=True)
        (folder / "l2v.json").write_text(revision)
    assert model_file(locate("owner/model", second), "l2v.json").read_text() == second
    assert model_file(locate("owner/model", second), "other.json") is None
    assert model_file(locate("owner/model", absent), "l2v.json") is None
    assert model_file(locate("no-such-owner/model"), "l2v.json") is None


def test_a_hub_repository_without_config_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(L2VError, match="model.source=no-such-owner/model: not found on the hub or the hub cannot be"):
        model_file(locate("no-such-owner/model"), "config.json")


def test_a_file_hash_is_the_sha256_of_its_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"cat")
    assert file_hash(tmp_path / "file") == hashlib.sha256(b"cat").hexdigest()


def test_a_folder_hash_changes_with_the_bytes_and_names_of_weights_only(model):
    before = folder_hash(model)
    (model / "README.md").write_text("a cat")
    assert folder_hash(model) == before
    (model / "model.safetensors").write_bytes(b"wEights")
    changed = folder_hash(model)
    (model / "model.safetensors").rename(model / "other.safetensors")
    renamed = folder_hash(model)
    (model / "more.bin").write_bytes(b"more")
    assert len({before, changed, renamed, folder_hash(model)}) == 4


def test_a_source_is_pinned_by_the_hash_of_what_it_loads(model, package):
    assert source_hash(locate(str(model))) == "sha256:" + folder_hash(model)
    gguf = package / "model.gguf"
    assert source_hash(locate(str(gguf))) == "sha256:" + file_hash(gguf)


def test_a_hub_source_is_pinned_by_its_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert source_hash(locate("owner/model"), "c0ffee") == "commit:c0ffee"
    assert source_hash(locate("owner/model", "v1")) == "commit:v1"


def test_a_lineage_is_read_as_it_was_written(tmp_path):
    lineage = Lineage(
        "owner/base",
        "commit:c0ffee",
        revision="main",
        merged=[AdapterRecord("mntp", "../a", "sha256:1"), AdapterRecord("simcse", "../b", "sha256:2")],
        adapter=AdapterRecord("supervised", "adapter", "sha256:3"),
        history=[{"stage": "word"}],
    )
    lineage.write(tmp_path / "lineage.json")
    assert Lineage.read(tmp_path / "lineage.json") == lineage


def test_a_lineage_without_adapters_is_read_as_it_was_written(tmp_path):
    Lineage("owner/base", "commit:c0ffee").write(tmp_path / "lineage.json")
    assert Lineage.read(tmp_path / "lineage.json") == Lineage("owner/base", "commit:c0ffee")


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("L2V_CACHE", str(tmp_path))
    assert cache_folder("tokens") == tmp_path / "tokens"
    monkeypatch.setenv("L2V_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("tokens") == tmp_path / ".cache" / "l2v" / "tokens"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("L2V_CACHE", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["no such user"])
    with pytest.raises(L2VError, match="this user has no home folder: set HOME, or L2V_CACHE, to a folder"):
        cache_folder("tokens")


@pytest.mark.parametrize("home", [None, "/proc"])
def test_programs_of_a_user_without_a_home_keep_things_in_a_folder_of_theirs(monkeypatch, tmp_path, home):
    if home is None:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", lambda _: {}["no such user"])
    else:
        monkeypatch.setenv("HOME", home)
        monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(home))
    monkeypatch.delenv("L2V_CACHE", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"l2v-{os.getuid()}"
    told = find_home()
    assert told is not None and f"goes to {folder}; set HOME" in told
    assert cache_folder("tokens").is_relative_to(folder) and folder.stat().st_mode & 0o777 == 0o700
    assert find_home() is None


def test_a_user_with_a_home_is_told_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_home() is None


def test_a_drafted_folder_appears_only_when_it_is_whole(tmp_path):
    with draft_folder(tmp_path / "deep" / "folder") as draft:
        (draft / "file").write_text("new")
        assert not (tmp_path / "deep" / "folder").exists()
    assert (tmp_path / "deep" / "folder" / "file").read_text() == "new"
    assert names(tmp_path / "deep") == ["folder"]


def test_a_drafted_folder_replaces_the_older_one_and_leaves_nothing_of_it(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    with draft_folder(tmp_path / "folder") as draft:
        (draft / "new").write_text("new")
        assert (tmp_path / "folder" / "old").exists()
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["new"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_draft_that_fails_leaves_the_older_folder_as_it_was(tmp_path, error):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    with pytest.raises(error), draft_folder(tmp_path / "folder") as draft:
        (draft / "new").write_text("half")
        raise error
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["old"]


def test_the_older_folder_comes_back_when_the_draft_cannot_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    rename = os.rename

    def refuse_the_draft(source, target):
        if ".tmp-" in str(source):
            raise OSError("no space left")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_the_draft)
    with pytest.raises(OSError, match="no space left"), draft_folder(tmp_path / "folder") as draft:
        (draft / "new").write_text("new")
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["old"]


def test_json_is_read_as_it_was_written(tmp_path):
    value = {"name": "Zürich 😀", "numbers": [1, 2.5, None], "nested": {"a": True}}
    write_json(tmp_path / "new" / "file.json", value)
    assert read_json(tmp_path / "new" / "file.json") == value
    assert "Zürich 😀" in (tmp_path / "new" / "file.json").read_text(encoding="utf-8")


def test_what_is_no_json_is_told_with_file_and_line(tmp_path):
    (tmp_path / "file.json").write_text('{\n"a": 1,\n"b": cat}')
    with pytest.raises(L2VError, match=r"file.json:3: not JSON"):
        read_json(tmp_path / "file.json")
    with pytest.raises(L2VError, match=r"other.json: no such file"):
        read_json(tmp_path / "other.json")


def test_a_failed_write_keeps_the_older_file(tmp_path):
    write_json(tmp_path / "file.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file.json", "\ud800")
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": 1}


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("at", ["write_text", "replace"])
def test_a_full_disk_keeps_the_older_file(tmp_path, monkeypatch, at):
    write_text(tmp_path / "file", "old")
    original = Path.write_text

    def half(path, *arguments, **settings):
        original(path, "half")
        raise FULL

    monkeypatch.setattr(Path, at, half)
    with pytest.raises(L2VError, match=f"^{tmp_path}/file: cannot be saved \\(No space left on device\\)") as error:
        write_text(tmp_path / "file", "new")
    assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "old" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [FULL, SafetensorError("Error while serializing: I/O error (os error 28)")])
def test_a_full_disk_keeps_the_older_folder(tmp_path, error):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    with (
        pytest.raises(L2VError, match=f"^{tmp_path}/folder: cannot be saved .*what was there before is kept"),
        draft_folder(tmp_path / "folder") as draft,
    ):
        (draft / "new").write_text("half")
        raise error
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["old"]


@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_tests_cannot_reach_the_network(method):
    with (
        socket.socket() as connection,
        pytest.raises(pytest.fail.Exception, match="tests must not use the network"),
    ):
        getattr(connection, method)(("192.0.2.1", 9))  # an address for documentation, which nobody has


def test_tests_can_talk_to_themselves():
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
