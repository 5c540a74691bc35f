"""Merging a run's adapters from its parts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from launch import Tiny, composed
from tiny import SENTENCES, make_tiny_decoder

from l2v import Encoder
from l2v.backbone import Backbone
from l2v.errors import L2VError
from l2v.export import Export, Merge, blend, export, main
from l2v.runs import Run, lineage_base
from l2v.sources import Lineage, folder_hash

WARM = ["stage.max_steps=3", "stage.learning_rate=0.05"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Run, Run]:
    """An MNTP run, and a SimCSE run on it."""
    with pytest.MonkeyPatch.context() as patch:
        tiny = Tiny(tmp_path_factory.mktemp("runs"), tiny_model, patch)
        first = tiny.train("mntp", "mntp", *WARM, "model.template='[ {text} ]'")
        second = tiny.train("simcse", "simcse", *WARM, f"init_from={first}", "model.template='[ {text} ]'")
    return Run(first), Run(second)


def vectors(source: str | Path, **settings) -> np.ndarray:
    return Encoder.from_pretrained(source, device="cpu", **settings).encode(SENTENCES)


def test_a_run_is_put_together_from_its_parts(runs: tuple[Run, Run], tmp_path: Path) -> None:
    _, run = runs
    export(run, tmp_path / "out")
    np.testing.assert_allclose(vectors(tmp_path / "out"), vectors(run.folder), atol=1e-5)
    assert Encoder.from_pretrained(tmp_path / "out", device="cpu").prompt.template == "[ {text} ]"


def test_merged_in_order_is_as_unmerged(runs: tuple[Run, Run], tiny_model: Path) -> None:
    _, run = runs
    [merged] = run.lineage().merged
    unmerged = Backbone.load(str(tiny_model), merge=[run.folder / merged.path])
    unmerged.load_adapter(run.adapter)
    encoder = Encoder.with_settings(unmerged, {"template": "[ {text} ]", "max_length": 32})
    difference = np.abs(encoder.encode(SENTENCES) - vectors(run.folder)).max()
    assert difference < 1e-5 < np.abs(vectors(run.folder) - vectors(tiny_model, template="[ {text} ]")).max()


def test_the_lineage_of_an_export_leads_to_the_run(runs: tuple[Run, Run], tmp_path: Path, tiny_model: Path) -> None:
    _, run = runs
    export(run, tmp_path / "deep" / "out", Export(merge=Merge(base_ratio=0.25)))
    lineage = Lineage.read(tmp_path / "deep" / "out" / "lineage.json")
    assert lineage.base_ratio == 0.25 and lineage.adapter is not None
    for record in (*lineage.merged, lineage.adapter):
        assert folder_hash(tmp_path / "deep" / "out" / record.path) == record.hash
    assert lineage_base(lineage, tmp_path / "deep" / "out").path == str(tiny_model)


def test_base_weights_are_mixed_back_in(runs: tuple[Run, Run], tmp_path: Path, tiny_model: Path) -> None:
    _, run = runs
    adapted = dict(export(run, tmp_path / "0").backbone.decoder.named_parameters())
    half = dict(export(run, tmp_path / "half", Export(merge=Merge(0.5))).backbone.decoder.named_parameters())
    base = dict(Backbone.load(str(tiny_model)).decoder.named_parameters())
    assert max((adapted[name] - base[name]).abs().max() for name in base) > 1e-3
    for name in base:
        torch.testing.assert_close(half[name], (adapted[name] + base[name]) / 2)
    np.testing.assert_allclose(
        export(run, tmp_path / "1", Export(merge=Merge(1.0))).encode(SENTENCES),
        vectors(tiny_model, template="[ {text} ]"),
        atol=1e-5,
    )


def test_a_fully_trained_run_is_mixed_with_its_original_model(tmp_path: Path, tiny_model: Path, monkeypatch) -> None:
    tiny = Tiny(tmp_path, tiny_model, monkeypatch)
    run = Run(tiny.train("full", "mntp", *WARM, "adapter=none"))
    base = dict(Backbone.load(str(tiny_model)).decoder.named_parameters())
    trained = dict(Backbone.load(str(run.encoder)).decoder.named_parameters())
    half = dict(export(run, tmp_path / "half", Export(merge=Merge(0.5))).backbone.decoder.named_parameters())
    for name in base:
        torch.testing.assert_close(half[name], (trained[name] + base[name]) / 2)


def test_weights_are_written_in_the_dtype_that_was_asked_for(runs: tuple[Run, Run], tmp_path: Path) -> None:
    export(runs[1], tmp_path / "16", Export(dtype="bfloat16"))
    assert Backbone.load(str(tmp_path / "16"), dtype="bfloat16").config.dtype == torch.bfloat16
    a, b = vectors(tmp_path / "16"), vectors(runs[1].folder)
    assert np.abs(a - b).max() > 0 and np.linalg.norm(a - b) / np.linalg.norm(b) < 0.03


def test_the_command_writes_into_the_run(runs: tuple[Run, Run]) -> None:
    main(composed("export", [f"run={runs[1].folder}", "merge.base_ratio=0.5"]))
    lineage = Lineage.read(runs[1].folder / "exported-base0.5" / "lineage.json")
    assert lineage.base_ratio == 0.5


def test_models_of_other_shapes_are_not_blended() -> None:
    with pytest.raises(L2VError, match="have not the same shapes"):
        blend(make_tiny_decoder(), make_tiny_decoder(hidden_size=64), 0.5)


MISTAKES = [
    (["merge.base_ratio=1.5"], "merge.base_ratio=1.5: .*less than or equal to 1"),
    (["+merge.ratio=0.5"], "merge.ratio: no such setting"),
    (["dtype=float8"], "dtype=float8: expected one of float32, bfloat16, float16"),
    (["run=nowhere"], "run=nowhere: no such folder"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=[mistake[0][0] for mistake in MISTAKES])
def test_a_mistake_is_told_before_anything_is_loaded(runs, overrides: list[str], message: str) -> None:
    with pytest.raises(L2VError, match=message):
        main(composed("export", [f"run={runs[1].folder}", *overrides]))


def test_a_folder_with_something_else_in_it_is_left_alone(runs: tuple[Run, Run], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(L2VError, match="the folder exists and holds no encoder; name another one"):
        main(composed("export", [f"run={runs[1].folder}", f"output={tmp_path}"]))


def test_an_unfinished_run_is_refused(runs: tuple[Run, Run], tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.update(**runs[1].record() | {"status": "stopped"})
    with pytest.raises(L2VError, match="the run is not finished; go on with it first"):
        export(run, tmp_path / "out")
