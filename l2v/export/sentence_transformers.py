"""Exported adapters and poolings in sentence-transformers, which imports these classes by their names.

Needs that package, so nothing in l2v imports this module.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.utils import cached_file

try:
    from sentence_transformers.sentence_transformer.modules import Transformer
except ModuleNotFoundError:  # before version 6
    from sentence_transformers.models import Transformer  # type: ignore[no-redef]

from l2v.encoders.saved_settings import pooling_of
from l2v.models.bidirectional import set_attention
from l2v.pooling import Pooling
from l2v.runs.adapter_folders import SETTINGS_FILE
from l2v.runs.files import read_json
from l2v.runs.locations import locate


class BidirectionalTransformer(Transformer):
    """sentence-transformers' own module, attending both ways.

    Where a folder holds an adapter, sentence-transformers reads the config of the base, which is causal, and has no
    setting to change it. So the ``modules.json`` of ``form=adapter`` names this class. With ``trust_remote_code=True``,
    which sentence-transformers asks for before it imports a class of another package, the folder gives the right
    vectors; without it, or without l2v, an error, and never the vectors of causal attention.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        set_attention(self.auto_model, "bidirectional")


class OwnPooling(nn.Module):
    """A pooling of one's own (:class:`l2v.pooling.Pooling`) as a module of sentence-transformers.

    ``modules.json`` names this class where an encoder has such a pooling, so loading it asks for
    ``trust_remote_code=True``, and the package that the pooling is from has to be imported before, or be named in the
    environment variable ``L2V_ALLOW_MODULES``.
    """

    def __init__(self, pooling: Pooling, dimension: int) -> None:
        super().__init__()
        self.pooling, self.dimension = pooling, dimension

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        mask: Tensor = features["attention_mask"]
        text = mask.clone()
        if prompt := features.get("prompt_length"):
            text[:, : int(prompt)] = 0
        features["sentence_embedding"] = self.pooling(features["token_embeddings"], text, mask)
        return features

    def get_embedding_dimension(self) -> int:
        return self.dimension

    get_sentence_embedding_dimension = get_embedding_dimension

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **settings: Any) -> "OwnPooling":
        """From the folder or repository of the whole encoder."""
        where = {key: settings.get(key) for key in ("token", "cache_folder", "revision", "local_files_only")}
        where["cache_dir"] = where.pop("cache_folder")
        file = cached_file(model_name_or_path, SETTINGS_FILE, **where)
        own = read_json(Path(str(cached_file(model_name_or_path, "config.json", subfolder=subfolder, **where))))
        place = locate(str(Path(str(file)).parent))
        size = int(own["word_embedding_dimension"])
        pooling = pooling_of(read_json(Path(str(file))), size, place)
        assert isinstance(pooling, Pooling)
        return cls(pooling, size)

    def save(self, output_path: str, *args: Any, **settings: Any) -> None:
        raise NotImplementedError("save the encoder by l2v, which wrote it")
