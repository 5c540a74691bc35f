"""An encoder that is served: equal vectors pass, and each fault that was put in on purpose is named."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
from launch import Tiny, composed

from l2v import Encoder
from l2v.cli.verify import main
from l2v.errors import L2VError
from l2v.export.export import Export, export
from l2v.export.vectors import TEXTS, VECTORS_FILE, read_vectors_of
from l2v.models.settings import EncoderSettings
from l2v.runs.run import Run

Serve = Callable[[Any], str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """An export that has a template and was trained a little."""
    with pytest.MonkeyPatch.context() as patch:
        tiny = Tiny(tmp_path_factory.mktemp("verify"), tiny_model, patch)
        given = ["stage.max_steps=3", "stage.learning_rate=0.05", "model.template='[ {text} ]'"]
        run = tiny.train("run", "mntp", *given)
    export(Run(run), run / "exported")
    return run / "exported"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that answers a request for embeddings with what a function makes of its texts."""
    servers = []

    def serve(answer: Any) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                code, body = answer(asked, self) if callable(answer) else (200, answer)
                self.send_response(code)
                self.end_headers()
                self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

            def log_message(self, *_: Any) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def embeddings(encode: Callable[[list[str]], np.ndarray]) -> Any:
    def answer(asked: dict[str, Any], _: Any) -> tuple[int, Any]:
        vectors = encode(asked["input"])
        rows = [{"index": n, "embedding": vector.tolist()} for n, vector in enumerate(vectors)]
        return 200, {"data": rows[::-1], "model": asked["model"]}  # the index counts, not the place

    return answer


def verify(folder: Path, *overrides: str) -> None:
    main(composed("verify", [f"encoder={folder}", *overrides]))


def test_an_export_carries_its_vectors(folder: Path) -> None:
    carried = read_vectors_of(EncoderSettings(str(folder)))
    assert carried is not None
    assert carried.texts == list(TEXTS) and carried.tolerance == 0.001
    expected = Encoder.from_pretrained(folder, device="cpu").encode(carried.texts)
    np.testing.assert_allclose(carried.vectors, expected, atol=1e-6)
    verify(folder)


def test_vectors_that_were_written_without_their_dtype_are_read(folder: Path, tmp_path: Path) -> None:
    written = json.loads((folder / VECTORS_FILE).read_text())
    (tmp_path / VECTORS_FILE).write_text(json.dumps({"rows": written["rows"]}))
    carried = read_vectors_of(EncoderSettings(str(tmp_path)))
    assert carried is not None and carried.tolerance == 0.001


def test_an_export_in_16_bits_may_differ_by_more(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "16-bits")
    file = tmp_path / "16-bits" / VECTORS_FILE
    written = json.loads(file.read_text())
    away = np.zeros(len(written["rows"][0]["vector"]))
    for row in written["rows"]:  # a cosine of 0.995, which is that of a deep model in bfloat16
        vector = np.array(row["vector"])
        away = np.roll(vector, 1) - vector * (np.roll(vector, 1) @ vector) / (vector @ vector)
        row["vector"] = (vector + 0.1 * away * np.linalg.norm(vector) / np.linalg.norm(away)).tolist()
    for dtype in ("bfloat16", "float32"):
        file.write_text(json.dumps(written | {"dtype": dtype}))
        if dtype == "bfloat16":
            verify(tmp_path / "16-bits")
        else:
            with pytest.raises(L2VError, match="other vectors than the encoder's"):
                verify(tmp_path / "16-bits")
    verify(tmp_path / "16-bits", "tolerance=0.02")


def test_vectors_are_read_from_the_hub_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = tmp_path / "models--own--encoder"
    shutil.copytree(folder, snapshots / "snapshots" / ("a" * 40))
    (snapshots / "refs").mkdir()
    (snapshots / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    carried = read_vectors_of(EncoderSettings("own/encoder"))
    assert carried is not None and carried.texts == list(TEXTS)


@pytest.mark.slow
def test_equal_vectors_pass_scaled_or_not(folder: Path, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    encoder = Encoder.from_pretrained(folder, device="cpu")
    for normalize in (False, True):
        caplog.clear()
        with caplog.at_level("INFO", "l2v"):
            verify(folder, f"url={serve(embeddings(lambda texts, n=normalize: encoder.encode(texts, normalize=n)))}")
        (told,) = [record.message for record in caplog.records if "own vectors" in record.message]
        assert "5 texts, cosines 1.000000 to 1.000000" in told
        assert ("scaled to length 1" in told) == normalize


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "causal": ({"attention": "causal"}, "a token does not see those after it"),
    "pooling": ({"pooling": "last_token"}, "vectors are pooled by last_token, and not by mean"),
    "template": ({"template": "{text}"}, r"the template '\[ {text} \]' is missing around the text"),
    "both": (
        {"attention": "causal", "pooling": "last_token"},
        "a token does not see .*; and vectors are pooled by last_token",
    ),
}


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=() if fault == "both" else pytest.mark.slow) for fault in FAULTS]
)
def test_a_fault_is_named(folder: Path, serve: Serve, fault: str) -> None:
    settings, told = FAULTS[fault]
    faulty = Encoder.from_pretrained(folder, device="cpu", **settings)
    with pytest.raises(L2VError, match=f"other vectors than the encoder's .*; {told}") as error:
        verify(folder, f"url={serve(embeddings(faulty.encode))}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fault", [pytest.param("pooling"), pytest.param("causal", marks=pytest.mark.slow)])
