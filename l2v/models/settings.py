"""Which encoder, and how it is used: the one description that the programs, the library and training share."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge

from l2v.errors import L2VError
from l2v.models.bidirectional import ATTENTIONS, Attention
from l2v.models.depth import check_layers, number_of_layers
from l2v.models.quantization import Quantization
from l2v.pooling import POOLINGS, Pooling, PoolingName, pooling_record
from l2v.runs.adapter_folders import Assembly, assemble, check_base, put_on
from l2v.runs.hashes import distinct_name, folder_hash, settings_hash, source_hash
from l2v.runs.lineage import check_encoder
from l2v.runs.locations import Source, commit_of
from l2v.runs.run import Run
from l2v.text.prompts import PooledTokens, SpecialTokens

DType = Literal["float32", "bfloat16", "float16"]
Kind = Literal["decoder", "encoder"]
AttnImplementation = Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"]
Checkpointing = bool | Literal["selective"]
Library = Literal["l2v", "sentence-transformers"]
Sharding = Literal["none", "optimizer", "weights", "zero3"]
"""What training splits over processes: nothing, optimizer and gradients (ZeRO-2), or weights too (FSDP2, ZeRO-3)."""

_BESIDE_WEIGHTS = (
    *("*.json", "*.jinja", "*.model", "*.txt", "*.py"),
    *("*_*/*.json", "*_*/*.safetensors", "*_*/*.bin", "*_*/*.py"),
)
"""What decides the vectors beside the weights: config, tokenizer, settings, modules of sentence-transformers, code."""
_CHOICES: dict[str, tuple[Any, ...]] = {
    "attention": ATTENTIONS,
    "attn_implementation": get_args(AttnImplementation),
    "dtype": get_args(DType),
    "kind": get_args(Kind),
    "library": get_args(Library),
    "pooling": POOLINGS,
    "pooled_tokens": get_args(PooledTokens),
    "special_tokens": get_args(SpecialTokens),
}
_OF_LOADING = ("partial", "kind", "trust_remote_code", "library")
"""Settings that decide how an encoder is loaded, and not which it is."""
_SPEAK_FOR_THEMSELVES = ("attention", "attn_implementation", "dtype", "quantization", "pooling")
"""Settings whose values have no other meaning."""
_LONGEST_LABEL = 40
"""Characters of one setting in a folder's name, without its hash."""


