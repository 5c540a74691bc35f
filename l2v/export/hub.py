"""An exported folder on the Hugging Face hub."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from l2v.errors import L2VError, first_line
from l2v.export.export import Export
from l2v.runs.adapter_folders import NORMALIZE_FOLDER, POOLING_FOLDER
from l2v.runs.initialization import Initialization


def check_hub(repository: str, wanted: Export, start: Initialization) -> None:
    """See that the hub can be written to, before anything is made.

    Raises:
        L2VError: no name, no token, no network; or what is pushed needs what others do not have.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise L2VError(f"push={repository}: {first_line(error)}; expected <owner>/<name>") from None
    if repository.count("/") != 1:
        raise L2VError(f"push={repository}: expected <owner>/<name>")
    if wanted.form == "adapter" and start.base.is_local:
        raise L2VError(f"push={repository}: others do not have the base {start.base.path}; choose form=merged")
    if get_token() is None:
        raise L2VError(f"push={repository}: no token for the hub; log in with `hf auth login`, or set HF_TOKEN")
    with _told_of(repository):
        HfApi().whoami()


def _is_of_an_export(name: str) -> bool:
    """Whether an export that was pushed before wrote a file: it would be read beside, or in place of, those of now."""
    folder, _, file = name.rpartition("/")
    if folder in ("", POOLING_FOLDER, NORMALIZE_FOLDER):
        return Path(file).suffix in (".json", ".jinja", ".safetensors") or file.startswith("adapter_")
    return name == "onnx/model.onnx"


def push_folder(folder: Path, repository: str, *, private: bool = True) -> str:
    """Upload an exported folder to the hub.

    Args:
        folder: an exported encoder.
        repository: owner/name; made where it is not there.
        private: of a repository that is made now.

    Returns:
        its address.

    Raises:
        L2VError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    with _told_of(repository):
        api = HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True)
        before = [name for name in api.list_repo_files(repository) if _is_of_an_export(name)]
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="l2v.export", delete_patterns=before)
    return str(address)


@contextlib.contextmanager
def _told_of(repository: str) -> Iterator[None]:
    """Turn whatever the hub or the network answers into one line."""
    try:
        yield
    except Exception as error:  # of huggingface_hub or its HTTP library, which it has changed before
        raise L2VError(f"push={repository}: the hub cannot be written to ({first_line(error)})") from error
