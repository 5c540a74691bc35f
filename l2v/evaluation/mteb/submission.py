"""What a submission to MTEB takes: a run's scores as its leaderboard lays them out, and the model's metadata."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2v.encoders.encoder import Encoder
from l2v.errors import L2VError
from l2v.evaluation.mteb.benchmark import Instructions, store_with
from l2v.evaluation.mteb.package import mteb_package, result_cache
from l2v.evaluation.suite import result_store
from l2v.export.card import ancestors, config_of, count_stages
from l2v.models.settings import EncoderSettings
from l2v.runs.files import check_name, draft_folder, read_json, write_json, write_text
from l2v.runs.locations import Source
from l2v.runs.run import Run

_HELD = {
    "dureader": ("DuRetrieval",),
    "fever": ("FEVER",),
    "hotpot_qa": ("HotpotQA",),
    "miracl": ("MIRACLRetrieval",),
    "mrtydi": ("MrTidyRetrieval",),
    "msmarco_document": ("MSMARCO",),
    "msmarco_passage": ("MSMARCO",),
    "nq": ("NQ",),
    "quora_duplicates": ("QuoraRetrieval",),
    "t2ranking": ("T2Retrieval", "T2Reranking"),
    **dict.fromkeys(("allnli", "eli5_question_answer", "squad", "trivia_qa"), ()),
}
"""The sets of data=e5 by their names, and the tasks of mteb that are made of the same data."""
_HELD_BY = {
    "l2v.data.wikipedia.WikipediaExcerpt": (),
    "Salesforce/wikitext": (),
    "princeton-nlp/datasets-for-simcse": (),
}
"""Other training data that are known: a class, or a data set of the hub."""
BENCHMARKS = ("MTEB(eng, v1)", "MTEB(eng, v2)", "MTEB(Multilingual, v2)", "RTEB(beta)", "BEIR", "NanoBEIR", "BRIGHT")
"""Of which the share that is zero-shot is told."""
_NO_REVISION = "no_revision_available"
"""mteb's word for it."""


@dataclass(frozen=True)
class Submission:
    """What the run does not know of itself."""

    name: str | None = None
    """<owner>/<name> of the encoder on the hub; None: nothing is written."""
    revision: str | None = None
    """The commit there."""
    instructions: Instructions = "paper"
    """With which the scores were made."""
    trained_on: tuple[str, ...] | None = None
    """Tasks of mteb whose data were trained on, beside those of data sets that are known by name; None: they alone."""
    languages: tuple[str, ...] = ("eng-Latn",)
    license: str | None = None
    """In mteb's form, as apache-2.0."""
    release_date: str | None = None
    """Year-month-day."""

    def __post_init__(self) -> None:
        if self.name is not None:
            owner, slash, own = self.name.partition("/")
            if not slash:
                raise L2VError(f"mteb.name={self.name}: expected <owner>/<name>, as on the hub")
            for part in (owner, own):
                check_name(part, "mteb.name")


def check_submission(run: Run, submission: Submission) -> None:
    """Fail for what cannot be submitted, before anything is written.

    Raises:
        L2VError: mteb is not installed, does not take a setting, or there are no scores.
    """
    mteb_package()
    _model_meta(_told(run, submission))
    _scores(run, submission)


def _scores(run: Run, submission: Submission) -> list[Path]:
    """mteb's files of the run's scores, a task each."""
    subject = EncoderSettings(str(run.folder))
    store = store_with(result_store(subject, run.folder, subject.fingerprint()), submission.instructions)
    meta = result_cache(store).get_task_result_path("model_meta", store.encoder, store.fingerprint)
    found = sorted(file for file in meta.parent.glob("*.json") if file != meta)
    if not found:
        raise L2VError(
            f"mteb.name: {run.folder} has no scores of mteb's tasks with mteb.instructions={submission.instructions}; "
            f"first l2v evaluate encoder={run.folder} evaluation=mteb_v2"
        )
    return found


def write_submission(run: Run, encoder: Encoder, base: Source, folder: Path, submission: Submission) -> None:
    """Write ``results/<owner>__<name>/<revision>/`` for embeddings-benchmark/results, ``model_meta.py`` for mteb, and a
    README that names what of the benchmarks was trained on.

    Args:
        run: with scores.
        encoder: as it is exported.
        base: the original decoder.
        folder: where they go.
        submission: what to write, with a name.
    """
    assert submission.name is not None
    fields = _told(run, submission) | _measured(encoder)
    fields["adapted_from"] = None if base.is_local else base.name
    meta = _model_meta(fields)
    files = _scores(run, submission)
    with draft_folder(folder) as draft:
        results = draft / "results" / submission.name.replace("/", "__") / fields["revision"]
        results.mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, results / file.name)
        write_json(results / "model_meta.json", meta.to_dict())
        write_text(draft / "model_meta.py", _code(fields))
        write_text(draft / "README.md", _readme(run, meta, submission, len(files)))


def _told(run: Run, submission: Submission) -> dict[str, Any]:
    """The fields of mteb's ``ModelMeta`` that are known without the encoder; None for the others."""
    return {
        "name": submission.name,
        "revision": submission.revision or _NO_REVISION,
        "release_date": submission.release_date,
        "languages": list(submission.languages),
        "n_parameters": None,
        "memory_usage_mb": None,
        "max_tokens": None,
        "embed_dim": None,
        "license": submission.license,
        "open_weights": True,
        "public_training_code": None,
        "public_training_data": None,
        "framework": ["Sentence Transformers", "PyTorch", "Transformers", "safetensors"],
        "reference": f"https://huggingface.co/{submission.name}",
        "similarity_fn_name": "cosine",
        "use_instructions": submission.instructions != "none",
        "training_datasets": trained_on(run, submission),
        "adapted_from": None,
    }