@dataclass(frozen=True)
class EncoderSettings:
    """An encoder: its source, how it is loaded, and how texts become vectors. None: as it was saved with the encoder.

    The config group ``conf/common/encoder.yaml`` has the same settings, and so have ``Encoder.from_pretrained`` and, of
    training, ``model=``.

    Example:
        >>> from l2v import EncoderSettings, load_encoder
        >>> settings = EncoderSettings("model", pooling="last_token", max_length=128)
        >>> load_encoder(settings).pooling
        'last_token'

    Raises:
        L2VError: a value that is none of those that a setting takes.
    """

    source: str
    """A run folder, a model folder (also one of sentence-transformers), an adapter (also a published one of LLM2Vec), a
    GGUF file, a hub id, or ``package:NAME/FILE.gguf``."""
    _: KW_ONLY
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    adapters: tuple[str, ...] = ()
    """Folders or hub ids of adapters to merge into the model, in order."""
    base: str | None = None
    """The model of an adapter in ``source``; None: the one that the adapter names."""
    attention: Attention | None = None
    """bidirectional or causal; else bidirectional."""
    attn_implementation: AttnImplementation = "auto"
    """``auto`` takes the first of flash_attention_2 (16 bit, on CUDA, where installed), sdpa and eager that the model
    supports and that is proven."""
    dtype: DType = "float32"
    """Of the weights. Adapters that are trained stay in float32."""
    layers: int | float | None = None
    """How many of the first layers are kept, as a whole number, or which share of them, as 0.7, with the final norm
    after them (:mod:`l2v.models.depth`); None: all that were saved."""
    quantization: Quantization | None = None
    """nf4 keeps the linear layers in 4 bits (a GPU and bitsandbytes), after merging; None does not."""
    partial: bool = False
    """Accept layers that cannot be made bidirectional; what was saved with such layers has it on."""
    kind: Kind = "decoder"
    """encoder: a model that attends both ways by itself, to compare decoders with (BERT)."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    pooling: PoolingName | Pooling | None = None
    """mean, weighted_mean, last_token, bos, or a pooling of one's own; else mean."""
    max_length: Annotated[int, Ge(1)] | None = None
    """Tokens of instruction, template and text; else 512."""
    text_max_length: Annotated[int, Ge(1)] | None = None
    """Tokens of the text alone; else no limit of its own."""
    template: str | None = None
    """With ``{text}`` where instruction and text go, or ``chat`` for the tokenizer's chat template; else none."""
    separator: str | None = None
    """Between an instruction and its text; else ``":\\n"``."""
    pooled_tokens: PooledTokens | None = None
    """after_prompt, text or all, see :class:`~l2v.text.prompts.Prompt`; else after_prompt."""
    special_tokens: SpecialTokens | None = None
    """What a special token that stands in a text is: tokens, or text; else tokens."""
    library: Library | None = None
    """What loads it; None: l2v, unless ``source`` is a folder or repository of sentence-transformers that only that
    library can load (an encoder such as BERT, or with modules that l2v has not)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", str(self.source))  # which may be a path
        if isinstance(self.adapters, str):
            raise L2VError(f"adapters={self.adapters}: expected a list of folders or hub ids, as [{self.adapters}]")
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if not (value is None or isinstance(value, Pooling)):
                check_choice(name, value, allowed)
        for name in ("max_length", "text_max_length"):
            check_length(name, getattr(self, name))
        check_layers("layers", self.layers)

    @property
    def folder(self) -> Path:
        """The source as a folder, which need not exist."""
        return Path(self.source).expanduser()

    @property
    def is_run(self) -> bool:
        return (self.folder / "run.json").exists()

    def parts(self, override: str = "encoder") -> Assembly:
        """The decoder and the adapters that it is put together from; ``override`` is what an error names."""
        if self.is_run:
            check_base(self.base, f"{override}={self.source} is a run, which says itself what it was trained on")
        if self.is_run and Run(self.folder).has_only_an_adapter:
            found = put_on(Run(self.folder).assembly(), self.adapters)
        else:
            source = str(self.folder / "encoder") if self.is_run else self.source
            found = assemble(source, self.adapters, base=self.base, revision=self.revision, override=override)
        return replace(found, base=self._kept(found.base))

    def _kept(self, base: Source) -> Source:
        """The layers of a base that are kept, which may have been fewer than its own."""
        if self.layers is None or base.layers is None:
            return base.shallower(self.layers)
        return base.shallower(number_of_layers(self.layers, int(base.layers)))

    def fingerprint(self) -> list[Any]:
        """What pins the vectors: the weights' hash and the settings.

        Raises:
            L2VError: the weights are not those that were written.
        """
        parts = self.parts()
        if self.is_run:
            remedy = f"resume={self.source} writes it anew, from its last checkpoint"
            check_encoder(self.folder / "encoder", self.folder / "lineage.json", remedy)
        else:
            check_encoder(self.folder, self.folder / "lineage.json", "put a copy in its place, or export the run again")
        beside = None
        if parts.base.is_local and not parts.base.gguf_file:
            beside = folder_hash(Path(parts.base.path), _BESIDE_WEIGHTS)
        adapters = [folder_hash(adapter, ("*.safetensors", "*.json")) for adapter in parts.adapters]
        settings = {name: value for name, value in vars(self).items() if name not in ("source", "adapters", "base")}
        if isinstance(self.pooling, Pooling):
            settings["pooling"] = pooling_record(self.pooling)
        return [source_hash(parts.base, commit_of(parts.base)), beside, adapters, settings, parts.base.layers]

    def usage(self, saved: dict[str, Any]) -> dict[str, Any]:
        """How texts become vectors: the settings that are given here, and for the others those that were saved."""
        names = ("pooling", "max_length", "text_max_length", "template", "separator", "pooled_tokens", "special_tokens")
        given = {name: getattr(self, name) for name in names}
        return saved | {name: value for name, value in given.items() if value is not None}

    def differences(self) -> dict[str, Any]:
        """The settings that are not their defaults, beside the source."""
        plain = EncoderSettings(self.source)
        return {name: value for name, value in vars(self).items() if value != getattr(plain, name)}

    def labels(self) -> list[str]:
        """The settings that are not their defaults as parts of a folder's name; two values of one have not the same.

        Those that decide only how the encoder is loaded are left out.
        """
        return [_label(name, value) for name, value in self.differences().items() if name not in _OF_LOADING]


def _label(name: str, value: Any) -> str:
    if name == "adapters":
        return "-".join((*(Path(adapter).name for adapter in value), settings_hash(value, 6)))
    if isinstance(value, Pooling):
        return f"{type(value).__name__}-{settings_hash(pooling_record(value), 6)}"
    return distinct_name(str(value) if name in _SPEAK_FOR_THEMSELVES else f"{name}-{value}", _LONGEST_LABEL)


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise an L2VError unless a setting has one of the values that it may have."""
    if value not in allowed:
        raise L2VError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_length(name: str, value: Any) -> None:
    """Raise an L2VError unless a setting is a number of tokens, or None."""
    if value is not None and (type(value) is not int or value < 1):
        raise L2VError(f"{name} must be a number of tokens, at least 1, got {value!r}")
