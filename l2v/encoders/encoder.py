"""The inference API: ``Encoder.from_pretrained(...).encode(texts)``."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from l2v.encoders.saved_settings import saved_settings
from l2v.errors import L2VError
from l2v.models.backbone import Backbone, row_groups
from l2v.models.bidirectional import ATTENTIONS, Attention
from l2v.models.loading import AttnImplementation, DType
from l2v.models.quantization import Quantization
from l2v.pooling.pooling import POOLINGS, Pooling
from l2v.progress import say, track
from l2v.runs.adapter_folders import SETTINGS_FILE, assemble
from l2v.runs.files import write_json
from l2v.runs.lineage import Lineage, lineage_base, lineage_head
from l2v.text.instructions import mteb_prompts
from l2v.text.prompts import SEPARATOR, PooledTokens, Prompt
from l2v.text.tokenization import Tokens, pad, tokenize

_TRANSFORMER, _POOLING = "sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"
_BIDIRECTIONAL_ADAPTED = "l2v.export.sentence_transformers.BidirectionalTransformer"
"""Classes by the names under which sentence-transformers imports them."""
CPU_PASS_TOKENS = 2048
"""Tokens, padding included, of a forward pass on a CPU: what it works on then stays in the processor's cache."""
TextInput = str | Sequence[str] | Sequence[tuple[str, str]]


