"""A folder of a teacher's vectors as encode.py leaves it, without its shards."""

import json
from pathlib import Path

from l2v.runs.hashes import file_hash


def write_taught_folder(folder: Path, texts: Path) -> list[str]:
    """Overrides of stage=distillation, with a manifest that says it is of these texts, a line each."""
    folder.mkdir(parents=True)
    files = [{"file": str(texts), "sha256": file_hash(texts), "rows": 20}]
    pinned = {"files": [[file_hash(texts), texts.suffix]]}
    about = {"finished": "today", "files": files, "pinned": pinned, "rows": 20, "dimension": 8}
    manifest = {**about, "shards": [{"sha256": "0"}]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return [f"data.train.files={texts}", f"data.train.vectors={folder}", "data.held_out=5"]
