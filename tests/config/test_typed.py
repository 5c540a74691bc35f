"""What is typed for a setting is what it gets: a shell takes its quotes away, and Hydra has a grammar of its own."""

from pathlib import Path
from typing import Any

import pytest
from launch import composed
from omegaconf import OmegaConf

from l2v.config.compose import with_model_of_init
from l2v.config.typed import as_typed, parsed, take_texts

TEXTS = [
    "Given a question, retrieve its answer",
    "[Frage]: wie, so?",
    "a=b, (c) {d} #e @f ü",
    "don't",
    '"Yes," she said',
    "it's 'quoted', \\'",
    "two\nlines, one\\",
    "2026_11_25",
    "1.10",
    "1e3",
    "true",
    "[1,2]",
    "{a: b}",
    " ",
    ": ",
    " a",
]
ENCODE = ["encoder=model", "files=texts.txt", "output=vectors"]


def given(name: str, *arguments: str) -> Any:
    """A program's config of a command line, as a shell hands it over."""
    overrides = as_typed(arguments, name)
    config = composed(name, overrides)
    take_texts(config, overrides, name)
    return config


def test_a_text_is_taken_as_typed() -> None:
    settings = ("instruction", "separator", "output", "template", "column", "base", "revision", "files")
    for begin in range(0, len(TEXTS), len(settings)):
        wanted = dict(zip(settings, TEXTS[begin:], strict=False))
        config = given("encode", *ENCODE, *(f"{setting}={text}" for setting, text in wanted.items()))
        assert {setting: config[setting] for setting in wanted} == wanted


def test_a_folder_has_the_name_that_was_typed() -> None:
    for name in ("2026_11_25", "1.10", "1e3", "true", "a,b", "ü (2)"):
        config = given("train", f"name={name}", f"runs_dir={name}", "seed=1")
        assert config.run_dir == f"{name}/{name}" and config.seed == 1


def test_a_home_folder_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert as_typed(["runs_dir=~/runs", "name=~"], "train") == [
        "runs_dir=/home/me/runs",
        "name='~'",
    ]
    sweep = parsed(as_typed(["-m", "runs_dir=~/a,~/b"], "train")[1])
    assert sweep is not None and list(sweep.sweep_string_iterator()) == ["/home/me/a", "/home/me/b"]


def test_texts_inside_of_groups_are_taken_as_typed() -> None:
    config = given(
        "train",
        *("stage=supervised", "data=triplets", "data.train.files=1e3", "data.train.negative=2", "data.folder=1.10"),
        *("data.train.query_instructions=Given a question, retrieve", "model.template=[INST]", "model.separator=: "),
        "+data.sets.faq.query_instructions=Given a, retrieve b",
    )
    data = config.data.train
    assert (data.files, data.negative, data.folder) == ("1e3", "2", "1.10")
    assert data.query_instructions == "Given a question, retrieve"
    assert (config.model.template, config.model.separator) == ("[INST]", ": ")
    assert config.data.sets.faq.query_instructions == "Given a, retrieve b"


def test_what_is_no_text_stays_what_it_is() -> None:
    config = given(
        "encode",
        *ENCODE,
        *("keep=[id,'a, b']", "batch_size=8", "normalize=true", "instruction=null", "trainer.devices=2"),
        *("pooling={_target_: my.Pooling, heads: 2}", "adapters=[a,b]"),
    )
    assert config["keep"] == ["id", "a, b"] and config.adapters == ["a", "b"]
    assert (config.batch_size, config.normalize, config.instruction, config.trainer.devices) == (8, True, None, 2)
    assert config.pooling == {"_target_": "my.Pooling", "heads": 2}
    files = given("encode", "encoder=model", "files=[a.txt,'b, c.txt']", "output='a, b'")
    assert files.files == ["a.txt", "b, c.txt"] and files.output == "a, b"
    two = given("train", "init_from=[a,b]", "data=files", "data.train.files=[a.txt,b.txt]", "name=x")
    assert two.init_from == ["a", "b"] and two.data.train.files == ["a.txt", "b.txt"]


def test_an_interpolation_stays_one() -> None:
    config = given("train", "name=x", "model=llama3-8b", "init_from=${model.published.mntp}")
    assert OmegaConf.to_container(config, resolve=True)["init_from"][0].startswith("McGill-NLP/")  # type: ignore[index,call-overload]


def test_a_sweep_stays_one_where_it_is_asked_for() -> None:
    arguments = ["-m", "stage.learning_rate=1e-4,3e-4", "seed=0,1", "model.template=it's {text}", "name=1.10"]
    typed = as_typed(arguments, "train")
    assert typed[:3] == arguments[:3]
    assert typed[3:] == ["model.template='it\\'s {text}'", "name='1.10'"]
    assert as_typed(["stage=mntp,simcse"], "train") == ["stage=mntp,simcse"]  # Hydra says that it takes one
    assert as_typed(["--config-dir", "a=(b)", "hydra.searchpath=[a]"], "train")[1:] == ["a=(b)", "hydra.searchpath=[a]"]
    assert as_typed(typed, "train") == typed


def test_init_from_is_read_as_hydra_reads_it(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    run.mkdir()
    (run / "run.json").write_text('{"overrides": ["model=llama3-8b", "model.max_length=128", "model.dtype=float16"]}')
    for way in (f"init_from={run}", f"init_from='{run}'", f'+init_from="{run}"'):
        assert with_model_of_init([way])[1:] == ["model=llama3-8b", "model.max_length=128", "model.dtype=float16"]
    beside = [f"init_from={run}", "model.max_length=64"]
    assert with_model_of_init(beside) == [*beside, "model=llama3-8b", "model.dtype=float16"]
    for left in (["-m", f"init_from={run},{run}"], ["init_from=null"], [f"init_from=[{run}]"]):
        assert with_model_of_init(left) == left


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("files=[größe.txt,b.txt]", ["größe.txt", "b.txt"]),
        ("files=['größe, a.txt',ü.txt, my b.txt]", ["größe, a.txt", "ü.txt", "my b.txt"]),
        ("+data.files={de: texte/größe.txt}", {"de": "texte/größe.txt"}),
        (
            "+task={instruction: Recupera textos semánticamente similares}",
            {"instruction": "Recupera textos semánticamente similares"},
        ),
        ("instruction=[Frage]: wie groß, so?", "[Frage]: wie groß, so?"),
        ("instruction=Größe, oder", "Größe, oder"),
        ("instruction=[Größe]: a [b]", "[Größe]: a [b]"),
    ],
)
def test_letters_beyond_ascii_in_lists_and_dictionaries(argument: str, value: Any) -> None:
    (typed,) = as_typed([argument], "encode")
    found = parsed(typed)
    assert found is not None and not found.is_sweep_override()
    assert found.value() == value


def test_values_of_a_sweep_may_have_letters_beyond_ascii() -> None:
    found = parsed(as_typed(["-m", "data.train.column=für,wider"], "train")[1])
    assert found is not None and list(found.sweep_string_iterator()) == ["'für'", "wider"]