class Encoder:
    """A text encoder: a backbone, a pooling, and the settings that go with them."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        pooling: Pooling = "mean",
        max_length: int = 512,
        text_max_length: int | None = None,
        prompt: Prompt | None = None,
        padding_side: str = "right",
    ) -> None:
        _check("pooling", pooling, POOLINGS)
        _check("padding_side", padding_side, ("right", "left"))
        _check_length("max_length", max_length)
        _check_length("text_max_length", text_max_length)
        self.backbone = backbone
        self.pooling: Pooling = pooling
        self.max_length = max_length
        self.text_max_length = text_max_length
        self.prompt = prompt or Prompt()
        self.padding_side = padding_side

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        pooling: Pooling | None = None,
        attention: Attention | None = None,
        attn_implementation: AttnImplementation = "auto",
        dtype: DType = "float32",
        max_length: int | None = None,
        text_max_length: int | None = None,
        separator: str | None = None,
        template: str | None = None,
        pooled_tokens: PooledTokens | None = None,
        adapters: Sequence[str | Path] = (),
        base: str | None = None,
        quantization: Quantization | None = None,
        revision: str | None = None,
        partial: bool = False,
        trust_remote_code: bool = False,
        device: str | torch.device | None = None,
        with_head: bool = False,
    ) -> "Encoder":
        """Load an encoder.

        Args:
            source: a run folder, a model folder (also one of sentence-transformers), an adapter (also a published one
                of LLM2Vec), a GGUF file, a hub id, or ``package:NAME/FILE.gguf``.
            pooling: mean, weighted_mean, last_token or bos; default: what was saved, else mean.
            attention: bidirectional or causal; default: what was saved, else bidirectional.
            attn_implementation: auto, eager, sdpa, flex_attention or flash_attention_2.
            dtype: float32, bfloat16 or float16.
            max_length: tokens of instruction, template and text; default: what was saved, else 512.
            text_max_length: tokens of the text alone; default: what was saved, else no limit of its own.
            separator: between an instruction and its text; default: what was saved, else ":\\n".
            template: with ``{text}`` where instruction and text go, or ``chat`` for the tokenizer's chat template;
                default: what was saved, else none.
            pooled_tokens: after_prompt, text or all, see :class:`~l2v.text.prompts.Prompt`; default: what was saved,
                else after_prompt.
            adapters: folders or hub ids of adapters to merge into the model, in order.
            base: the model of an adapter in ``source``; default: the one that the adapter names.
            quantization: nf4 keeps the linear layers in 4 bits (a GPU and bitsandbytes); None: no.
            revision: of a hub id.
            partial: accept layers that stay causal; what was saved with such layers has it on.
            trust_remote_code: run code that comes with the model.
            device: default: a GPU where there is one.
            with_head: load the output head too, for masked-token prediction.

        Raises:
            L2VError: nothing there, or not a decoder, or its attention fails the proof.
        """
        folder = Path(source).expanduser()
        head_source = None
        if (folder / "run.json").exists():
            if (folder / "probe").exists():
                raise L2VError(f"{folder}: a run of stage=word, which leaves its model as it is; name that model")
            if not (folder / "encoder" / SETTINGS_FILE).exists():
                raise L2VError(f"{folder}: the run has no encoder yet; finish it by `python train.py resume={folder}`")
            if with_head:
                lineage = Lineage.read(folder / "lineage.json")
                head_source = lineage_head(lineage, folder) or lineage_base(lineage, folder)
            folder = folder / "encoder"
            source = folder
        parts = assemble(str(source), adapters, base=base, revision=revision)
        saved = parts.settings or saved_settings(parts.base)
        attention = attention or saved.get("attention", "bidirectional")
        _check("attention", attention, ATTENTIONS)
        _check("attn_implementation", attn_implementation, get_args(AttnImplementation))
        _check("dtype", dtype, get_args(DType))
        if pooling is not None:
            _check("pooling", pooling, POOLINGS)
        _check_length("max_length", max_length)
        backbone = Backbone.load(
            parts.base,
            attention=attention,
            attn_implementation=attn_implementation,
            dtype=dtype,
            partial=partial or saved.get("partial", False),
            trust_remote_code=trust_remote_code,
            with_head=with_head,
            head_source=head_source,
            merge=parts.adapters,
            quantization=quantization,
            device=device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu"),
        )
        given = {
            "pooling": pooling,
            "max_length": max_length,
            "text_max_length": text_max_length,
            "template": template,
            "separator": separator,
            "pooled_tokens": pooled_tokens,
        }
        return cls.with_settings(backbone, saved | {name: v for name, v in given.items() if v is not None})

    @classmethod
    def with_settings(cls, backbone: Backbone, settings: dict[str, Any]) -> "Encoder":
        """An encoder with settings as they were saved (:func:`saved_settings`), and defaults for the others."""
        return cls(
            backbone,
            pooling=settings.get("pooling", "mean"),
            max_length=settings.get("max_length", 512),
            text_max_length=settings.get("text_max_length"),
            prompt=Prompt.of(
                backbone.tokenizer,
                template=settings.get("template"),
                separator=settings.get("separator", SEPARATOR),
                pooled_tokens=settings.get("pooled_tokens", "after_prompt"),
            ),
        )

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.backbone.hidden_size

    def describe(self) -> dict[str, Any]:
        """What the files of its results say of it."""
        return {"attention": self.backbone.attention, "pooling": self.pooling}

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    @torch.no_grad()  # and no inference mode: FSDP2 cannot go on training after it
    def encode(
        self,
        texts: TextInput,
        *,
        instruction: str | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        normalize: bool = False,
        truncate_dim: int | None = None,
        show_progress_bar: bool = False,
        device: str | torch.device | None = None,
    ) -> NDArray[np.float32]:
        """Encode texts to vectors.

        A vector depends on its text alone, not on the batch, the order or the padding. An empty text is encoded as
        the beginning-of-text token; lone surrogates are read as U+FFFD; a text is cut to ``max_length`` tokens.

        Args:
            texts: a text, texts, or (instruction, text) pairs.
            instruction: put before every text; its tokens are seen but not pooled (paper, section 4.3).
            batch_size: texts in a batch, at most; batches hold texts of similar length. On a CPU a batch has at most
                2,048 tokens too, unless one text has more: it stays in the processor's cache.
            max_length: in tokens, instruction included.
            normalize: scale vectors to length 1.
            truncate_dim: keep the first so many dimensions (before normalising).
            show_progress_bar: on the terminal.
            device: move the encoder there first.

        Returns:
            float32, (texts, dimension), in the order of ``texts``; (dimension,) for a single string.

        Raises:
            L2VError: an entry is no string, or a setting is out of range.
        """
        if isinstance(texts, str):
            return self.encode([texts], instruction=instruction, max_length=max_length, normalize=normalize,
                               truncate_dim=truncate_dim, device=device)[0]  # fmt: skip
        max_length = max_length if max_length is not None else self.max_length
        _check_length("max_length", max_length)
        if batch_size < 1:
            raise L2VError(f"batch_size must be at least 1, got {batch_size}")
        if truncate_dim is not None and not 1 <= truncate_dim <= self.dimension:
            raise L2VError(f"truncate_dim must be in 1..{self.dimension}, got {truncate_dim}")
        if device is not None:
            self.backbone.to(device)
        plain, instructions = _split_pairs(texts, instruction)
        vectors = np.zeros((len(plain), truncate_dim or self.dimension), dtype=np.float32)
        if not plain:
            return vectors
        tokens = tokenize(
            plain,
            self.backbone.tokenizer,
            max_length=max_length,
            instructions=instructions,
            prompt=self.prompt,
            text_max_length=self.text_max_length,
        )
        lengths = [len(row.input_ids) for row in tokens]
        order = sorted(range(len(tokens)), key=lambda row: -lengths[row])
        budget = CPU_PASS_TOKENS if self.device.type == "cpu" else None
        batches = row_groups(order, lengths, budget, most=batch_size)
        was_training = self.backbone.decoder.training
        self.backbone.eval()
        try:
            for rows in track(batches, "encoding", show=show_progress_bar):
                output = self._embed([tokens[row] for row in rows])[:, :truncate_dim]
                if normalize:
                    output = torch.nn.functional.normalize(output, dim=-1)
                vectors[rows] = output.cpu().numpy()
        finally:
            self.backbone.train(was_training)
        return vectors

    def _embed(self, tokens: list[Tokens]) -> torch.Tensor:
        batch = pad(tokens, self.backbone.tokenizer.pad_token_id, self.padding_side)
        on_device: dict[str, Any] = {key: value.to(self.device) for key, value in cast(dict[str, Any], batch).items()}
        return self.backbone.embed(**on_device, pooling=self.pooling)

    def similarity(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosine similarity of every row of ``a`` with every row of ``b``."""
        a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True).clip(1e-12) for x in (np.atleast_2d(a), np.atleast_2d(b)))
        return a @ b.T

    def save(self, folder: str | Path, *, prompts: Mapping[str, str] | None = None) -> None:
        """Write the encoder as a folder that l2v, transformers and sentence-transformers load.

        sentence-transformers gives the same vectors, with the instructions of MTEB by the names of its tasks; what it
        reads otherwise is said.

        Args:
            folder: made where it is not there.
            prompts: more instructions for sentence-transformers and mteb, by the name of a prompt, without separator.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.save(folder)
        self.save_settings(folder, prompts)

    def save_settings(
        self, folder: Path, prompts: Mapping[str, str] | None = None, *, as_adapter: bool = False
    ) -> None:
        """Write what stands beside the weights, or beside an adapter: l2v's settings and sentence-transformers'."""
        if differences := self.not_portable():
            say(
                "sentence-transformers reads some of this encoder otherwise, so there its vectors differ: "
                f"{'; '.join(differences)}",
                style="yellow",
            )
        write_json(
            folder / SETTINGS_FILE,
            {
                "pooling": self.pooling,
                "attention": self.backbone.attention,
                "max_length": self.max_length,
                "text_max_length": self.text_max_length,
                **asdict(self.prompt),
                "partial": self.backbone.attention == "bidirectional" and bool(self.backbone.proof.causal_layers),
            },
        )
        # an adapter comes without the config of its decoder, which would say is_causal: false
        by_l2v = as_adapter and self.backbone.attention == "bidirectional"
        modules = [("0", "", _BIDIRECTIONAL_ADAPTED if by_l2v else _TRANSFORMER), ("1", "1_Pooling", _POOLING)]
        write_json(
            folder / "modules.json",
            [{"idx": int(i), "name": i, "path": path, "type": kind} for i, path, kind in modules],
        )
        lengths = {"max_seq_length": self.max_length, "do_lower_case": False}
        write_json(
            folder / "sentence_bert_config.json", lengths | ({"model_args": {"dtype": "float32"}} if as_adapter else {})
        )
        write_json(
            folder / "1_Pooling" / "config.json",
            {
                "word_embedding_dimension": self.dimension,
                "pooling_mode_cls_token": self.pooling == "bos",
                "pooling_mode_mean_tokens": self.pooling == "mean",
                "pooling_mode_max_tokens": False,
                "pooling_mode_mean_sqrt_len_tokens": False,
                "pooling_mode_weightedmean_tokens": self.pooling == "weighted_mean",
                "pooling_mode_lasttoken": self.pooling == "last_token",
                "include_prompt": self.pooling == "bos",
            },
        )
        written = mteb_prompts() | dict(prompts or {})
        write_json(
            folder / "config_sentence_transformers.json",
            {
                "prompts": {name: text and text + self.prompt.separator for name, text in written.items()},
                "default_prompt_name": None,
                "similarity_fn_name": "cosine",
            },
        )

    def not_portable(self) -> list[str]:
        """What sentence-transformers reads otherwise than l2v."""
        found = self.prompt.not_portable(self.backbone.tokenizer)
        if self.text_max_length is not None:
            found.append("text_max_length")
        if self.pooling == "weighted_mean":
            found.append("weighted_mean after an instruction, whose tokens count in the weights there")
        return found


def _split_pairs(texts: Sequence[Any], instruction: str | None) -> tuple[list[str], list[str | None]]:
    plain: list[str] = []
    instructions: list[str | None] = []
    if not isinstance(texts, Iterable) or isinstance(texts, Mapping):
        raise L2VError(f"expected a text or texts, found {type(texts).__name__}")
    for row, item in enumerate(texts):
        if isinstance(item, (tuple, list)) and len(item) == 2:
            own, text = item
            if instruction is not None:
                raise L2VError("give an instruction for all texts or (instruction, text) pairs, not both")
        else:
            own, text = instruction, item
        if not isinstance(text, str):
            raise L2VError(f"text {row} is {type(text).__name__}, expected str or an (instruction, text) pair")
        if not (own is None or isinstance(own, str)):
            raise L2VError(f"the instruction of text {row} is {type(own).__name__}, expected str or None")
        plain.append(text)
        instructions.append(own)
    return plain, instructions


def _check(setting: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise L2VError(f"{setting} must be one of {', '.join(allowed)}, got {value!r}")


def _check_length(setting: str, value: int | None) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise L2VError(f"{setting} must be a number of tokens, at least 1, got {value!r}")
