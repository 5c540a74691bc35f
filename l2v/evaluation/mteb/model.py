"""An encoder as mteb's classes take a model. Imports mteb, so only what evaluates with mteb imports this."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType
from numpy.typing import NDArray

from l2v.encoders.text_encoder import TextEncoder
from l2v.text.instructions import paper_instruction, without_end


class MtebEncoder(AbsEncoder):
    """What ``mteb.evaluate`` calls to encode the texts of a task.

    Args:
        encoder: the encoder.
        name: owner/name, under which mteb keeps the scores.
        revision: what pins the encoder's vectors; mteb keeps the scores of each apart.
        instruction: of a task's queries and symmetric texts; documents of retrieval and reranking have none.
        batch_size: texts in a batch.
        show: a progress bar.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        name: str,
        revision: str,
        instruction: Callable[[TaskMetadata], str | None],
        batch_size: int = 32,
        show: bool = False,
    ) -> None:
        self.model = encoder
        self.instruction = instruction
        self.batch_size = batch_size
        self.show = show
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name,
                "revision": revision,
                "embed_dim": encoder.dimension,
                "max_tokens": float(encoder.max_length),
                "similarity_fn_name": ScoringFunction.COSINE,
            }
        )

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Vectors (texts, dimension) of a loader's batches, each a dictionary with ``text``."""
        texts = [text for batch in inputs for text in batch["text"]]
        instruction = None if prompt_type == PromptType.document else self.instruction(task_metadata)
        return self.model.encode(
            texts, instruction=instruction, batch_size=self.batch_size, show_progress_bar=self.show
        )


def instruction_by(kind: Literal["paper", "mteb", "none"]) -> Callable[[TaskMetadata], str | None]:
    """What gives a task's instruction: the paper's and else mteb's own, mteb's own, or none."""
    if kind == "none":
        return lambda metadata: None
    if kind == "mteb":
        return own_instruction
    return lambda metadata: paper_instruction(metadata.name) or own_instruction(metadata)


def own_instruction(metadata: TaskMetadata) -> str | None:
    """mteb's own instruction for a task; None where it has none."""
    prompt: Any = metadata.prompt
    if isinstance(prompt, dict):
        prompt = prompt.get(PromptType.query.value)
    if prompt is None:
        from mteb.abstasks.abstask import get_abstask_prompt

        prompt = get_abstask_prompt(metadata.name)
    return without_end(prompt) or None
