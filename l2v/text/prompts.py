"""What stands around a text: an instruction, a separator, a chat template. And what of it is pooled."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from l2v.errors import L2VError, first_line
from l2v.text.rendering import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PooledTokens = Literal["after_prompt", "text", "all"]
SpecialTokens = Literal["tokens", "text"]
POOLED_TOKENS: tuple[str, ...] = get_args(PooledTokens)
TEXT = "{text}"
CHAT = "chat"
SEPARATOR = ":\n"
"""Between an instruction and its text. Most tokenizers make one token of a space and the word after it, so a separator
that ends in a space makes sentence-transformers, which counts the tokens of a prompt alone, leave out that word."""
_MARK = "l2v-text-goes-here"
_INSTRUCTION = "Retrieve semantically similar text"
_ORDINARY = (
    "A dog barks.",
    "the weather",
    "Über uns",
    "3 men",
    "2026-01-31",
    '"Yes," she said',
    "(a)",
    "@user",
    "日本語",
)
"""Beginnings of texts."""


class Framed(NamedTuple):
    """A text in its frame: ``before + text + after`` is what the tokenizer reads."""

    before: str
    text: str
    after: str


@dataclass(frozen=True)
class Prompt:
    """How a text is presented to the model. Saved with an encoder, so it never depends on a model's name or path.

    Example:
        >>> from l2v import Backbone, Encoder, Prompt
        >>> prompt = Prompt(template="[INST] {text} [/INST]", separator=": ")
        >>> encoder = Encoder(Backbone.load("model"), prompt=prompt)
        >>> encoder.encode("A dog barks.", instruction="Find the same").shape == (encoder.dimension,)
        True
    """

    template: str = TEXT
    """What stands around instruction and text, with ``{text}`` in their place: ``[INST] {text} [/INST]``."""
    separator: str = SEPARATOR
    """Between an instruction and its text."""
    pooled_tokens: PooledTokens = "after_prompt"
    """What mean, weighted_mean and last_token run over. What a template adds after a text always counts.

    - ``after_prompt``: what follows the instruction and the template's beginning; without either, all tokens, as
      sentence-transformers does with ``include_prompt: false``;
    - ``text``: the same, and a beginning-of-text token is never pooled, as in LLM2Vec;
    - ``all``: every token.
    """
    special_tokens: SpecialTokens = "tokens"
    """What ``</s>`` or a chat marker in a text, or in an instruction, is: the special token, as with transformers and
    sentence-transformers, or plain text, so that texts of others cannot end or open a message. The template's own, and
    what the tokenizer puts around a text, are special tokens always."""

    def __post_init__(self) -> None:
        if self.template.count(TEXT) != 1:
            raise L2VError(
                f"model.template={self.template!r}: expected {TEXT} once, where the text goes, or {CHAT} for the chat "
                "template of the tokenizer"
            )
        if self.pooled_tokens not in POOLED_TOKENS:
            raise L2VError(f"model.pooled_tokens must be one of {', '.join(POOLED_TOKENS)}, got {self.pooled_tokens!r}")
        if self.special_tokens not in get_args(SpecialTokens):
            raise L2VError(f"model.special_tokens must be one of tokens, text, got {self.special_tokens!r}")

    @staticmethod
    def of(
        tokenizer: "PreTrainedTokenizerBase",
        *,
        template: str | None = None,
        separator: str = SEPARATOR,
        pooled_tokens: PooledTokens = "after_prompt",
        special_tokens: SpecialTokens = "tokens",
    ) -> "Prompt":
        """A prompt with the template written out: None stands for no template, ``chat`` for the tokenizer's own."""
        if template == CHAT:
            template = chat_template(tokenizer)
        return Prompt(template or TEXT, separator, pooled_tokens, special_tokens)

    def not_portable(self, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
        """What sentence-transformers reads otherwise: it knows no templates, and skips no more than its prompts."""
        found = [] if self.template == TEXT else ["the template"]
        starts_with_bos = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        if self.pooled_tokens == "all" or (self.pooled_tokens == "text" and starts_with_bos):
            found.append(f"pooled_tokens={self.pooled_tokens}")
        if self.special_tokens == "text":
            found.append("special_tokens=text")
        if not self.stays_apart(tokenizer):
            found.append(f"separator={self.separator!r}, which has other tokens before a text than alone")
        return found

    def stays_apart(self, tokenizer: "PreTrainedTokenizerBase") -> bool:
        """Whether an instruction and the separator have the same tokens alone and before a text.

        sentence-transformers takes their number from the tokens that they have alone.
        """
        before = _INSTRUCTION + self.separator
        alone = tokenizer(before).input_ids
        if alone and alone[-1] in tokenizer.all_special_ids:  # an EOS, which comes after the text
            alone = alone[:-1]
        return all(tokenizer(before + text).input_ids[: len(alone)] == alone for text in _ORDINARY)

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
        written = render(tokenizer.get_chat_template(), _MARK, tokenizer.special_tokens_map)
    except (L2VError, ValueError) as error:
        raise L2VError(
            f"model.template={CHAT}: the tokenizer has no chat template that can be used ({first_line(error)}); write "
            f"one out, e.g. model.template='[INST] {TEXT} [/INST]'"
        ) from None
    if written.count(_MARK) != 1:
        raise L2VError(f"model.template={CHAT}: the tokenizer's chat template changes the text; write one out instead")
    bos = tokenizer.bos_token
    if bos and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]:
        written = written.removeprefix(bos)  # the tokenizer puts it there itself
    return written.replace(_MARK, TEXT)