def _measured(encoder: Encoder) -> dict[str, Any]:
    weights = list(encoder.backbone.decoder.parameters())
    return {
        "n_parameters": sum(weight.numel() for weight in weights),
        "memory_usage_mb": round(sum(weight.nbytes for weight in weights) / 2**20),
        "max_tokens": encoder.max_length,
        "embed_dim": encoder.dimension,
    }


def trained_on(run: Run, submission: Submission) -> set[str] | None:
    """Tasks of mteb whose data the run and those before it were trained on; None: nobody knows of some of the data."""
    runs = [run, *ancestors(run)]
    held = [_held(config_of(one).get("data", {}).get("train", {})) for one in runs]
    if submission.trained_on is None and (None in held or len(runs) < count_stages(run.lineage())):
        return None
    return set(submission.trained_on or ()).union(*(tasks for tasks in held if tasks is not None))


def _held(data: dict[str, Any]) -> set[str] | None:
    """Tasks of mteb that are in a run's training data; None: not known."""
    sets = data.get("sets")
    if sets and set(sets) <= set(_HELD):
        return {task for name in sets for task in _HELD[name]}
    for key in (data.get("path"), data.get("_target_")):
        if key in _HELD_BY:
            return set(_HELD_BY[key])
    return None


def overlaps(run: Run) -> list[tuple[str, str, int, int]]:
    """What ``l2v contamination`` found: run, task, texts found, texts looked for; where some were."""
    found = []
    for one in (*reversed(ancestors(run)), run):
        for file in sorted((one.folder / "contamination").glob("*.json")):
            for task in read_json(file)["tasks"].values():
                if task["texts_found"]:
                    looked_for = task["texts"] - task["too_short"]
                    found.append((one.folder.name, task["label"], task["texts_found"], looked_for))
    return found


def _model_meta(fields: dict[str, Any]) -> Any:
    from mteb.models.model_meta import ModelMeta
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
    from pydantic import ValidationError

    try:
        return ModelMeta(loader=SentenceTransformerEncoderWrapper, **fields)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise L2VError(f"mteb.{wrong['loc'][0]}={wrong['input']}: {wrong['msg']}") from None


def _code(fields: dict[str, Any]) -> str:
    """A Python module as mteb has one for each model."""
    variable = "".join(letter if letter.isalnum() else "_" for letter in fields["name"].partition("/")[2]).lower()
    told = {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}
    lines = [f"    {key}={_literal(key, value)}," for key, value in told.items()]
    return "\n".join(
        [
            "from mteb.models.model_meta import ModelMeta, ScoringFunction",
            "from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper",
            "",
            f"{variable if not variable[:1].isdigit() else '_' + variable} = ModelMeta(",
            "    loader=SentenceTransformerEncoderWrapper,",
            *lines,
            ")",
            "",
        ]
    )


def _literal(key: str, value: Any) -> str:
    if key == "similarity_fn_name":
        return "ScoringFunction.COSINE"
    if key == "training_datasets" and value is not None:
        return "{" + ", ".join(map(repr, value)) + "}" if value else "set()"
    return repr(value)


def _readme(run: Run, meta: Any, submission: Submission, tasks: int) -> str:
    known = meta.training_datasets
    return (
        "\n\n".join(
            [
                f"# {submission.name} at MTEB",
                f"Scores of {tasks} task{'s' * (tasks > 1)}, made by l2v with mteb's own classes "
                f"(instructions: {submission.instructions}).",
                "- `results/` goes into the repository embeddings-benchmark/results;\n"
                "- `model_meta.py` into `mteb/models/model_implementations/` of embeddings-benchmark/mteb.",
                "## Trained on",
                "Not known for all of the training data: name the tasks of mteb that are in them by "
                "`mteb.trained_on=[...]`, `[]` for none. Until then mteb counts no benchmark as zero-shot."
                if known is None
                else "Data of these tasks: " + (", ".join(sorted(known)) or "none") + ".",
                *_zero_shot(meta),
                "## Texts of the evaluation in the training data",
                *_overlaps(run),
            ]
        )
        + "\n"
    )


def _zero_shot(meta: Any) -> Iterable[str]:
    if meta.training_datasets is None:
        return
    mteb = mteb_package()
    rows = [f"| {name} | {meta.zero_shot_percentage(mteb.get_benchmark(name).tasks)}% |" for name in BENCHMARKS]
    yield "\n".join(["| benchmark | zero-shot |", "|---|--:|", *rows])


def _overlaps(run: Run) -> Iterable[str]:
    found = overlaps(run)
    looked = [one for one in (run, *ancestors(run)) if any((one.folder / "contamination").glob("*.json"))]
    if not looked:
        yield "Not looked for: `l2v contamination run=... evaluation=...` does, for each stage."
    elif not found:
        yield f"None was found in the data of {', '.join(one.folder.name for one in looked)}."
    else:
        rows = [f"| {name} | {task} | {count} of {of} |" for name, task, count, of in found]
        yield "\n".join(["| trained by | task | texts found |", "|---|---|--:|", *rows])
