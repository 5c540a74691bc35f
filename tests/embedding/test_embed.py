"""encode.py: the vectors of Encoder.encode in the order of the input, resumed without losing or repeating a row."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from launch import ROOT, composed, hears_ctrl_c, script
from tiny import SENTENCES

from l2v import config as configs
from l2v.config.search import options
from l2v.embedding import embed as encode_module
from l2v.embedding import inputs as inputs_module
from l2v.embedding import read_vectors
from l2v.embedding.compression import Ranges, bits, signs
from l2v.embedding.embed import describe, encode
from l2v.embedding.job import Encoding
from l2v.embedding.shards import Shards
from l2v.encoders.encoder import Encoder
from l2v.errors import L2VError, Stopped
from l2v.models.settings import EncoderSettings
from l2v.runs.files import machine
from l2v.runs.locks import alone

CPU = {"accelerator": "cpu", "devices": 1, "precision": "32-true"}
TEXTS = [" ".join(SENTENCES[(row + shift) % 6] for shift in range(row % 3)) + f" {row}" for row in range(47)]
"""Of different lengths, each once."""


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder.from_pretrained(tiny_model)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A pattern: 30 texts in one file and 17 in the next."""
    for name, part in (("a", TEXTS[:30]), ("b", TEXTS[30:])):
        rows = [json.dumps({"id": f"{name}{number}", "n": number, "text": text}) for number, text in enumerate(part)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path / "*.jsonl"


@pytest.fixture
def run(tiny_model: Path, files: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Encode the files into ``output`` (vectors) in shards of 10."""

    def run(*, source: Path = tiny_model, trainer: dict[str, Any] = CPU, **settings: Any) -> dict[str, Any]:
        of_encoder = {name: settings.pop(name) for name in ("pooling", "max_length") if name in settings}
        defaults = {"files": str(files), "output": str(tmp_path / "vectors"), "shard_rows": 10, "batch_size": 4}
        return encode(EncoderSettings(str(source), **of_encoder), Encoding(**defaults | settings), trainer, show=False)

    return run


def table(folder: Path) -> pyarrow.Table:
    """All shards, by the names of their files."""
    return pyarrow.concat_tables(pyarrow.parquet.read_table(file) for file in sorted(folder.glob("*.parquet")))


def stored(folder: Path) -> np.ndarray:
    return np.array(table(folder)["vector"].to_pylist())


# what is written


@pytest.mark.parametrize(
    "settings",
    [{}, {"normalize": True}, {"truncate_dim": 5, "normalize": True}, {"instruction": "Find it"}, {"workers": 1}],
    ids=str,
)
def test_the_shards_hold_the_vectors_of_the_encoder_in_order(run, encoder, tmp_path, settings) -> None:
    manifest = run(**settings)
    of_encode = {name: value for name, value in settings.items() if name != "workers"}
    expected = encoder.encode(TEXTS, **of_encode)
    np.testing.assert_allclose(stored(tmp_path / "vectors"), expected, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(list(read_vectors(tmp_path / "vectors"))), expected, atol=1e-5)
    assert table(tmp_path / "vectors")["row"].to_pylist() == list(range(47))
    assert [shard["rows"] for shard in manifest["shards"]] == [10, 10, 10, 10, 7]
    assert manifest["dimension"] == expected.shape[1] and [file["rows"] for file in manifest["files"]] == [30, 17]
    assert describe(manifest).startswith(f"47 vectors of {expected.shape[1]} dimensions (float32) in 5 shards, ")


def test_settings_of_the_encoder_are_used(run, tiny_model, tmp_path) -> None:
    run(pooling="last_token", max_length=6)
    expected = Encoder.from_pretrained(tiny_model, pooling="last_token", max_length=6).encode(TEXTS)
    np.testing.assert_allclose(stored(tmp_path / "vectors"), expected, atol=1e-5)


def test_truncating_comes_before_normalising(run, tmp_path) -> None:
    run(truncate_dim=5, normalize=True)
    assert np.linalg.norm(stored(tmp_path / "vectors"), axis=1) == pytest.approx(1)


def test_columns_are_kept_beside_their_vectors(run, tmp_path) -> None:
    run(keep=("id", "n", "text"))
    found = table(tmp_path / "vectors")
    assert found.column_names == ["row", "id", "n", "text", "vector"]
    assert found["id"].to_pylist() == [*(f"a{n}" for n in range(30)), *(f"b{n}" for n in range(17))]
    assert found["n"].to_pylist() == [*range(30), *range(17)] and found["text"].to_pylist() == TEXTS


def test_a_kept_column_has_one_type_in_all_shards(run, tmp_path) -> None:
    rows = [{"text": text, "score": [None, 1, 0.5][row // 16]} for row, text in enumerate(TEXTS)]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(files=str(tmp_path / "scores.jsonl"), keep=("score",))
    types = {pyarrow.parquet.read_schema(f).field("score").type for f in (tmp_path / "vectors").glob("*.parquet")}
    assert types == {pyarrow.float64()}
    assert table(tmp_path / "vectors")["score"].to_pylist() == [row["score"] for row in rows]


@pytest.mark.parametrize("ending", [".txt", ".csv", ".parquet"])
def test_every_kind_of_file_is_read(run, encoder, tmp_path, ending) -> None:
    file = tmp_path / f"texts{ending}"
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), file)
    else:
        header = ["text"] if ending == ".csv" else []
        file.write_text("\n".join([*header, *(f'"{text}"' if header else text for text in TEXTS)]) + "\n")
    run(files=str(file))
    np.testing.assert_allclose(stored(tmp_path / "vectors"), encoder.encode(TEXTS), atol=1e-5)


def test_every_line_of_a_text_file_is_a_row(run, encoder, tmp_path) -> None:
    (tmp_path / "lines.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\nthree\n  four \nfive")
    run(files=str(tmp_path / "lines.txt"))
    expected = encoder.encode(["one", "", "three", "  four ", "five"])
    np.testing.assert_allclose(stored(tmp_path / "vectors"), expected, atol=1e-5)


# fewer bytes


def test_float16_is_stored_as_such(run, encoder, tmp_path) -> None:
    run(vector_dtype="float16")
    assert table(tmp_path / "vectors").schema.field("vector").type == pyarrow.list_(pyarrow.float16(), 32)
    found = np.concatenate(list(read_vectors(tmp_path / "vectors")))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, encoder.encode(TEXTS), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dimension", [32, 13])
def test_binary_holds_a_bit_a_dimension(run, encoder, tmp_path, dimension) -> None:
    run(vector_dtype="binary", truncate_dim=dimension)
    vectors = encoder.encode(TEXTS, truncate_dim=dimension)
    width = -(-dimension // 8)
    assert table(tmp_path / "vectors").schema.field("vector").type == pyarrow.list_(pyarrow.uint8(), width)
    certain = np.abs(vectors) > 1e-5
    found = np.concatenate(list(read_vectors(tmp_path / "vectors")))
    assert found.shape == vectors.shape and (found == np.where(vectors > 0, 1, -1))[certain].all()


def test_bits_are_packed_from_the_highest_row_by_row() -> None:
    vectors = np.array([[1, -1, -1, -1, -1, -1, -1, 1, 1], [0, 0, 1, 0, 0, 0, 0, 0, -1]], np.float32)
    assert bits(vectors).tolist() == [[0b10000001, 0b10000000], [0b00100000, 0]]
    assert (signs(bits(vectors), 9) == np.where(vectors > 0, 1, -1)).all()


def test_int8_spreads_its_codes_over_the_ranges() -> None:
    sample = np.array([[0, -100, 3], [255, 155, 3], [100.9, -50.5, 3]], np.float32)
    ranges = Ranges.of(sample)
    assert ranges.codes(sample).tolist() == [[-128, -128, -128], [127, 127, -128], [-28, -79, -128]]
    beyond = np.array([[300, -200, 4], [-5, 900, 2], [0.6, -50.5, 3]], np.float32)
    assert ranges.codes(beyond).tolist() == [[127, -128, -127], [-128, 127, -128], [-128, -79, -128]]
    assert (ranges.values(ranges.codes(sample))[:, 2] == 3).all()  # a dimension that never changes
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((200, 16)).astype(np.float32)
    ranges = Ranges.read(json.loads(json.dumps(Ranges.of(vectors).record())))
    step = (vectors.max(axis=0) - vectors.min(axis=0)) / 255
    assert (np.abs(ranges.values(ranges.codes(vectors)) - vectors) <= step * 0.501).all()
    codes = ranges.codes(vectors)
    assert (codes.min(axis=0) == -128).all() and (codes.max(axis=0) >= 126).all()  # rounding may take the last one


def test_codes_and_bits_are_those_of_sentence_transformers() -> None:
    quantization = pytest.importorskip("sentence_transformers.util.quantization")
    vectors, sample = np.random.default_rng(0).standard_normal((2, 300, 13)).astype(np.float32)
    expected = quantization.quantize_embeddings(vectors, "int8", calibration_embeddings=sample)
    assert (Ranges.of(sample).codes(vectors) == expected).all()
    assert (bits(vectors) == quantization.quantize_embeddings(vectors, "ubinary")).all()


@pytest.mark.parametrize("calibration", [None, "sample.txt"])
def test_int8_takes_its_ranges_from_the_first_shard_or_a_sample(run, encoder, tmp_path, calibration, capsys) -> None:
    sample = TEXTS[:10] if calibration is None else TEXTS[20:43]  # more than a shard
    (tmp_path / "sample.txt").write_text("\n".join(sample) + "\n")
    manifest = run(vector_dtype="int8", calibration=calibration and str(tmp_path / calibration))
    assert f"ranges of {len(sample)} rows only" in capsys.readouterr().err
    expected = Ranges.of(encoder.encode(sample))
    np.testing.assert_allclose(manifest["calibration"]["low"], expected.low, atol=1e-5)
    np.testing.assert_allclose(manifest["calibration"]["high"], expected.high, atol=1e-5)
    assert table(tmp_path / "vectors").schema.field("vector").type == pyarrow.list_(pyarrow.int8(), 32)
    vectors = encoder.encode(TEXTS)
    inside = (vectors >= expected.low) & (vectors <= expected.high)
    off = np.abs(np.concatenate(list(read_vectors(tmp_path / "vectors"))) - vectors)
    assert inside.mean() > 0.5 and (off <= (expected.high - expected.low) / 255 * 0.51 + 1e-5)[inside].all()


# going on


def broken_at(monkeypatch: pytest.MonkeyPatch, shard: int, error: BaseException) -> list[int]:
    """Fail while a shard is written; the numbers of those that are written before and after are kept."""
    written: list[int] = []
    write = Shards.write

    def sometimes(self: Shards, number: int, *arguments: Any) -> None:
        if number == shard and not any(number == known for known in written):
            raise error
        written.append(number)
        write(self, number, *arguments)

    monkeypatch.setattr(Shards, "write", sometimes)
    return written


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_a_killed_command_goes_on_where_it_was(run, tmp_path, monkeypatch, kind) -> None:
    whole = run(output=str(tmp_path / "whole"), vector_dtype=kind)
    with monkeypatch.context() as patch:
        broken_at(patch, 2, RuntimeError("killed"))
        with pytest.raises(RuntimeError, match="killed"):
            run(vector_dtype=kind)
    folder = tmp_path / "vectors"
    assert sorted(file.name for file in folder.glob("shard*")) == ["shard-00000.parquet", "shard-00001.parquet"]
    assert "finished" not in json.loads((folder / "manifest.json").read_text())
    with pytest.raises(L2VError, match="expected a finished folder of encode.py"):
        list(read_vectors(folder))
    before = {file: file.stat().st_mtime_ns for file in folder.glob("shard*")}
    (folder / f"shard-00002.parquet.tmp-{machine()}-{2**22 + 1}").write_bytes(b"half of it")
    written = broken_at(monkeypatch, -1, RuntimeError())
    monkeypatch.setattr(inputs_module.Inputs, "survey", None)  # the files are known
    again = run(vector_dtype=kind)
    assert written == [2, 3, 4] and all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert table(folder)["row"].to_pylist() == list(range(47))
    assert (stored(folder) == stored(tmp_path / "whole")).all()
    assert again["calibration"] == whole["calibration"] and (kind == "int8") == (again["calibration"] is not None)
    assert not list(folder.glob("*.tmp*"))


def test_what_is_there_is_reused(run, tmp_path, monkeypatch, capsys) -> None:
    manifest = run()
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "from_pretrained", None)  # no model is loaded
        assert run(batch_size=7) == manifest
    assert "vectors: reused, nothing has changed" in capsys.readouterr().err
    (tmp_path / "vectors" / "shard-00003.parquet").unlink()
    written = broken_at(monkeypatch, -1, RuntimeError())
    run()
    assert written == [3] and table(tmp_path / "vectors")["row"].to_pylist() == list(range(47))


def swapped(folder: Path) -> None:
    one, two = folder / "shard-00001.parquet", folder / "shard-00003.parquet"
    one.rename(folder / "aside")
    two.rename(one)
    (folder / "aside").rename(two)


def flipped(file: Path) -> None:
    """One bit in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("damage", "anew"),
    [
        (lambda folder: flipped(folder / "shard-00003.parquet"), [3]),
        (lambda folder: (folder / "shard-00001.parquet").write_bytes(b""), [1]),
        (lambda folder: os.truncate(folder / "shard-00001.parquet", 2000), [1]),
        (swapped, [1, 3]),
        (lambda folder: shutil.copy(folder / "shard-00000.parquet", folder / "shard-00001.parquet"), [1]),
    ],
    ids=["flipped", "empty", "truncated", "swapped", "another"],
)
def test_shards_that_are_not_as_they_were_written_are_written_anew(
    run, tmp_path, monkeypatch, capsys, damage, anew, finished
) -> None:
    run()
    folder = tmp_path / "vectors"
    before = stored(folder)
    if not finished:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "finished"}))
    damage(folder)
    if finished:
        with pytest.raises(L2VError, match=rf"shard-0000{anew[0]}.parquet: is damaged .* writes it anew"):
            list(read_vectors(folder))
    written = broken_at(monkeypatch, -1, RuntimeError())
    run()
    assert written == anew and (stored(folder) == before).all()
    assert f"shard-0000{anew[0]}.parquet: is not as it was written, and is made anew" in capsys.readouterr().err
    assert len(list(read_vectors(folder))) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalize": True}, "normalize=False, not True"),
        ({"instruction": "Find it"}, "instruction=None, not Find it"),
        ({"shard_rows": 11}, "shard_rows=10, not 11"),
        ({"vector_dtype": "binary"}, "vector_dtype=float32, not binary"),
        ({"keep": ("id",)}, r"keep=\[\], not \['id'\]"),
        ({"pooling": "bos"}, "another encoder, or other settings of it"),
        ({"files": "FOLDER/a.jsonl"}, "other files"),
        ({"trainer": CPU | {"precision": "bf16-mixed"}}, "trainer.precision=32-true, not bf16-mixed"),
    ],
)
def test_other_settings_do_not_go_into_the_same_folder(run, tmp_path, settings, message) -> None:
    run()
    before = (tmp_path / "vectors" / "manifest.json").read_bytes()
    if "files" in settings:
        settings = {"files": settings["files"].replace("FOLDER", str(tmp_path))}
    with pytest.raises(L2VError, match=f"output=.*vectors: holds vectors of {message}; choose another folder"):
        run(**settings)
    assert (tmp_path / "vectors" / "manifest.json").read_bytes() == before


