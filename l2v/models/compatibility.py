"""What transformers 4, which many servers still run, reads otherwise in the files that transformers 5 writes."""

from pathlib import Path
from typing import Any

from l2v.runs.files import read_json, write_json


def write_for_transformers_4(folder: Path) -> None:
    """Say in a saved model's files what version 4 reads there too; version 5 reads them as before.

    Version 4 knows no tokenizer of the class ``TokenizersBackend``, and passes over ``rope_parameters``: without
    ``rope_theta`` it would place the tokens by a base of 10,000, whatever the model's is, and give other vectors.
    Parameters by kind of layer (Gemma 3) have no such form and stay as they are.
    """
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file() and (settings := read_json(tokenizer)).get("tokenizer_class") == "TokenizersBackend":
        write_json(tokenizer, {**settings, "tokenizer_class": "PreTrainedTokenizerFast"})
    if not (folder / "config.json").is_file():  # of an adapter
        return
    config: dict[str, Any] = read_json(folder / "config.json")
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        config["rope_theta"] = rope["rope_theta"]
        config["rope_scaling"] = scaling if scaling.get("rope_type", "default") != "default" else None
        if "partial_rotary_factor" in scaling:
            config["partial_rotary_factor"] = scaling["partial_rotary_factor"]
        write_json(folder / "config.json", config)
