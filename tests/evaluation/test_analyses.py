"""The paper's analyses on tiny models, against the same numbers computed directly."""

import csv
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import composed
from tiny import SENTENCES, make_tiny_model, make_tiny_tokenizer

from l2v import Encoder
from l2v import config as configs
from l2v.encoders.texts import unit
from l2v.errors import L2VError
from l2v.evaluation.analyses import embedding_map
from l2v.evaluation.analyses.attention_states import AttentionStates, binned
from l2v.evaluation.analyses.embedding_map import EmbeddingMap, WikipediaPassages, principal, purity
from l2v.evaluation.analyses.geometry import Geometry
from l2v.evaluation.analyses.pooling import EveryPooling, PoolingAblation, default_poolings
from l2v.evaluation.analyses.prefix_triples import PrefixTriples, Triple, shared_prefix
from l2v.evaluation.mteb.files import ClusteringSet
from l2v.evaluation.results import ResultStore
from l2v.evaluation.suite import evaluate
from l2v.evaluation.task import Task
from l2v.evaluation.tasks.masked import MaskedAccuracy
from l2v.evaluation.tasks.sts import StsPairs
from l2v.models.settings import EncoderSettings

KEPT = ResultStore(Path("nowhere"), "l2v/tiny", "0")


@dataclass(frozen=True)
class Sentences:
    count: int = 6

    def texts(self) -> Iterator[str]:
        yield from SENTENCES[: self.count]

    def fingerprint(self) -> str:
        return f"sentences:{self.count}"


@pytest.fixture(scope="module", params=["causal", "bidirectional"])
def encoder(request: pytest.FixtureRequest, tiny_model: Path) -> Encoder:
    return Encoder.from_pretrained(tiny_model, attention=request.param)


# attention_states


@pytest.mark.parametrize("batch_size", [2, 5])
def test_cosines_of_states_are_those_of_two_models(tiny_model: Path, encoder: Encoder, batch_size: int) -> None:
    """One model loaded causally and another bidirectionally, a text at a time, give the table by hand."""
    task = AttentionStates(Sentences(), count=5, length=14, columns=14, batch_size=batch_size)
    scores = task.evaluate("states", encoder, KEPT)
    models = [Encoder.from_pretrained(tiny_model, attention=kind).backbone for kind in ("causal", "bidirectional")]
    chosen = [SENTENCES[number] for number in (0, 1, 2, 4, 5)]  # evenly spaced, 2.5 to the even
    total, texts = np.zeros((3, 14)), np.zeros(14)
    for text in chosen:
        ids = torch.tensor([models[0].tokenizer(text).input_ids[:14]])
        states = [model.decoder(ids, output_hidden_states=True).hidden_states for model in models]
        for layer, (a, b) in enumerate(zip(*states, strict=True)):
            a, b = a[0].detach().double().numpy(), b[0].detach().double().numpy()
            cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            total[layer, : len(cosines)] += cosines
        texts[: ids.shape[1]] += 1
    assert texts.min() >= 1
    plot, details = scores["states"]["plot"], scores["states"]["details"]
    assert np.allclose(plot["cosine"], total / texts, atol=1e-4) and plot["positions"] == list(range(14))
    assert scores["states"]["value"] == details["last_layer"] == pytest.approx(total[2].sum() / texts.sum(), abs=1e-6)
    every = np.mean(total[1:].sum(axis=1) / texts.sum())
    assert scores["states_layers"]["value"] == details["all_layers"] == pytest.approx(every, abs=1e-6)
    assert plot["cosine"][0] == [1.0] * 14 and details["last_layer"] < 0.999
    assert details["texts"] == 5 and details["tokens"] == texts.sum() and plot["causal_layers"] == []


def test_the_encoder_keeps_its_attention(encoder: Encoder) -> None:
    before = encoder.encode(SENTENCES)
    AttentionStates(Sentences(2), length=8).evaluate("states", encoder, KEPT)
    assert np.array_equal(before, encoder.encode(SENTENCES))


def test_neighbouring_positions_are_averaged() -> None:
    table = np.arange(20.0).reshape(2, 10)
    means, begins = binned(table, 4)
    assert begins == [0, 2, 5, 8] and means[0].tolist() == [0.5, 3.0, 6.0, 8.5] and means.shape == (2, 4)
    assert np.array_equal(binned(table, 99)[0], table)


