"""encode.py engine=ray: the shards of engine=local, by actors of a cluster, whoever dies."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from launch import ROOT, composed, hears_ctrl_c, script
from tiny import SENTENCES

from l2v.embedding import read_vectors
from l2v.embedding.actor import ShardEncoder
from l2v.embedding.cluster import Cluster, encode_on_ray
from l2v.embedding.embed import encode
from l2v.embedding.job import Encoding
from l2v.errors import L2VError
from l2v.models.settings import EncoderSettings

CPU = {"accelerator": "cpu", "devices": 1, "precision": "32-true"}
TEXTS = [" ".join(SENTENCES[(row + shift) % 6] for shift in range(row % 3)) + f" {row}" for row in range(1000)]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (the extra ray)")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = [json.dumps({"id": f"t{number}", "text": text}) for number, text in enumerate(TEXTS)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path / "texts.jsonl"


@pytest.fixture
def few(tmp_path: Path) -> str:
    """Three shards."""
    (tmp_path / "few.txt").write_text("".join(f"{text}\n" for text in TEXTS[:300]))
    return str(tmp_path / "few.txt")


@pytest.fixture
def encoding(texts: Path, tmp_path: Path) -> Callable[..., Encoding]:
    def encoding(output: str, **settings: Any) -> Encoding:
        defaults = {"files": str(texts), "output": str(tmp_path / output), "shard_rows": 100, "batch_size": 8}
        return Encoding(**defaults | settings)

    return encoding


def table(folder: Path) -> pyarrow.Table:
    return pyarrow.concat_tables(pyarrow.parquet.read_table(file) for file in sorted(folder.glob("*.parquet")))


# an actor, in this process


@pytest.mark.parametrize("settings", [{}, {"vector_dtype": "int8"}, {"truncate_dim": 5, "normalize": True}], ids=str)
def test_an_actor_gives_what_the_local_engine_writes(encoding, few, tiny_model, tmp_path, settings) -> None:
    subject, wanted = EncoderSettings(str(tiny_model)), encoding("local", files=few, **settings)
    encode(subject, wanted, CPU, show=False)
    actor = ShardEncoder(subject, wanted, CPU, tmp_path / "not on this machine")
    dimension = settings.get("truncate_dim", 32)
    assert actor.load() == dimension
    ranges = actor.ranges(TEXTS[:100]) if "vector_dtype" in settings else None
    found = actor.shard(TEXTS[200:300], ranges)
    column = pyarrow.parquet.read_table(tmp_path / "local" / "shard-00002.parquet")["vector"].combine_chunks()
    written = column.flatten().to_numpy().reshape(100, dimension)
    assert found.dtype == written.dtype and (found == written).all()


def test_a_precision_that_the_machine_has_not_is_an_error(encoding, tiny_model, tmp_path) -> None:
    trainer = CPU | {"precision": "16-mixed"}
    actor = ShardEncoder(EncoderSettings(str(tiny_model)), encoding("out"), trainer, tmp_path / "not on this machine")
    with pytest.raises(L2VError, match="^trainer.precision=16-mixed: is bf16-mixed on a cpu; write that$"):
        actor.load()


# mistakes, before a cluster is looked for


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine=daft"], "engine=daft: input should be 'local' or 'ray'"),
        (["ray.actors=2"], "ray.actors=2: is for engine=ray, found engine=local"),
        (["engine=ray", "ray.actors=0"], "ray.actors=0: input should be greater than or equal to 1"),
        (["engine=ray", "+ray.gpus=1"], "ray.gpus: no such setting"),
        (["engine=ray", "ray.num_cpus=0"], "ray.num_cpus=0: input should be greater than 0"),
        (["engine=ray", "ray.num_gpus=2"], "ray.num_gpus=2.0: expected at most 1; an actor computes on one device"),
        (["engine=ray", "ray.address=ray://head:10001"], "ray.address=ray://head:10001: expected auto or host:port"),
        (["engine=ray", "ray.address=head"], "ray.address=head: expected auto or host:port"),
        pytest.param(
            ["engine=ray", "ray.address=127.0.0.1:1"],
            "ray.address=127.0.0.1:1: no cluster can be reached there",
            marks=needs_ray,
        ),
        pytest.param(
            ["engine=ray", "trainer=ddp"], "trainer.devices: an actor of engine=ray has one device", marks=needs_ray
        ),
        pytest.param(
            ["engine=ray", "trainer=fsdp", "trainer.devices=1"], "trainer.strategy: an actor", marks=needs_ray
        ),
        pytest.param(
            ["engine=ray", "trainer.precision=auto"], "trainer.precision=auto: machines of a clu", marks=needs_ray
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_setting_is_one_line(overrides, message, texts, tiny_model, tmp_path) -> None:
    given = [f"files={texts}", f"encoder={tiny_model}", f"output={tmp_path / 'out'}", "trainer=cpu", *overrides]
    given = [one for one in given if one != "trainer=cpu" or not any(new.startswith("trainer=") for new in overrides)]
    with pytest.raises(L2VError) as error:
        script("encode").main(composed("encode", given))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_missing_extra_is_one_line(encoding, tiny_model, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else find(name, *more))
    with pytest.raises(L2VError, match=r"^engine=ray: ray is not installed; `pip install 'l2v\[ray\]'`$"):
        encode_on_ray(EncoderSettings(str(tiny_model)), encoding("out"), CPU, Cluster(), show=False)


@needs_ray
def test_what_is_there_is_reused_without_a_cluster(encoding, few, tiny_model, capsys) -> None:
    subject, wanted = EncoderSettings(str(tiny_model)), encoding("out", files=few)
    manifest = encode(subject, wanted, CPU, show=False)
    nowhere = Cluster(address="127.0.0.1:1")
    assert encode_on_ray(subject, wanted, CPU | {"precision": 32}, nowhere, show=False) == manifest
    assert "out: reused, nothing has changed" in capsys.readouterr().err
    with pytest.raises(L2VError, match="holds vectors of trainer.precision=32-true, not bf16-mixed"):
        encode_on_ray(subject, wanted, CPU | {"precision": "bf16-mixed"}, nowhere, show=False)


# a cluster on this machine


class Local:
    """Programs that start a Ray cluster of their own."""

    def __init__(self, folder: Path) -> None:
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "RAY_TMPDIR": str(folder),
            "RAY_ADDRESS": "",
            "HF_HUB_OFFLINE": "1",
        }
        self.mark = f"RAY_TMPDIR={folder}".encode()
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        self.started.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=self.environment,
                preexec_fn=hears_ctrl_c,
            )
        )
        return self.started[-1]

    def processes(self, of: str = "") -> list[int]:
        """Processes whose command line begins so, of these programs and of what they started."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark in (process / "environ").read_bytes().split(b"\0"):
                    command = (process / "cmdline").read_bytes()
                    if command.startswith(of.encode()) and command:
                        found.append(int(process.name))
            except OSError:  # it has ended
                continue
        return found


