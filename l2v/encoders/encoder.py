"""The inference API: ``Encoder.from_pretrained(...).encode(texts)``."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from l2v.encoders.finite import check_finite
from l2v.encoders.preparation import TokenPreparation
from l2v.encoders.saved_settings import pooling_of, settings_of, write_settings
from l2v.encoders.texts import TextInput, check_options, cosines, split_pairs
from l2v.errors import L2VError
from l2v.models.backbone import Backbone, row_groups
from l2v.models.bidirectional import CAUSAL_ALONE
from l2v.models.settings import EncoderSettings, check_choice, check_length
from l2v.pooling import POOLINGS, Pooling, PoolingName, pooling_name, pooling_record, save_pooling
from l2v.progress import say, track
from l2v.runs.adapter_folders import POOLING_FOLDER, SETTINGS_FILE
from l2v.runs.files import write_json
from l2v.runs.lineage import Lineage, lineage_base, lineage_head
from l2v.runs.locations import Source
from l2v.runs.run import Run
from l2v.text.instructions import mteb_prompts
from l2v.text.prompts import SEPARATOR, Prompt
from l2v.text.tokenization import Tokens, pad, tokenize

CPU_PASS_TOKENS = 2048
"""Tokens, padding included, of a forward pass on a CPU: what it works on then stays in the processor's cache."""


