"""What l2v asks of the package mteb: tasks, their data and texts, results that are kept."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from l2v.encoders.text_encoder import TextEncoder
from l2v.errors import L2VError, first_line
from l2v.evaluation.results import ResultStore
from l2v.extras import require
from l2v.process import level_of
from l2v.progress import say


def mteb_package() -> Any:
    """The package.

    Raises:
        L2VError: it is not installed.
    """
    require("evaluation", "mteb", "sentence_transformers")  # mteb imports the latter at an evaluation
    import mteb

    return mteb


def subtasks(task: Any) -> list[Any]:
    """The tasks that an aggregated one (CQADupstack) is made of; else itself."""
    return list(task.metadata.tasks) if task.is_aggregate else [task]


def result_cache(store: ResultStore) -> Any:
    """mteb's cache of results, in ``store.folder``."""
    from mteb.cache import ResultCache

    return ResultCache(store.folder)


def known_result(task: Any, store: ResultStore) -> Any:
    """The result that is kept of a task on the same encoder and data; None where there is none."""
    file = result_cache(store).get_task_result_path(task.metadata.name, store.encoder, store.fingerprint)
    if not file.exists():
        return None
    from mteb.results import TaskResult

    try:
        result = TaskResult.from_disk(file)
    except (ValueError, KeyError):  # cut off while it was written
        return None
    same = result.dataset_revision == task.metadata.revision
    return result if same and not result.get_missing_evaluations(task) else None


def mteb_encoder(
    encoder: TextEncoder, store: ResultStore, instruction: Callable[[Any], str | None], batch_size: int, show: bool
) -> Any:
    """The encoder as mteb takes a model; ``instruction`` maps a task's metadata to its instruction."""
    from l2v.evaluation.mteb.model import MtebEncoder

    return MtebEncoder(
        encoder,
        name=store.encoder,
        revision=store.fingerprint,
        instruction=instruction,
        batch_size=batch_size,
        show=show,
    )


def load(task: Any) -> None:
    """Load a task's data, unless they are.

    Raises:
        L2VError: they cannot be.
    """
    if task.data_loaded:
        return
    try:
        task.load_data()
    except Exception as error:  # of datasets, huggingface_hub or mteb, which have many
        place = task.metadata.dataset["path"]
        raise L2VError(f"{task.metadata.name}: its data {place} cannot be loaded ({first_line(error)})") from error


def texts_of(task: Any) -> Iterator[str]:
    """The texts of a loaded task's evaluated splits: of retrieval the queries and the documents with their titles."""
    yield from _texts_in(task.dataset, set(task.metadata.eval_splits))


def _texts_in(node: Any, splits: set[str]) -> Iterator[str]:
    if isinstance(node, Mapping):
        of_splits = splits & node.keys()
        for key, part in node.items():
            if key not in _JUDGEMENTS and (key in of_splits or not of_splits):
                yield from _texts_in(part, splits)
    elif hasattr(node, "column_names"):
        columns = [name for name in node.column_names if not name.startswith("label") and name not in _NO_TEXT]
        for row in node.select_columns(columns):
            if {"title", "text"} <= row.keys():
                row = {"text": f"{row['title'] or ''} {row['text']}".strip()}
            yield from _strings(list(row.values()))


_JUDGEMENTS = {"relevant_docs", "top_ranked"}
_NO_TEXT = {"id", "_id", "lang"}


def _strings(value: Any) -> Iterator[str]:
    """The strings in a row, which may be in lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def run_task(task: Any, model: Any, cache: Any, predictions: Path | None = None) -> Any:
    """A task's result, which is kept, and in a folder what was predicted for each text; one line is said."""
    import mteb

    begin = time.monotonic()
    load(task)
    with warnings.catch_warnings(), _no_bars(), level_of("mteb"):
        warnings.simplefilter("ignore")
        found = mteb.evaluate(
            model,
            task,
            cache=cache,
            overwrite_strategy="always",
            prediction_folder=predictions,
            encode_kwargs={"batch_size": model.batch_size, "show_progress_bar": False},
            show_progress_bar=False,
            co2_tracker=False,
        )
    result = found.task_results[0]
    say(f"{task.metadata.name}: {result.get_score():.4f} ({time.monotonic() - begin:.0f} s)")
    return result


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Without the progress bars of datasets, which mteb leaves on for its own preparations."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()


def hub_answers() -> bool:
    """Whether the hub can be reached."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10, follow_redirects=True).raise_for_status()
    except Exception:  # offline mode, or of the HTTP library, which huggingface_hub has changed before
        return False
    return True


def in_hub_cache(path: str) -> bool:
    """Whether a data set was downloaded before, by huggingface_hub or by datasets."""
    import datasets
    from huggingface_hub import constants

    downloaded = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}" / "snapshots"
    prepared = Path(datasets.config.HF_DATASETS_CACHE) / path.replace("/", "___")
    return downloaded.is_dir() or prepared.is_dir()
