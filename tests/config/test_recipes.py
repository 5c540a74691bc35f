"""The recipes of papers: their stages in a row, on a tiny model."""

from pathlib import Path

import pytest
from launch import Tiny, composed, metrics
from tiny import SENTENCES, make_tiny_model

from l2v import Encoder, EncoderSettings
from l2v import config as configs
from l2v.embedding.embed import encode
from l2v.embedding.job import Encoding
from l2v.errors import L2VError
from l2v.export.export import Export, Merge, export
from l2v.runs.run import Run

FEW = ["stage.batch_size=4", "stage.max_steps=4", "stage.validation_rows=8", "stage.validate_every=5"]
SUPERVISED = ["stage.max_length=32", "stage.warmup_steps=0", "data.held_out=3"]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    return Tiny(tmp_path, make_tiny_model(tmp_path / "model", num_hidden_layers=4), monkeypatch)


def stages_of(recipe: str, **data: Path) -> dict[str, list[str]]:
    """The overrides of each stage."""
    config = composed("recipe", [f"recipe={recipe}", *(f"{key}={at}" for key, at in data.items())])
    stages: dict[str, list[str]] = configs.plain(config)["stages"]
    return stages


def train(tiny: Tiny, name: str, *overrides: str) -> Run:
    """A few steps."""
    model = ["trainer.precision=32-true", f"model.source={tiny.model}", "model.max_length=32"]
    tiny.main([f"runs_dir={tiny.folder / 'runs'}", f"name={name}", *model, *overrides, *FEW])
    return Run(tiny.folder / "runs" / name)


def rates(run: Run) -> list[float]:
    return [row["learning_rate"] for row in metrics(run.folder) if "learning_rate" in row]


def test_bidirlm_decays_late_and_goes_on_from_half_of_the_base(tiny: Tiny) -> None:
    stages = stages_of("bidirlm", triplets=tiny.folder / "triplets")
    assert list(stages) == ["mntp", "supervised"]
    texts = ["data=files", f"data.train.files={tiny.folder / 'train.txt'}"]
    texts += [f"data.validation.files={tiny.folder / 'held_out.txt'}", "stage.block_length=16"]
    mntp = train(tiny, "mntp", *stages["mntp"], *texts, "stage.warmup_steps=1")
    assert rates(mntp) == pytest.approx([1e-3] * 3 + [0])
    export(mntp, tiny.folder / "half", Export(merge=Merge(base_ratio=0.5)))
    for start in (mntp.folder, tiny.folder / "half"):
        run = train(tiny, f"from-{start.name}", *stages["supervised"], *SUPERVISED, f"init_from={start}")
        assert Encoder.from_pretrained(run.folder).encode(SENTENCES).shape == (len(SENTENCES), 32)


def test_runs_of_qwen3_embedding_are_merged_along_the_arc(tiny: Tiny) -> None:
    (overrides,) = stages_of("qwen3-embedding", triplets=tiny.folder / "triplets").values()
    first, second = (train(tiny, f"seed-{seed}", *overrides, *SUPERVISED, f"seed={seed}") for seed in (0, 1))
    merged = export(first, tiny.folder / "merged", Export(merge=Merge(runs=[str(second.folder)], method="slerp")))
    vectors = [Encoder.from_pretrained(run.folder).encode(SENTENCES) for run in (first, second)]
    for of_one in vectors:
        assert abs(merged.encode(SENTENCES) - of_one).max() > 1e-4


def test_jina_v5_distils_and_then_trains_an_adapter_of_its_own(tiny: Tiny) -> None:
    texts = tiny.folder / "train.txt"
    teacher = make_tiny_model(tiny.folder / "teacher", hidden_size=64)
    settings = EncoderSettings(str(teacher), pooling="mean")
    on_cpu = {"accelerator": "cpu", "devices": 1}
    encode(settings, Encoding(str(texts), str(tiny.folder / "vectors")), on_cpu, show=False)
    data = {"texts": texts, "vectors": tiny.folder / "vectors", "triplets": tiny.folder / "triplets"}
    stages = stages_of("jina-v5", **data)
    first = train(tiny, "distillation", *stages["distillation"], "stage.max_length=16", "data.held_out=5")
    sizes = "stage.loss.dimensions=[16,8]"
    second = train(tiny, "supervised", *stages["supervised"], *SUPERVISED, sizes, f"init_from={first.folder}")
    lineage = second.lineage()
    assert [record.stage for record in lineage.merged] == ["distillation"] and lineage.adapter is not None


def test_layerwise_matryoshka_trains_at_every_quarter(tiny: Tiny) -> None:
    (overrides,) = stages_of("layerwise-matryoshka", triplets=tiny.folder / "triplets").values()
    run = train(tiny, "run", *overrides, *SUPERVISED, "stage.loss.dimensions=[16,8]")
    assert run.is_finished and rates(run)[0] > 0


def test_a_recipe_whose_data_are_not_named_says_which() -> None:
    with pytest.raises(L2VError, match=r"^triplets: must be given, as triplets=\.\.\.$"):
        stages_of("layerwise-matryoshka")