class Encoder:
    """A text encoder: a backbone, a pooling, and the settings that go with them.

    Example:
        >>> from l2v import Encoder
        >>> encoder = Encoder.from_pretrained("model")
        >>> vectors = encoder.encode(["A dog barks.", "A puppy yaps.", "Stocks fell."])
        >>> vectors.shape == (3, encoder.dimension)
        True
        >>> encoder.similarity(vectors[:1], vectors).shape
        (1, 3)
        >>> query = encoder.encode("what do dogs do", instruction="Retrieve relevant passages")
        >>> query.shape == (encoder.dimension,)
        True
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        pooling: PoolingName | Pooling = "mean",
        max_length: int | None = None,
        text_max_length: int | None = None,
        prompt: Prompt | None = None,
        padding_side: str = "right",
        normalized: bool = False,
    ) -> None:
        if not isinstance(pooling, Pooling):
            check_choice("pooling", pooling, POOLINGS)
        check_choice("padding_side", padding_side, ("right", "left"))
        check_length("max_length", max_length)
        check_length("text_max_length", text_max_length)
        max_length = backbone.usual_length(max_length)
        backbone.check_length(max_length, "max_length")
        self.backbone = backbone
        self.pooling: PoolingName | Pooling = pooling
        self.max_length = max_length
        self.text_max_length = text_max_length
        self.prompt = prompt or Prompt()
        self.padding_side = padding_side
        self.normalized = normalized
        """Whether vectors always have length 1, as the folder says that it was loaded from."""

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | EncoderSettings,
        *,
        device: str | torch.device | None = None,
        with_head: bool = False,
        **settings: Any,
    ) -> "Encoder":
        """Load an encoder.

        Args:
            source: a run folder, a model folder (also one of sentence-transformers), an adapter (also a published one
                of LLM2Vec), a GGUF file, a hub id, ``package:NAME/FILE.gguf``, or the settings with it.
            device: default: a GPU where there is one.
            with_head: load the output head too, for masked-token prediction.
            settings: of :class:`~l2v.models.settings.EncoderSettings`: pooling, attention, dtype, max_length, template,
                adapters, ...; what is not given is as it was saved.

        Raises:
            L2VError: nothing there, or not a decoder, or its attention fails the proof.
        """
        given = source if isinstance(source, EncoderSettings) else EncoderSettings(str(source))
        wanted = replace(given, **settings)
        head_source = None
        if wanted.is_run:
            folder = wanted.folder
            if (folder / "probe").exists():
                raise L2VError(f"{folder}: a run of stage=word, which leaves its model as it is; name that model")
            if Run(folder).exported is None:
                again = " export=encoder" if Run(folder).is_finished else ""
                raise L2VError(
                    f"{folder}: the run has no encoder yet; finish it by `python train.py resume={folder}{again}`"
                )
            if with_head:
                lineage = Lineage.read(folder / "lineage.json")
                head_source = lineage_head(lineage, folder) or lineage_base(lineage, folder)
        parts = wanted.parts("model.source")
        saved, place = settings_of(parts)
        wanted = replace(
            wanted,
            attention=wanted.attention or saved.get("attention", "bidirectional"),
            partial=wanted.partial or saved.get("partial", False),
        )
        backbone = Backbone.load(
            parts.base,
            wanted,
            with_head=with_head,
            head_source=head_source,
            merge=parts.adapters,
            device=device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu"),
        )
        return cls.with_settings(backbone, wanted.usage(saved), place)

    @classmethod
    def with_settings(cls, backbone: Backbone, settings: dict[str, Any], place: Source | None = None) -> "Encoder":
        """An encoder with settings as they were saved (:func:`saved_settings`), and defaults for the others.

        Args:
            backbone: the model.
            settings: as they were saved.
            place: where, for the weights of a pooling that has some.
        """
        pooling = pooling_of(settings, backbone.hidden_size, place)
        if isinstance(pooling, Pooling):
            backbone.add_pooling(pooling)
        return cls(
            backbone,
            pooling=pooling,
            max_length=settings.get("max_length"),
            text_max_length=settings.get("text_max_length"),
            prompt=Prompt.of(
                backbone.tokenizer,
                template=settings.get("template"),
                separator=settings.get("separator", SEPARATOR),
                pooled_tokens=settings.get("pooled_tokens", "after_prompt"),
                special_tokens=settings.get("special_tokens", "tokens"),
            ),
            normalized=settings.get("normalize", False),
        )

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.backbone.hidden_size

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.backbone.decoder.parameters()).dtype

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
            L2VError: an entry is no string, a setting is out of range, or a vector is not finite.
        """
        if isinstance(texts, str):
            return self.encode([texts], instruction=instruction, max_length=max_length, normalize=normalize,
                               truncate_dim=truncate_dim, device=device)[0]  # fmt: skip
        max_length = max_length if max_length is not None else self.max_length
        check_length("max_length", max_length)
        self.backbone.check_length(max_length, "max_length")
        check_options(batch_size, truncate_dim, self.dimension)
        if device is not None:
            self.backbone.to(device)
        plain, instructions = split_pairs(texts, instruction)
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
                check_finite(vectors[rows], self.dtype)
        finally:
            self.backbone.train(was_training)
        return vectors

    def _embed(self, tokens: list[Tokens]) -> torch.Tensor:
        batch = pad(tokens, self.backbone.tokenizer.pad_token_id, self.padding_side)
        on_device: dict[str, Any] = {key: value.to(self.device) for key, value in cast(dict[str, Any], batch).items()}
        return self.embed(on_device)

    @property
    def module(self) -> torch.nn.Module:
        """The model, for what moves it."""
        return self.backbone

    def describe(self) -> dict[str, Any]:
        """What the files of its results say of it."""
        return {"attention": self.backbone.attention, "pooling": pooling_name(self.pooling)}

    def preparation(self, instruction: str | None = None) -> TokenPreparation:
        """Texts to what :meth:`embed` takes, without the model."""
        return TokenPreparation(
            self.backbone.tokenizer,
            self.prompt,
            self.max_length,
            self.text_max_length,
            self.padding_side,
            instruction,
        )

    def embed(self, batch: dict[str, Any]) -> torch.Tensor:
        """Vectors (texts, dimension), float32, of a batch of :meth:`preparation` on the encoder's device."""
        vectors = self.backbone.embed(**batch, pooling=self.pooling)
        return torch.nn.functional.normalize(vectors, dim=-1) if self.normalized else vectors

    def similarity(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosine similarity of every row of ``a`` with every row of ``b``."""
        return cosines(a, b)

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
        settings = self.save_own_settings(folder)
        alone = self.backbone.attention == "bidirectional" and self.backbone.config.model_type in CAUSAL_ALONE
        write_settings(
            folder,
            settings,
            self.dimension,
            mteb_prompts() | dict(prompts or {}),
            as_adapter=as_adapter,
            attn_implementation="eager" if alone else None,
        )

    def save_own_settings(self, folder: Path) -> dict[str, Any]:
        """Write what l2v reads beside the weights or the adapter, and return the settings among it."""
        attention, pooling = self.backbone.attention, self.pooling
        settings = {
            "pooling": pooling_record(pooling) if isinstance(pooling, Pooling) else pooling,
            "attention": attention,
            "max_length": self.max_length,
            "text_max_length": self.text_max_length,
            **asdict(self.prompt),
            "partial": attention == "bidirectional" and bool(self.backbone.proof.causal_layers),
            **({"normalize": True} if self.normalized else {}),
        }
        if isinstance(pooling, Pooling):
            save_pooling(pooling, folder / POOLING_FOLDER)
        write_json(folder / SETTINGS_FILE, settings)
        return settings

    def not_portable(self) -> list[str]:
        """What sentence-transformers reads otherwise than l2v."""
        found = self.prompt.not_portable(self.backbone.tokenizer)
        if self.text_max_length is not None:
            found.append("text_max_length")
        if isinstance(self.pooling, Pooling):
            found.append(f"the pooling {pooling_name(self.pooling)}, which needs l2v and the package that it is from")
        if self.pooling == "weighted_mean":
            found.append("weighted_mean after an instruction, whose tokens count in the weights there")
        return found
