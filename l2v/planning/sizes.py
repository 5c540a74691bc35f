"""The sizes of models, as the ``config.json`` of their repositories on the hub has them.

``models/<option of the group model>.json`` has what decides shapes, read off the published ``config.json`` of
``_name_or_path``; a test holds the number of parameters that come out against the one that ``conf/model`` says.
"""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from l2v.errors import L2VError, first_line
from l2v.runs.locations import locate

SIZES = Path(__file__).parent / "models"


def model_config(source: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a model that l2v knows, or of a folder. Nothing is downloaded.

    Raises:
        L2VError: neither.
    """
    for file in sorted(SIZES.glob("*.json")):
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if settings.pop("_name_or_path") == source:
            return AutoConfig.for_model(**settings)
    place = locate(source)
    if not place.is_local or place.gguf_file:
        known = ", ".join(file.stem for file in sorted(SIZES.glob("*.json")))
        raise L2VError(
            f"model.source={source}: its sizes are not in l2v; name a folder with its config.json, or model= one of "
            f"{known}"
        )
    try:
        return AutoConfig.from_pretrained(place.path, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise L2VError(f"model.source={source}: its config.json cannot be read ({first_line(error)})") from None