def test_a_fault_of_an_exported_adapter_is_named(folder: Path, serve: Serve, fault: str) -> None:
    """Its template is saved with it, and not with its base."""
    adapter = folder.parent / "adapter-alone"
    export(Run(folder.parent), adapter, Export(form="adapter"))
    settings, told = FAULTS[fault]
    faulty = Encoder.from_pretrained(adapter, device="cpu", **settings)
    with pytest.raises(L2VError, match=f"other vectors than the encoder's .*; {told}"):
        verify(adapter, f"url={serve(embeddings(faulty.encode))}")


def test_faults_of_the_answer_are_named(folder: Path, serve: Serve) -> None:
    encoder = Encoder.from_pretrained(folder, device="cpu")
    for encode, told in (
        (lambda texts: encoder.encode(texts)[::-1], r"another order: \[4, 3, 2, 1, 0\]"),
        (lambda texts: encoder.encode(texts)[:, :8], "cut to their first 8 of 32 dimensions"),
        (lambda texts: np.ones((len(texts), 40)), "40 dimensions, and the encoder's 32: it is another model"),
        (lambda texts: np.random.default_rng(0).normal(size=(len(texts), 32)), "no cause that is known here"),
    ):
        with pytest.raises(L2VError, match=told):
            verify(folder, f"url={serve(embeddings(encode))}")
    for answer, told in (
        ({"object": "list"}, "not an answer of an embeddings endpoint"),
        (b"<html>", "Expecting value"),
        (lambda *_: (404, {"error": "no such model"}), "HTTP Error 404: Not Found: .*no such model"),
        ({"data": [{"index": 0, "embedding": [1.0]}]}, "expected 5 vectors of one size, found shape"),
    ):
        with pytest.raises(L2VError, match=f"url=.*{told}"):
            verify(folder, f"url={serve(answer)}")
    with pytest.raises(L2VError, match="url=http://127.0.0.1:9/v1/embeddings: .*refused"):
        verify(folder, "url=http://127.0.0.1:9/v1")
    with pytest.raises(L2VError, match="url=file:///etc: expected http"):
        verify(folder, "url=file:///etc")


@pytest.mark.slow
def test_a_key_is_sent_only_where_it_is_asked_for(folder: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, seen = Encoder.from_pretrained(folder, device="cpu"), []

    def answer(asked: dict[str, Any], handler: Any) -> tuple[int, Any]:
        seen.append((asked["model"], handler.path, handler.headers.get("Authorization")))
        return embeddings(encoder.encode)(asked, handler)

    monkeypatch.setenv("MY_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    url = serve(answer)
    verify(folder, f"url={url}")
    verify(folder, f"url={url}/embeddings", "served_name=mine", "key_variable=MY_KEY")
    path = "/v1/embeddings"
    assert seen == [("exported", path, None), ("mine", path, "Bearer secret")]
    with pytest.raises(L2VError, match="key_variable=NONE: no such environment variable"):
        verify(folder, f"url={url}", "key_variable=NONE")


@pytest.mark.slow
def test_what_is_loaded_otherwise_is_told_too(folder: Path, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(L2VError, match="what is loaded here: other vectors .*; a token does not see those after it"):
        verify(folder, "attention=causal")
    with pytest.raises(L2VError, match="^encoder=/no/such: no such file or folder"):
        verify(Path("/no/such"), "url=http://127.0.0.1:9")
    with pytest.raises(L2VError, match=f"it carries no {VECTORS_FILE}, which `l2v export` writes"):
        verify(tiny_model)


@pytest.mark.slow
def test_sentence_transformers_is_told_as_any_other(folder: Path, tmp_path: Path, tiny_model: Path) -> None:
    """It knows nothing of the template, as the export has said; without one it gives the vectors."""
    pytest.importorskip("sentence_transformers")
    assert Encoder.from_pretrained(folder, device="cpu").not_portable()
    with pytest.raises(L2VError, match=r"the template '\[ {text} \]' is missing around the text"):
        verify(folder, "library=sentence-transformers")
    with pytest.MonkeyPatch.context() as patch:
        run = Tiny(tmp_path, tiny_model, patch).train("run", "mntp", "stage.max_steps=1")
    export(Run(run), tmp_path / "plain")
    verify(tmp_path / "plain", "library=sentence-transformers")
