"""What stands around a text: an instruction, a separator, a chat template. And what of it is pooled."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from l2v.errors import L2VError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PooledTokens = Literal["after_prompt", "text", "all"]
POOLED_TOKENS: tuple[str, ...] = get_args(PooledTokens)
TEXT = "{text}"
CHAT = "chat"
_MARK = "l2v-text-goes-here"


class Framed(NamedTuple):
    """A text in its frame: ``before + text + after`` is what the tokenizer reads."""

    before: str
    text: str
    after: str


@dataclass(frozen=True)
class Prompt:
    """How a text is presented to the model. Saved with an encoder, so it never depends on a model's name or path."""

    template: str = TEXT
    """What stands around instruction and text, with ``{text}`` in their place: ``[INST] {text} [/INST]``."""
    separator: str = ": "
    """Between an instruction and its text."""
    pooled_tokens: PooledTokens = "after_prompt"
    """What mean, weighted_mean and last_token run over. What a template adds after a text always counts.

    - ``after_prompt``: what follows the instruction and the template's beginning; without either, all tokens, as
      sentence-transformers does with ``include_prompt: false``;
    - ``text``: the same, and a beginning-of-text token is never pooled, as in LLM2Vec;
    - ``all``: every token.
    """

    def __post_init__(self) -> None:
        if self.template.count(TEXT) != 1:
            raise L2VError(
                f"model.template={self.template!r}: expected {TEXT} once, where the text goes, or {CHAT} for the chat "
                "template of the tokenizer"
            )
        if self.pooled_tokens not in POOLED_TOKENS:
            raise L2VError(f"model.pooled_tokens must be one of {', '.join(POOLED_TOKENS)}, got {self.pooled_tokens!r}")

    @staticmethod
    def of(
        tokenizer: "PreTrainedTokenizerBase",
        *,
        template: str | None = None,
        separator: str = ": ",
        pooled_tokens: PooledTokens = "after_prompt",
    ) -> "Prompt":
        """A prompt with the template written out: None stands for no template, ``chat`` for the tokenizer's own."""
        if template == CHAT:
            template = chat_template(tokenizer)
        return Prompt(template or TEXT, separator, pooled_tokens)

    def is_portable(self, tokenizer: "PreTrainedTokenizerBase") -> bool:
        """Whether sentence-transformers, which knows no templates and pools the beginning, gives the same vectors."""
        starts_with_bos = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        pools_alike = self.pooled_tokens == "after_prompt" or (self.pooled_tokens == "text" and not starts_with_bos)
        return self.template == TEXT and pools_alike

    def frame(self, text: str, instruction: str | None) -> Framed:
        """The text with what stands before and after it."""
        head, _, tail = self.template.partition(TEXT)
        return Framed(head + (instruction + self.separator if instruction else ""), text, tail)


def chat_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The tokenizer's chat template around one message of a user, as a template with ``{text}``.

    Raises:
        L2VError: the tokenizer has none, or it does not keep the message as it is.
    """
    try:
        written = tokenizer.apply_chat_template([{"role": "user", "content": _MARK}], tokenize=False)
    except Exception as error:  # a template is a program of the model's author, and fails in its own ways
        raise L2VError(
            f"model.template={CHAT}: the tokenizer has no chat template that can be used ({first_line(error)}); write "
            f"one out, e.g. model.template='[INST] {TEXT} [/INST]'"
        ) from None
    assert isinstance(written, str)
    if written.count(_MARK) != 1:
        raise L2VError(f"model.template={CHAT}: the tokenizer's chat template changes the text; write one out instead")
    bos = tokenizer.bos_token
    if bos and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]:
        written = written.removeprefix(bos)  # the tokenizer puts it there itself
    return written.replace(_MARK, TEXT)