@pytest.fixture
def local() -> Iterator[Local]:
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets are in it: their paths must be short
    programs = Local(folder)
    yield programs
    for process in programs.started:
        process.kill()
        process.wait()
    for number in programs.processes():
        os.kill(number, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == code, printed
    return printed


def wait_for(what: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    for _ in range(4800):
        if found := what():
            return found
        if process is not None and process.poll() is not None:
            raise AssertionError(process.communicate()[0])
        time.sleep(0.05)
    raise AssertionError("it does not come")


def program(texts: Path, model: Path, output: Path, *more: str) -> list[str]:
    given = [f"files={texts}", f"encoder={model}", f"output={output}", "engine=ray", "ray.actors=2", "trainer=cpu"]
    return [str(ROOT / "encode.py"), *given, *more]


@needs_ray
@pytest.mark.slow
def test_an_actor_that_dies_is_replaced_and_the_vectors_are_those_of_one_process(
    local, encoding, texts, tiny_model, tmp_path, monkeypatch
) -> None:
    more = {"vector_dtype": "int8", "keep": ("id",), "shard_rows": 20, "batch_size": 1, "workers": 1}
    overrides = ["vector_dtype=int8", "keep=[id]", "shard_rows=20", "batch_size=1", "workers=1"]
    monkeypatch.chdir(tiny_model.parent)  # a relative path
    expected = encode(EncoderSettings(tiny_model.name), encoding("local", **more), CPU, show=False)
    process = local.start(*program(texts, Path(tiny_model.name), tmp_path / "ray", *overrides))
    wait_for(lambda: list((tmp_path / "ray").glob("*.parquet")), process)
    actors = local.processes("ray::ShardEncoder")
    os.kill(actors[0], signal.SIGKILL)
    printed = ended(process)
    assert "an actor of the cluster died; another takes its place" in printed
    assert "1,000 vectors of 32 dimensions (int8) in 50 shards" in printed
    found = json.loads((tmp_path / "ray" / "manifest.json").read_text())
    assert {**found, "finished": ""} == {**expected, "finished": ""}
    assert table(tmp_path / "ray").equals(table(tmp_path / "local"))
    assert table(tmp_path / "ray")["row"].to_pylist() == list(range(1000))


@needs_ray
@pytest.mark.slow
def test_a_command_that_is_stopped_or_killed_goes_on(local, encoding, texts, tiny_model, tmp_path) -> None:
    encode(EncoderSettings(str(tiny_model)), encoding("local"), CPU, show=False)
    folder = tmp_path / "ray"
    again = program(texts, tiny_model, folder, "shard_rows=20", "batch_size=1")
    known: dict[Path, int] = {}

    def new() -> bool:
        return len(list(folder.glob("*.parquet"))) > len(known)

    def keep() -> None:
        assert all(file.stat().st_mtime_ns == time for file, time in known.items())
        known.update((file, file.stat().st_mtime_ns) for file in folder.glob("*.parquet"))
        assert len(known) < 50

    process = local.start(*again)
    wait_for(new, process)
    process.send_signal(signal.SIGTERM)
    printed = ended(process, 128 + signal.SIGTERM)
    keep()
    assert printed.splitlines()[-1] == f"stopped; {len(known)} of 50 shards are in {folder}; the same command goes on"
    process = local.start(*again)
    wait_for(new, process)
    process.kill()
    process.wait()
    keep()
    wait_for(lambda: not local.processes())  # nothing of Ray is left either
    assert "finished" not in json.loads((folder / "manifest.json").read_text())
    ended(local.start(*again))
    keep_all = {file.name for file in folder.glob("*.parquet")}
    assert all(file.stat().st_mtime_ns == time for file, time in known.items()) and len(keep_all) == 50
    assert table(folder)["row"].to_pylist() == list(range(1000))
    found, expected = (np.concatenate(list(read_vectors(tmp_path / name))) for name in ("ray", "local"))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@needs_ray
@pytest.mark.slow
def test_a_cluster_without_room_is_one_line(local, texts, tiny_model, tmp_path) -> None:
    given = program(texts, tiny_model, tmp_path / "out", "trainer=gpu", "ray.actors=null")
    given.remove("trainer=cpu")
    lines = ended(local.start(*given), 1).splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: engine=ray: the cluster has ")
    assert "cores and 0 GPUs, too few for an actor of 1 and 1; set ray.num_cpus and trainer=" in lines[0]


POOL = """
import os, ray
from l2v.embedding.inputs import Row
from l2v.embedding.pool import Job, Pool
from l2v.errors import L2VError

class Worker:
    def load(self):
        if os.path.exists(flag):
            os._exit(1)
        return 3
    def double(self, texts):
        if texts[0] == "die" or texts[0] == "once" and not os.path.exists(once):
            open(once, "w").close()
            os._exit(1)
        if texts[0] == "fail":
            raise L2VError("a mistake")
        return [text * 2 for text in texts]

flag, once = (os.environ["RAY_TMPDIR"] + "/" + name for name in ("flag", "once"))
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)

def run(*texts, actors=2):
    pool = Pool(lambda: ray.remote(Worker).options(num_cpus=1).remote(), actors)
    jobs = (Job(number, [Row(text, ())]) for number, text in enumerate(texts))
    try:
        done = pool.run(jobs, lambda actor, job: actor.double.remote(job.texts))
        print("RESULT", sorted((job.number, result) for job, result in done), pool.dimension)
    except L2VError as error:
        print("RESULT", error)

run(*"abcdefg")
run()
run("a", "b", "once", actors=1)
run("a", "fail", "b")
run("a", "die", "b")
open(flag, "w").close()
run("a")
"""


@needs_ray
@pytest.mark.slow
def test_deaths_without_end_are_an_error(local) -> None:
    printed = ended(local.start("-c", POOL))
    results = [line.removeprefix("RESULT ") for line in printed.splitlines() if line.startswith("RESULT ")]
    assert results[0] == f"{[(number, [letter * 2]) for number, letter in enumerate('abcdefg')]} 3"
    assert results[1] == "[] 3"
    assert results[2] == "[(0, ['aa']), (1, ['bb']), (2, ['onceonce'])] 3"  # whoever had them died, and nobody else was
    assert results[3] == "a mistake"
    assert results[4].startswith("engine=ray: 3 actors died over shard ")
    assert results[5].startswith("engine=ray: 3 actors died over loading the encoder: ")


DATA = """
import sys, ray
from l2v import BatchEncoder, EncoderSettings

ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
rows = ray.data.read_json(sys.argv[1]).map_batches(
    BatchEncoder,
    fn_constructor_args=(EncoderSettings(sys.argv[2]),),
    fn_constructor_kwargs={"normalize": True},
    batch_size=100,
    compute=ray.data.ActorPoolStrategy(size=1),
)
rows.write_parquet(sys.argv[3])
"""


@needs_ray
@pytest.mark.slow
def test_ray_data_takes_the_class(local, encoding, texts, tiny_model, tmp_path) -> None:
    ended(local.start("-c", DATA, str(texts), str(tiny_model), str(tmp_path / "data")))
    found = pyarrow.parquet.read_table(tmp_path / "data").to_pandas().set_index("id")
    vectors = np.stack([np.stack(found["vector"][f"t{number}"]) for number in range(1000)])
    encode(EncoderSettings(str(tiny_model)), encoding("local", normalize=True), CPU, show=False)
    np.testing.assert_allclose(vectors, np.concatenate(list(read_vectors(tmp_path / "local"))), atol=1e-5)
