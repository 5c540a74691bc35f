"""Which encoder, and how it is used: the one description that all programs share."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from l2v.models.bidirectional import Attention
from l2v.models.loading import DType
from l2v.models.quantization import Quantization
from l2v.pooling.pooling import Pooling
from l2v.runs.adapter_folders import Assembly, assemble
from l2v.runs.hashes import folder_hash, source_hash

_BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.model", "*.txt", "1_Pooling/*.json")
"""What decides an encoder's vectors beside its weights: config, tokenizer, pooling, settings."""


@dataclass(frozen=True)
class EncoderSettings:
    """What is evaluated."""

    source: str
    """A run folder, a model folder, a GGUF file, a hub id, or package:NAME/FILE.gguf."""
    attention: Attention | None = None
    """None: as it was saved, else bidirectional."""
    pooling: Pooling | None = None
    """None: as it was saved, else mean."""
    max_length: Annotated[int, Ge(1)] | None = None
    """Tokens; None: as it was saved, else 512."""
    template: str | None = None
    """With {text} in it, or chat; None: as it was saved, else none."""
    separator: str | None = None
    """Between an instruction and its text; None: as it was saved, else ":\\n"."""
    adapters: tuple[str, ...] = ()
    """Folders or hub ids of adapters to merge into it, in order."""
    dtype: DType = "float32"
    quantization: Quantization | None = None
    revision: str | None = None
    """Of a hub id."""
    partial: bool = False
    """Accept layers that stay causal."""
    trust_remote_code: bool = False

    def parts(self) -> Assembly:
        """The decoder and the adapters that it is put together from."""
        folder = Path(self.source).expanduser()
        source = str(folder / "encoder") if (folder / "run.json").exists() else self.source
        return assemble(source, self.adapters, revision=self.revision, override="encoder")

    def fingerprint(self) -> list[Any]:
        """What pins the vectors: the weights' hash and the settings."""
        parts = self.parts()
        beside = None
        if parts.base.is_local and not parts.base.gguf_file:
            beside = folder_hash(Path(parts.base.path), _BESIDE_WEIGHTS)
        adapters = [folder_hash(adapter, ("*.safetensors", "*.json")) for adapter in parts.adapters]
        settings = {name: value for name, value in asdict(self).items() if name not in ("source", "adapters")}
        return [source_hash(parts.base), beside, adapters, settings]