def test_a_folder_with_shards_of_others_is_left_alone(run, tmp_path) -> None:
    (tmp_path / "vectors").mkdir()
    (tmp_path / "vectors" / "shard-00000.parquet").write_bytes(b"somebody's")
    with pytest.raises(L2VError, match="holds shard-00000.parquet but no manifest.json"):
        run()


def test_two_commands_do_not_write_into_one_folder(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("l2v.runs.locks._PATIENCE", 0)
    with (
        alone(tmp_path / "vectors" / ".lock-0", ""),
        pytest.raises(L2VError, match="another encode.py is writing there"),
    ):
        run()


def test_ctrl_c_says_how_to_go_on(run, tmp_path, monkeypatch) -> None:
    handler = signal.getsignal(signal.SIGINT)
    broken_at(monkeypatch, 3, KeyboardInterrupt())
    try:
        with pytest.raises(
            Stopped, match="stopped; 3 of 5 shards are in .*vectors; the same command goes on"
        ) as stopped:
            run()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert stopped.value.signal == signal.SIGINT


# memory


def test_no_more_than_a_shard_of_rows_is_held(run, tmp_path, monkeypatch) -> None:
    """Rows that were read and are still alive, counted at every row that is read."""
    alive, most = 0, 0

    class Counted(str):
        def __new__(cls, text: str) -> "Counted":
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().__new__(cls, text)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    (tmp_path / "many.txt").write_text("".join(f"text {row}\n" for row in range(3000)))
    monkeypatch.setattr(inputs_module, "clean", Counted)
    run(files=str(tmp_path / "many.txt"), shard_rows=100, batch_size=50, keep=())
    assert table(tmp_path / "vectors")["row"].to_pylist() == list(range(3000))
    assert 100 <= most <= 210  # the shard that is encoded, and the next one


# mistakes


def refused(message: str, call: Callable[..., Any], **settings: Any) -> None:
    with pytest.raises(L2VError, match=message):
        call(**settings)


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistakes are found before a model is loaded."""
    monkeypatch.setattr(Encoder, "from_pretrained", None)


@pytest.mark.usefixtures("unloaded")
def test_a_bad_row_is_named_before_anything_is_loaded(run, tmp_path) -> None:
    good = '{"text": "a text", "id": 1}\n'
    for line, message in [
        ("{", "not JSON"),
        ("[1]", "expected an object with a text under 'text', found list"),
        ('{"id": 1}', "no column 'text'; it has id; name the column with column"),
        ('{"text": null, "id": 1}', "expected a text under 'text', found NoneType"),
        ('{"text": "a"}', "no column 'id'; it has text; name the column with keep"),
        ('{"text": "a", "id": [1]}', "keep=id: expected text, a number or true/false, found list"),
        ('{"text": "a", "id": "x"}', "keep=id: expected int64 as in the rows before, found string"),
        (f'{{"text": "a", "id": {2**63}}}', "keep=id: .* an integer of more than 64 bits"),
    ]:
        (tmp_path / "bad.jsonl").write_text(good * 2 + line + "\n")
        refused(f"bad.jsonl:3: {message}", run, files=str(tmp_path / "bad.jsonl"), keep=("id",))
    (tmp_path / "bad.jsonl").write_text(f'{{"text": "a", "id": {2**53 + 1}}}\n{{"text": "a", "id": 1.5}}\n')
    told = "bad.jsonl:2: keep=id: expected int64 of more than 53 bits as in the rows before, found double"
    refused(told, run, files=str(tmp_path / "bad.jsonl"), keep=("id",))
    (tmp_path / "bad.txt").write_bytes(b"good\n\xff\n")
    refused("bad.txt:2: not UTF-8", run, files=str(tmp_path / "bad.txt"))
    refused(r"keep=\[id\]: .*bad.txt has no columns", run, files=str(tmp_path / "bad.txt"), keep=("id",))
    (tmp_path / "none.jsonl").write_text("\n")
    refused("none.jsonl: no texts", run, files=str(tmp_path / "none.jsonl"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "bad.parquet")
    refused("bad.parquet:2: expected a text", run, files=str(tmp_path / "bad.parquet"))
    assert not (tmp_path / "vectors" / "manifest.json").exists()


@pytest.mark.usefixtures("unloaded")
def test_a_wrong_setting_is_named_before_anything_is_loaded(run, tmp_path) -> None:
    refused("files=.*nothing.jsonl: no such file", run, files=str(tmp_path / "nothing.jsonl"))
    refused("truncate_dim=33: expected at most the 32 dimensions", run, truncate_dim=33)
    refused("calibration=x.txt: is for vector_dtype=int8, found float32", run, calibration="x.txt")
    refused("calibration=x.txt: no such file", run, calibration="x.txt", vector_dtype="int8")
    refused("keep=row: expected each column once, and none named row or vector", run, keep=("row",))
    refused("keep=id: expected each column once", run, keep=("id", "id"))
    (tmp_path / "file").touch()
    refused("output=.*file: cannot be written", run, output=str(tmp_path / "file"))
    refused("encoder=.*nowhere/model", run, source=tmp_path / "nowhere/model")


def test_an_instruction_without_room_for_a_text_is_an_error(run) -> None:
    refused("takes all of max_length=4 tokens", run, instruction="Find what means the same as this", max_length=4)


def test_vectors_that_are_not_finite_are_not_written(run, tmp_path, monkeypatch) -> None:
    embed = encode_module._Embedder.predict_step
    monkeypatch.setattr(encode_module._Embedder, "predict_step", lambda *given: embed(*given) * float("nan"))
    refused("vectors are not finite, in dtype=float32: the model's weights or states are not", run)
    assert not list((tmp_path / "vectors").glob("*.parquet"))


# the program


def test_encode_py(files, tiny_model, encoder, tmp_path, capsys) -> None:
    given = [f"files={files}", f"encoder={tiny_model}", f"output={tmp_path / 'out'}", "keep=[id]", "trainer=cpu"]
    script("encode").main(composed("encode", given))
    printed = capsys.readouterr().out
    assert "47 vectors of 32 dimensions (float32) in 1 shards" in printed and f"Vectors: {tmp_path / 'out'}" in printed
    np.testing.assert_allclose(stored(tmp_path / "out"), encoder.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("trainer", options("trainer", [ROOT / "conf"]))
def test_every_trainer_is_taken(trainer) -> None:
    config = configs.plain(composed("encode", [f"trainer={trainer}", "files=a", "encoder=b", "output=c"]))
    settings = configs.build_predictor(config["trainer"])
    assert settings["precision"] == "32-true" and "gradient_clip_val" not in settings


def test_a_setting_of_training_is_refused() -> None:
    with pytest.raises(L2VError, match="trainer.max_steps: not used here; there are accelerator, devices, "):
        configs.build_predictor({"_target_": "lightning.Trainer", "precision": "32-true", "max_steps": 3})


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "encode.py"), *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        preexec_fn=hears_ctrl_c,
    )


@pytest.fixture
def two(tiny_model: Path, tmp_path: Path, files: Path) -> Iterator[Callable[..., str]]:
    """Run encode.py in two processes and return what it printed."""
    started: list[subprocess.Popen[str]] = []

    def run(*overrides: str, code: int = 0) -> str:
        given = [f"files={files}", f"encoder={tiny_model}", f"output={tmp_path / 'two'}", "shard_rows=10"]
        processes = ["batch_size=4", "trainer.accelerator=cpu", "trainer.devices=2"]
        started.append(start([*given, *processes, *overrides]))
        out, errors = started[-1].communicate(timeout=240)
        assert started[-1].returncode == code, errors
        return out + errors

    yield run
    for process in started:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_processes_write_what_one_does(run, two, tmp_path, trainer) -> None:
    one = run(vector_dtype="int8")
    assert "47 vectors of 32 dimensions (int8) in 5 shards" in two("vector_dtype=int8", f"trainer={trainer}")
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    for end in ("low", "high"):
        np.testing.assert_allclose(manifest["calibration"][end], one["calibration"][end], atol=1e-5)
    assert table(tmp_path / "two")["row"].to_pylist() == list(range(47))
    # a value on the border between two codes may fall on either side
    off = stored(tmp_path / "two").astype(int) - stored(tmp_path / "vectors")
    assert np.abs(off).max() <= 1 and (off == 0).mean() > 0.99
    if trainer == "ddp":
        (tmp_path / "two" / "shard-00002.parquet").unlink()  # work for one of them only
        two("vector_dtype=int8", f"trainer={trainer}")
        assert table(tmp_path / "two")["row"].to_pylist() == list(range(47))


@pytest.mark.slow
def test_a_mistake_is_one_line(two) -> None:
    printed = two("truncate_dim=99", "trainer=ddp", code=1)
    assert printed.count("\n") == 1 and printed.startswith("error: truncate_dim=99: expected at most the 32 dim")
