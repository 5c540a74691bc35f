"""A model folder that transformers 5 wrote, as transformers 4.44 reads it."""

import json
import shutil
from pathlib import Path


def write_transformers4(folder: Path, target: Path) -> None:
    """Copy a Llama folder, with its config and tokenizer in the words of transformers 4.44 and tokenizers 0.19.

    Loaded as it is, such a folder would go wrong without a word: transformers 4 does not know ``rope_parameters`` and
    takes its own default of 10000 for the base of the rotary positions.
    """
    target.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.safetensors*"):
        shutil.copy(file, target)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters")
    if rope["rope_type"] != "default":
        raise SystemExit(f"{folder}: rotary positions of type {rope['rope_type']}; expected default")
    config |= {"rope_theta": rope["rope_theta"], "torch_dtype": config.pop("dtype")}
    _write(target / "config.json", config)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    _write(target / "tokenizer.json", tokenizer)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    known = ("bos_token", "eos_token", "pad_token", "unk_token", "model_max_length")
    settings = {key: settings[key] for key in known if key in settings}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    _write(target / "tokenizer_config.json", settings)


def _write(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