# prefix_triples


def words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())


@pytest.fixture(scope="module")
def triples() -> list[Triple]:
    return PrefixTriples().triples()


def continuations(triple: Triple) -> tuple[list[str], list[str], list[str]]:
    query, positive, negative = (words(text) for text in triple)
    begin = shared_prefix([query, positive, negative])  # type: ignore[list-item]
    return query[begin:], positive[begin:], negative[begin:]


def test_our_triples_share_a_prefix_and_go_on_differently(triples: list[Triple]) -> None:
    assert len(triples) >= 60
    assert len({text.casefold() for triple in triples for text in triple}) == 3 * len(triples)
    prefixes = set()
    for triple in triples:
        after = continuations(triple)
        shared = len(words(triple.query)) - len(after[0])
        assert shared >= 5 and all(4 <= len(one) <= 10 for one in after), triple
        prefixes.add(" ".join(words(triple.query)[:shared]))
        assert triple.query[0].isupper() and all(text[-1] in ".?" for text in triple)
    assert len(prefixes) == len(triples)
    assert len({words(triple.query)[0] for triple in triples}) > 35  # not one pattern of sentence over and over


def test_our_prefixes_are_shared_token_by_token(triples: list[Triple]) -> None:
    tokenizer = make_tiny_tokenizer()
    for triple in triples:
        rows = [tokenizer(text).input_ids for text in triple]
        begin = tokenizer.decode(rows[0][: shared_prefix(rows)])
        assert all(text.startswith(begin) for text in triple)
        assert len(words(begin)) >= len(words(triple.query)) - len(continuations(triple)[0])


def test_neither_length_nor_shared_words_tell_our_triples_apart(triples: list[Triple]) -> None:
    after = [continuations(triple) for triple in triples]

    def told_apart(nearness: Any) -> float:
        margins = np.array([nearness(q, p) - nearness(q, n) for q, p, n in after])
        return float(((margins > 0) + 0.5 * (margins == 0)).mean())

    overlap = told_apart(lambda a, b: len({*a} & {*b}) / len({*a} | {*b}))
    lengths = told_apart(lambda a, b: -abs(len(a) - len(b)))
    letters = told_apart(lambda a, b: -abs(len("".join(a)) - len("".join(b))))
    assert 0.35 < overlap < 0.6 and 0.35 < lengths < 0.6 and 0.35 < letters < 0.6
    assert abs(np.mean([len(p) - len(n) for _, p, n in after])) < 0.5


def test_prefix_cosines_are_those_of_each_text_alone(encoder: Encoder) -> None:
    task = PrefixTriples(batch_size=5)
    found = task.cosines(encoder)
    for row, triple in list(enumerate(task.triples()))[::9]:
        ids = [encoder.backbone.tokenizer(text).input_ids for text in triple]
        prefix = shared_prefix(ids)
        with torch.inference_mode():
            pooled = [encoder.backbone(torch.tensor([one]), torch.ones(1, len(one)).long())[0, :prefix] for one in ids]
        query, *others = (states.double().mean(dim=0) for states in pooled)
        expected = [torch.cosine_similarity(query, other, dim=0).item() for other in others]
        assert found[row] == pytest.approx(expected, abs=1e-5)


def test_a_causal_model_ties_and_a_bidirectional_one_does_not(tiny_model: Path) -> None:
    causal, both_ways = (
        PrefixTriples().evaluate("prefix", Encoder.from_pretrained(tiny_model, attention=kind), KEPT)
        for kind in ("causal", "bidirectional")
    )
    details = causal["prefix"]["details"]
    assert causal["prefix"]["value"] == 0.5 and details["ties"] == details["triples"] == 72
    assert np.allclose(causal["prefix"]["plot"]["positive"] + causal["prefix"]["plot"]["negative"], 1, atol=1e-6)
    assert abs(causal["prefix_margin"]["value"]) < 1e-6
    details, plot = both_ways["prefix"]["details"], both_ways["prefix"]["plot"]
    margins = np.array(plot["positive"]) - plot["negative"]
    assert details["ties"] == 0 and both_ways["prefix"]["value"] == np.mean(margins > 0)
    assert both_ways["prefix_margin"]["value"] == details["margin"] == pytest.approx(margins.mean(), abs=1e-6)


