"""The examples in the docstrings of the public names run as they stand there."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
from launch import ROOT, Tiny
from tiny import make_tiny_model

import l2v


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what the examples name: a model, a file of texts, and a finished run."""
    folder = tmp_path_factory.mktemp("examples")
    make_tiny_model(folder / "model")
    (folder / "texts.txt").write_text("A dog barks.\nA puppy yaps.\nStocks fell.\n")
    with pytest.MonkeyPatch.context() as patch:
        run = Tiny(folder, folder / "model", patch).train("run", "mntp", "stage.max_steps=2")
    run.rename(folder / "run")
    return folder


@pytest.mark.parametrize("name", l2v.__all__)
def test_the_example_of_a_public_name_runs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    public = getattr(l2v, name)
    example = doctest.DocTestParser().get_doctest(public.__doc__ or "", {}, name, None, None)
    assert example.examples, f"{name} has no example"
    said: list[str] = []
    doctest.DocTestRunner().run(example, out=said.append)
    assert not said, "".join(said)


def test_the_names_that_are_there_are_the_public_ones() -> None:
    assert set(l2v.__all__) <= set(dir(l2v))
    with pytest.raises(AttributeError, match="no attribute 'Decoder'"):
        _ = l2v.Decoder


@pytest.mark.slow
def test_the_page_of_the_public_names_shows_each_with_its_example(tmp_path: Path) -> None:
    pytest.importorskip("pdoc")
    subprocess.run([sys.executable, str(ROOT / "docs" / "api.py"), str(tmp_path)], check=True, timeout=120)
    page = (tmp_path / "l2v.html").read_text("utf-8")
    assert all(f'id="{name}"' in page for name in l2v.__all__)
    assert page.count("&gt;&gt;&gt;") > 10
