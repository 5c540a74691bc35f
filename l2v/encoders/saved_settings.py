"""What a saved encoder says of itself: l2v's own file, else that of sentence-transformers."""

from typing import Any

from l2v.errors import L2VError
from l2v.pooling.pooling import POOLINGS, Pooling
from l2v.runs.adapter_folders import SETTINGS_FILE
from l2v.runs.files import read_json
from l2v.runs.locations import Source, model_file

_SENTENCE_TRANSFORMERS_POOLING: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last_token",
    "pooling_mode_cls_token": "bos",
}
_NEWER_POOLING: dict[str, Pooling] = {
    "mean": "mean",
    "weightedmean": "weighted_mean",
    "lasttoken": "last_token",
    "cls": "bos",
}


def saved_settings(place: Source) -> dict[str, Any]:
    """What a folder or hub repository says of its pooling, attention and lengths: l2v's own file, else that of
    sentence-transformers."""
    model = model_file(place, "config.json")
    if own := model_file(place, SETTINGS_FILE):
        if not isinstance(found := read_json(own), dict):
            raise L2VError(f"{own}: expected an object of settings, found {type(found).__name__}")
        return found
    if modules := model_file(place, "modules.json"):
        kinds = [module["type"].rsplit(".", 1)[-1] for module in read_json(modules)]
        # a final Normalize changes no cosine; encode(normalize=True) does the same
        if odd := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
            raise L2VError(
                f"{modules}: {', '.join(odd)}: a module that l2v does not have; expected Transformer, Pooling"
            )
    pooling_file = model_file(place, "1_Pooling/config.json")
    if pooling_file is None:
        return {}
    config = read_json(pooling_file)
    modes: list[Pooling] = [ours for key, ours in _SENTENCE_TRANSFORMERS_POOLING.items() if config.get(key)]
    if config.get("pooling_mode") in _NEWER_POOLING:
        modes = [_NEWER_POOLING[config["pooling_mode"]]]
    if len(modes) != 1:
        raise L2VError(f"{pooling_file}: no pooling that l2v knows; choose one of {', '.join(POOLINGS)}")
    settings: dict[str, Any] = {"pooling": modes[0]}
    lengths = model_file(place, "sentence_bert_config.json")
    if lengths and (length := read_json(lengths).get("max_seq_length")):
        settings["max_length"] = length
    if model and read_json(model).get("is_causal") is not False:
        settings["attention"] = "causal"
    return settings