def test_triples_of_a_users_file(tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "mine.csv"
    with file.open("w", newline="") as out:
        rows = [("a cat sat on a mat", "a cat sat on the mat", "a cat sat in a house")]
        csv.writer(out).writerows([("q", "same", "other"), *rows])
    task = PrefixTriples(str(file), query="q", positive="same", negative="other")
    encoder = Encoder.from_pretrained(tiny_model)
    assert task.triples() == [Triple(*rows[0])] and task.cosines(encoder).shape == (1, 2)
    file.write_text("q,same,other\nA cat,The cat,A dog\n")
    with pytest.raises(L2VError, match="shares no first token.*A cat"):
        task.cosines(encoder)
    file.write_text("q,same,other\na,b,b\n")
    with pytest.raises(L2VError, match=r"mine\.csv:2: the positive and the negative are the same text"):
        task.check(KEPT)
    with pytest.raises(L2VError, match="no column 'query'"):
        PrefixTriples(str(file)).check(KEPT)
    with pytest.raises(L2VError, match="no such file"):
        PrefixTriples("nowhere.jsonl")


# pooling


@dataclass(frozen=True)
class Norms(Task):
    """A task that can be worked out by hand from vectors."""

    label: str = "Norms"
    metric: str = "sum"
    needs_head: bool = False

    def run(self, encoder: Encoder, *, show: bool = False) -> dict[str, float]:
        vectors = encoder.encode(SENTENCES, batch_size=4)
        again = encoder.encode(SENTENCES[:2], normalize=True, truncate_dim=8)
        return {"sum": float(np.linalg.norm(vectors, axis=1).sum() + again.sum())}


def test_poolings_are_those_of_an_encoder_each(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.from_pretrained(tiny_model)
    rows = []
    forward = encoder.backbone.forward

    def counted(input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        rows.append(len(input_ids))
        return forward(input_ids, *args, **kwargs)

    task = PoolingAblation({"norms": Norms(), "masked": MaskedAccuracy(Sentences())}, ("last_token", "mean", "bos"))
    with monkeypatch.context() as patch:
        patch.setattr(encoder.backbone, "forward", counted)
        scores = task.evaluate("pooling", encoder, KEPT)
    assert sum(rows) == len(SENTENCES)  # each text ran once
    assert list(scores) == ["pooling_last_token", "pooling_mean", "pooling_bos"] and task.chosen.keys() == {"norms"}
    for pooling in ("last_token", "mean", "bos"):
        alone = Norms().run(Encoder.from_pretrained(tiny_model, pooling=pooling))["sum"]
        assert scores[f"pooling_{pooling}"]["value"] == pytest.approx(alone, rel=1e-5)
    plot = scores["pooling_last_token"]["plot"]
    assert plot["tasks"][0]["values"] == {p: scores[f"pooling_{p}"]["value"] for p in ("last_token", "mean", "bos")}


def test_what_is_kept_of_a_text_depends_on_its_instruction(tiny_model: Path) -> None:
    encoder = Encoder.from_pretrained(tiny_model)
    every = EveryPooling(encoder, ("mean", "weighted_mean"))
    plain, instructed = every.encode(SENTENCES), every.encode(SENTENCES, instruction="Find")
    assert np.allclose(plain, encoder.encode(SENTENCES), atol=1e-5)
    assert np.allclose(instructed, encoder.encode(SENTENCES, instruction="Find"), atol=1e-5)
    assert np.abs(plain - instructed).max() > 0.01


def test_texts_are_cut_as_the_encoder_cuts_them(tiny_model: Path) -> None:
    encoder = Encoder.from_pretrained(tiny_model, text_max_length=4)
    found = EveryPooling(encoder, ("mean", "weighted_mean")).encode(SENTENCES)
    assert np.allclose(found, encoder.encode(SENTENCES), atol=1e-5)
    assert np.abs(found - Encoder.from_pretrained(tiny_model).encode(SENTENCES)).max() > 0.01


def test_a_first_token_is_pooled_where_there_is_one_that_has_seen_the_text(tmp_path: Path, tiny_model: Path) -> None:
    plain = ("last_token", "mean", "weighted_mean")
    assert default_poolings(Encoder.from_pretrained(tiny_model)) == plain
    with_bos = make_tiny_model(tmp_path / "bos", bos=True)
    assert default_poolings(Encoder.from_pretrained(with_bos)) == (*plain, "bos")
    assert default_poolings(Encoder.from_pretrained(with_bos, attention="causal")) == plain


def test_tasks_that_cannot_be_averaged_are_refused(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("5\ta\tb\n1\tc\td\n")
    geometry = Geometry(StsPairs(str(pairs), first=1, second=2, score=0))
    with pytest.raises(L2VError, match=r"tasks\.geometry: lower is better"):
        PoolingAblation({"geometry": geometry})
    with pytest.raises(L2VError, match="no task with vectors"):
        PoolingAblation({"masked": MaskedAccuracy(Sentences())})


def test_a_comparison_is_pinned_by_the_data_of_its_tasks(tmp_path: Path, tiny_model: Path) -> None:
    pairs = tmp_path / "pairs.tsv"
    found = []
    for text in ("5\ta\tb\n1\tc\td\n3\te\tf\n", "5\ta\tb\n1\tc\te\n3\te\tf\n"):
        pairs.write_text(text)
        task = PoolingAblation({"sts": StsPairs(str(pairs), first=1, second=2, score=0)})
        found.append(evaluate(EncoderSettings(str(tiny_model)), {"p": task}, suite="s", folder=tmp_path, show=False))
    assert found[0]["fingerprint"] != found[1]["fingerprint"]


def test_the_tasks_of_any_suite_can_be_compared(tmp_path: Path) -> None:
    from quick_folder import write_quick_folder

    overrides = ["encoder=none", "evaluation=pooling", "evaluation@evaluation.of=quick"]
    suite = configs.plain(composed("evaluate", [*overrides, f"evaluation.folder={write_quick_folder(tmp_path)}"]))
    task = configs.build(suite["evaluation"]["tasks"], "evaluation.tasks")["pooling"]
    assert list(task.chosen) == ["stsbenchmark", "sickr", "scifact", "banking77", "stackoverflow"]
    suite = configs.plain(composed("evaluate", overrides[:2]))
    assert list(configs.build(suite["evaluation"]["tasks"], "evaluation.tasks")["pooling"].chosen) == [
        "lee",
        "wikipedia",
    ]


def test_mteb_tasks_are_compared_with_a_file_of_scores_each(tmp_path: Path, tiny_model: Path) -> None:
    pytest.importorskip("mteb", reason="the extra mteb is not installed")
    clusters = clustering(tmp_path)
    poolings = ("mean", "last_token")
    task = PoolingAblation({"topics": clusters}, poolings)
    found = evaluate(EncoderSettings(str(tiny_model)), {"p": task}, suite="s", folder=tmp_path / "out", show=False)[
        "scores"
    ]
    for pooling in poolings:
        own = EncoderSettings(str(tiny_model), pooling=pooling)
        alone = evaluate(own, {"topics": clusters}, suite="alone", folder=tmp_path / pooling, show=False)
        assert found[f"p_{pooling}"]["value"] == pytest.approx(alone["scores"]["topics"]["value"], abs=1e-6)
    assert len(list((tmp_path / "out").rglob("topics*.json"))) == 2


# embedding_map


def clustering(folder: Path) -> ClusteringSet:
    rows = [
        {"text": f"{SENTENCES[place]} {number}", "label": f"kind {place}"} for number in range(6) for place in range(3)
    ]
    (folder / "topics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ClusteringSet(name="topics", files=str(folder / "topics.jsonl"))


def test_a_map_has_a_point_for_each_text_and_the_scores_of_the_vectors(tmp_path: Path, tiny_model: Path) -> None:
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    encoder = Encoder.from_pretrained(tiny_model)
    task = EmbeddingMap(clustering(tmp_path), neighbours=4)
    task.check(KEPT)
    scores = task.evaluate("map", encoder, KEPT)
    plot = scores["map"]["plot"]
    assert plot["labels"] == ["kind 0", "kind 1", "kind 2"] and plot["label"] == [0, 1, 2] * 6
    points = np.array(plot["points"])
    assert points.shape == (18, 2) and points.min() == 0 and points.max() == 1
    assert scores == task.evaluate("map", encoder, KEPT)  # seeded
    vectors = encoder.encode(task.evaluated_texts())
    labels = np.array(plot["label"])
    near = NearestNeighbors(n_neighbors=5, metric="cosine").fit(vectors).kneighbors(vectors)[1]
    expected = np.mean(
        [np.mean(labels[[n for n in row if n != own][:4]] == labels[own]) for own, row in enumerate(near)]
    )
    assert scores["map"]["value"] == pytest.approx(expected)
    silhouette = silhouette_score(vectors, labels, metric="cosine")
    assert scores["map_silhouette"]["value"] == pytest.approx(silhouette, abs=1e-5)
    fewer = EmbeddingMap(clustering(tmp_path), neighbours=4, points=7, method="pca").evaluate("map", encoder, KEPT)
    assert len(fewer["map"]["plot"]["points"]) == 7 and fewer["map"]["value"] == scores["map"]["value"]


@pytest.mark.parametrize("block", [2, 1024])
def test_purity_equals_a_loop(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(embedding_map, "_BLOCK", block)
    generator = np.random.default_rng(0)
    vectors = unit(generator.normal(size=(13, 4)))
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3])  # 3 is alone
    shares = []
    for own in range(12):
        neighbours = min(5, (labels == labels[own]).sum() - 1)
        others = sorted((n for n in range(13) if n != own), key=lambda n: -vectors[own] @ vectors[n])[:neighbours]
        shares.append(sum(labels[n] == labels[own] for n in others) / neighbours)
    assert 0 < np.mean(shares) < 1 and purity(vectors, labels, 5) == pytest.approx(np.mean(shares))


def test_groups_that_lie_apart_are_pure_whatever_their_size() -> None:
    assert purity(np.repeat(np.eye(3), [2, 5, 9], axis=0), np.repeat([0, 1, 2], [2, 5, 9]), 10) == 1


def test_principal_components_keep_distances_and_are_ordered() -> None:
    vectors = np.random.default_rng(0).normal(size=(9, 4)) * [5, 1, 3, 0.5]
    places = principal(vectors, 50)
    assert places.shape == (9, 4) and (np.diff(places.var(axis=0)) <= 0).all()
    for a, b in itertools.combinations(range(9), 2):
        assert np.linalg.norm(places[a] - places[b]) == pytest.approx(np.linalg.norm(vectors[a] - vectors[b]))


def test_texts_without_groups_are_told_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": t, "label": t}) + "\n" for t in SENTENCES))
    texts = ClusteringSet(name="t", files=str(tmp_path / "t.jsonl"))
    with pytest.raises(L2VError, match="6 texts with 6 labels"):
        EmbeddingMap(texts).check(KEPT)
    with pytest.raises(L2VError, match="18 texts; expected more than neighbours=18"):
        EmbeddingMap(clustering(tmp_path), neighbours=18).check(KEPT)


def test_wikipedia_passages_are_of_the_longest_articles() -> None:
    pytest.importorskip("gensim", reason="the package gensim, which holds the texts, is not installed")
    rows = WikipediaPassages(articles=3, passages=5, words=20).rows()
    assert len(rows) == len({text for text, _ in rows}) == 15 and len({label for _, label in rows}) == 3
    assert all(len(text.split()) == 20 for text, _ in rows)


def test_tasks_with_one_label_count_each_and_vectors_of_length_one_stay_so(tmp_path: Path, tiny_model: Path) -> None:
    for name, pairs in (("one", "5\ta\tb\n1\tc\td\n3\te\tf\n"), ("two", "1\ta\tb\n5\tc\td\n3\te\tg\n")):
        (tmp_path / name).with_suffix(".tsv").write_text(pairs)
    tasks = {name: StsPairs(str(tmp_path / f"{name}.tsv"), first=1, second=2, score=0) for name in ("one", "two")}
    encoder = Encoder.from_pretrained(tiny_model)
    (entry,) = PoolingAblation(tasks, ("mean",)).evaluate("p", encoder, KEPT).values()
    assert len(entry["details"]) == 2
    assert entry["value"] == pytest.approx(sum(entry["details"].values()) / 2)
    assert len({task["label"] for task in entry["plot"]["tasks"]}) == 2
    encoder.normalized = True
    lengths = np.linalg.norm(EveryPooling(encoder, ("mean", "last_token")).encode(SENTENCES), axis=1)
    assert lengths == pytest.approx(np.ones(len(SENTENCES)), abs=1e-5)
