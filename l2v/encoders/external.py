"""Encoders of another library, so that baselines stand in the same tables: those of sentence-transformers."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from l2v.encoders.finite import check_finite
from l2v.encoders.preparation import TextPreparation
from l2v.encoders.saved_settings import beyond_l2v, foreign_code
from l2v.encoders.texts import TextInput, check_options, cosines, split_pairs
from l2v.errors import L2VError, first_line, is_out_of_memory
from l2v.extras import require
from l2v.models.quiet import quiet
from l2v.models.settings import EncoderSettings, check_length
from l2v.runs.adapter_folders import ADAPTER_CONFIG, SETTINGS_FILE, adapter_folder
from l2v.runs.files import read_json
from l2v.runs.locations import locate, model_file, not_on_hub
from l2v.text.tokenization import clean

logger = logging.getLogger(__name__)
_TAKEN = ("library", "revision", "dtype", "max_length", "separator", "trust_remote_code")
"""Settings that sentence-transformers has too."""


class SentenceTransformersEncoder:
    """An encoder of the library sentence-transformers, used as l2v's own.

    Its pooling, prompts and normalisation are what was saved with it. An instruction is put before a text only where
    ``separator`` says how: an encoder that was not trained with instructions is better without.

    Args:
        model: of the library.
        separator: between an instruction and its text; None leaves instructions out.
    """

    def __init__(self, model: Any, *, separator: str | None = None) -> None:
        self.model = model
        self.separator = separator
        self._said = False

    @classmethod
    def from_pretrained(
        cls, settings: EncoderSettings, device: str | torch.device | None = None
    ) -> "SentenceTransformersEncoder":
        """Load it.

        Args:
            settings: of which the library takes revision, dtype, max_length and trust_remote_code.
            device: default: a GPU where there is one.

        Raises:
            L2VError: the library is not installed, a setting is none of its, or it cannot load the encoder.
        """
        for name in settings.differences():
            if name not in _TAKEN:
                raise L2VError(
                    f"encoder={settings.source}: {name} is no setting of library=sentence-transformers; it takes "
                    f"{', '.join(_TAKEN[1:])}"
                )
        require(f"encoder={settings.source}", "sentence_transformers")
        from sentence_transformers import SentenceTransformer

        place = locate(settings.source, settings.revision, "encoder")
        if not settings.trust_remote_code and (code := foreign_code(place)):
            raise L2VError(
                f"encoder={settings.source}: its modules.json names {code[0]}, code that may have come with it; "
                "trust_remote_code=true runs it"
            )
        try:
            with quiet():
                model = SentenceTransformer(
                    place.path,
                    device=None if device is None else str(device),
                    revision=place.revision,
                    local_files_only=place.is_local,
                    trust_remote_code=settings.trust_remote_code,
                    model_kwargs={"dtype": settings.dtype},
                )
        except Exception as error:  # of two libraries, which have many
            if is_out_of_memory(error):
                raise
            if not place.is_local:
                raise not_on_hub(place, error, "encoder") from error
            raise L2VError(f"encoder={settings.source}: sentence-transformers: {first_line(error)}") from error
        if settings.max_length is not None:
            model.max_seq_length = settings.max_length
        return cls(model.eval(), separator=settings.separator)

    @property
    def module(self) -> nn.Module:
        """The model, for what moves it."""
        return self.model

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self.model.get_embedding_dimension())

    @property
    def max_length(self) -> int:
        """Tokens of a text; longer ones are cut."""
        return int(self.model.max_seq_length or 0)

    def describe(self) -> dict[str, Any]:
        """What the files of its results say of it."""
        pooling = next((m for m in self.model if type(m).__name__ == "Pooling"), None)
        mode = getattr(pooling, "pooling_mode", "its own")
        return {"library": "sentence-transformers", "attention": "its own", "pooling": str(mode)}

    def preparation(self, instruction: str | None = None) -> TextPreparation:
        """Texts to what :meth:`embed` takes, without the model."""
        return TextPreparation(instruction)

    def embed(self, batch: dict[str, Any]) -> torch.Tensor:
        """Vectors (texts, dimension), float32, of a batch of :meth:`preparation`."""
        return torch.from_numpy(self.encode(batch["texts"], instruction=batch["instruction"]))

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
        """Encode texts to vectors; see :meth:`l2v.encoders.encoder.Encoder.encode`.

        Raises:
            L2VError: an entry is no string, an option is out of range, or a vector is not finite.
        """
        if isinstance(texts, str):
            one: Sequence[str] = [texts]
            return self.encode(one, instruction=instruction, max_length=max_length, normalize=normalize,
                               truncate_dim=truncate_dim, device=device)[0]  # fmt: skip
        check_options(batch_size, truncate_dim, self.dimension)
        check_length("max_length", max_length)
        if device is not None:
            self.model.to(device)
        plain, instructions = split_pairs(texts, instruction)
        if any(instructions) and self.separator is None and not self._said:
            self._said = True
            logger.info("instructions are left out: this encoder has its own prompts; separator=': ' puts them in")
        vectors = np.zeros((len(plain), truncate_dim or self.dimension), dtype=np.float32)
        with self._cut_to(max_length):
            for own in dict.fromkeys(instructions):  # a call of the library has one prompt
                rows = [row for row, one in enumerate(instructions) if one == own]
                prompt = {"prompt": own + self.separator} if own and self.separator is not None else {}
                vectors[rows] = self.model.encode(
                    [clean(plain[row]) for row in rows],
                    batch_size=batch_size,
                    normalize_embeddings=normalize,
                    truncate_dim=truncate_dim,
                    show_progress_bar=show_progress_bar,
                    **prompt,
                )
        check_finite(vectors, self.dtype)
        return vectors

    @contextlib.contextmanager
    def _cut_to(self, max_length: int | None) -> Iterator[None]:
        before = self.model.max_seq_length
        self.model.max_seq_length = max_length or before
        try:
            yield
        finally:
            self.model.max_seq_length = before

    def similarity(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosine similarity of every row of ``a`` with every row of ``b``."""
        return cosines(a, b)


def is_theirs(settings: EncoderSettings) -> bool:
    """Whether only sentence-transformers can load an encoder: its files say so, or more than l2v does."""
    if settings.library is not None:
        return settings.library == "sentence-transformers"
    if settings.is_run or settings.kind == "encoder" or settings.adapters or _is_an_adapter_alone(settings):
        return False
    place = locate(settings.source, settings.revision, "encoder")
    if place.gguf_file or model_file(place, SETTINGS_FILE, "encoder"):
        return False
    modules = model_file(place, "modules.json", "encoder")
    if modules is None:
        return False
    config = model_file(place, "config.json", "encoder")
    if config is None and model_file(place, ADAPTER_CONFIG, "encoder"):
        config = model_file(settings.parts().base, "config.json", "base")
    model_type = read_json(config).get("model_type") if config is not None else None
    return bool(beyond_l2v(place)) or model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _is_an_adapter_alone(settings: EncoderSettings) -> bool:
    """Whether a folder holds an adapter, with no file of sentence-transformers beside it."""
    folder = settings.folder
    is_model = any((folder / file).exists() for file in ("config.json", "modules.json"))
    return folder.is_dir() and not is_model and adapter_folder(settings.source, override="encoder") is not None
