"""An exported folder where people use encoders: each finds the right document by the vectors of l2v."""

import json
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest
from launch import Tiny
from tiny import SENTENCES

from l2v import Encoder, EncoderSettings
from l2v.embedding.embed import encode
from l2v.embedding.job import Encoding
from l2v.export.export import Export, export
from l2v.runs.run import Run

INSTRUCTION = "Given a question, retrieve its answer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Of a run, with an instruction for queries."""
    place = tmp_path_factory.mktemp("use")
    with pytest.MonkeyPatch.context() as patch:
        run = Tiny(place, tiny_model, patch).train("run", "simcse", "stage.max_steps=2")
    export(Run(run), place / "exported", Export(prompts={"query": INSTRUCTION}))
    return place / "exported"


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def asked(encoder: Encoder) -> tuple[np.ndarray, str]:
    """The vector of a query, and the text that is nearest to it."""
    query = encoder.encode([SENTENCES[3]], instruction=INSTRUCTION)
    return query[0], SENTENCES[int(encoder.similarity(query, encoder.encode(SENTENCES)).argmax())]


def test_langchain(folder: Path, encoder: Encoder, asked: tuple[np.ndarray, str]) -> None:
    huggingface = pytest.importorskip("langchain_huggingface")
    from langchain_core.vectorstores import InMemoryVectorStore

    embeddings = huggingface.HuggingFaceEmbeddings(
        model_name=str(folder),
        model_kwargs={"device": "cpu"},
        encode_kwargs={"normalize_embeddings": True},
        query_encode_kwargs={"normalize_embeddings": True, "prompt_name": "query"},
    )
    vector, nearest = asked
    np.testing.assert_allclose(embeddings.embed_query(SENTENCES[3]), vector / np.linalg.norm(vector), atol=1e-5)
    expected = encoder.encode(SENTENCES, normalize=True)
    np.testing.assert_allclose(embeddings.embed_documents(list(SENTENCES)), expected, atol=1e-5)
    store = InMemoryVectorStore(embeddings)
    store.add_texts(list(SENTENCES))
    assert store.similarity_search(SENTENCES[3], k=1)[0].page_content == nearest


def test_llama_index(folder: Path, encoder: Encoder, asked: tuple[np.ndarray, str]) -> None:
    core = pytest.importorskip("llama_index.core")
    huggingface = pytest.importorskip("llama_index.embeddings.huggingface")
    instruction = INSTRUCTION + encoder.prompt.separator
    embedding = huggingface.HuggingFaceEmbedding(
        model_name=str(folder), device="cpu", query_instruction=instruction, text_instruction="", normalize=True
    )
    vector, nearest = asked
    np.testing.assert_allclose(embedding.get_query_embedding(SENTENCES[3]), vector / np.linalg.norm(vector), atol=1e-5)
    documents = [core.Document(text=text) for text in SENTENCES]
    index = core.VectorStoreIndex.from_documents(documents, embed_model=embedding)
    assert index.as_retriever(similarity_top_k=1).retrieve(SENTENCES[3])[0].text == nearest.strip()


def test_qdrant(encoder: Encoder, asked: tuple[np.ndarray, str]) -> None:
    qdrant = pytest.importorskip("qdrant_client")
    client = qdrant.QdrantClient(":memory:")
    size = qdrant.models.VectorParams(size=encoder.dimension, distance=qdrant.models.Distance.COSINE)
    client.create_collection("texts", vectors_config=size)
    payload = [{"text": text} for text in SENTENCES]
    client.upload_collection("texts", vectors=encoder.encode(SENTENCES), payload=payload)
    vector, nearest = asked
    assert client.query_points("texts", query=vector, limit=1).points[0].payload == {"text": nearest}


def test_lancedb_reads_the_shards_of_encode(folder: Path, tmp_path: Path, asked: tuple[np.ndarray, str]) -> None:
    lancedb = pytest.importorskip("lancedb")
    texts = pyarrow.table({"id": [f"t{n}" for n in range(len(SENTENCES))], "text": list(SENTENCES)})
    pyarrow.parquet.write_table(texts, tmp_path / "texts.parquet")
    encoding = Encoding(
        *(str(tmp_path / "texts.parquet"), str(tmp_path / "vectors")), keep=("id", "text"), shard_rows=4, normalize=True
    )
    encode(EncoderSettings(str(folder)), encoding, {"accelerator": "cpu", "devices": 1}, show=False)
    rows = pyarrow.dataset.dataset(sorted((tmp_path / "vectors").glob("*.parquet"))).to_table()
    table = lancedb.connect(tmp_path / "database").create_table("texts", rows)
    vector, nearest = asked
    (found,) = table.search(vector).distance_type("cosine").limit(1).to_list()
    assert found["text"] == nearest and found["id"] == f"t{SENTENCES.index(nearest)}"


def test_chroma(encoder: Encoder, asked: tuple[np.ndarray, str]) -> None:
    chroma = pytest.importorskip("chromadb")
    texts = chroma.EphemeralClient().create_collection("texts", configuration={"hnsw": {"space": "cosine"}})
    ids = [str(number) for number in range(len(SENTENCES))]
    texts.add(ids=ids, documents=list(SENTENCES), embeddings=encoder.encode(SENTENCES))
    vector, nearest = asked
    assert texts.query(query_embeddings=vector[None], n_results=1)["documents"] == [[nearest]]


def test_what_servers_read_is_in_the_folder(folder: Path) -> None:
    """vLLM: the mask and the architecture from config.json, the pooling from the files of sentence-transformers."""
    config = json.loads((folder / "config.json").read_text())
    assert config["is_causal"] is False and config["architectures"] == ["LlamaModel"]
    modules = json.loads((folder / "modules.json").read_text())
    pooling = next(folder / module["path"] for module in modules if module["type"].endswith("Pooling"))
    told = json.loads((pooling / "config.json").read_text())
    assert [mode for mode, on in told.items() if on is True and mode.startswith("pooling_mode")] == [
        "pooling_mode_mean_tokens"
    ]
