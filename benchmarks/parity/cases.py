"""Where llm2vec 0.2.3 goes wrong or surprises: why, how to see it in its figures, and what l2v does there.

``reference.py cases`` makes the peer's figures; a case that they do not show any more fails the comparison.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from l2v.encoders.encoder import Encoder
from l2v.text.tokenization import tokenize

Figures = dict[str, Any]


@dataclass(frozen=True)
class Case:
    name: str
    why: str
    shown: Callable[[Figures, Figures], bool]
    """Whether the figures of the peer and of l2v show it."""
    ours: Callable[[Encoder, Figures], Figures]
    """l2v's figures, for the texts of the peer's."""


def _tokens(encoder: Encoder, case: Figures, max_length: int) -> tuple[list[int], int]:
    """The ids of the case's text, and how many of them are pooled."""
    row = tokenize(
        case["texts"][:1],
        encoder.backbone.tokenizer,
        max_length=max_length,
        instructions=[case.get("instruction")],
        prompt=encoder.prompt,
    )[0]
    return row.input_ids, len(row.input_ids) - row.text_begin


def _fed(encoder: Encoder, case: Figures) -> Figures:
    return {"fed": len(_tokens(encoder, case, 400)[0])}


def _pooled(encoder: Encoder, case: Figures) -> Figures:
    ids, pooled = _tokens(encoder, case, 512)
    return {"fed": len(ids), "pooled": pooled}


def _line_ends(encoder: Encoder, case: Figures) -> Figures:
    return {"line_ends_fed": encoder.backbone.tokenizer.decode(_tokens(encoder, case, 400)[0]).count("\n")}


def _two_batches(encoder: Encoder, case: Figures) -> Figures:
    text, instruction = case["texts"][0], case.get("instruction")
    encoder.pooling = "mean"
    a, b = (
        encoder.encode([text, other], instruction=instruction, batch_size=2)[0] for other in ("short", "long " * 100)
    )
    return {"cosine_of_two_batches": float(encoder.similarity(a, b)[0, 0])}


def _norm(encoder: Encoder, case: Figures) -> Figures:
    encoder.pooling = "weighted_mean"
    return {"norm": float(np.linalg.norm(encoder.encode(case["texts"], instruction=case["instruction"])))}


def _bos(encoder: Encoder, case: Figures) -> Figures:
    encoder.pooling = "bos"
    return {"vectors": len(encoder.encode(case["texts"]))}


def _last_token(encoder: Encoder, case: Figures) -> Figures:
    return {"pooled_token": encoder.backbone.tokenizer.decode(_tokens(encoder, case, 512)[0][-1:])}


def _one_string(encoder: Encoder, case: Figures) -> Figures:
    return {"vectors": len(np.atleast_2d(encoder.encode(case["texts"][0])))}


def _vectors(encoder: Encoder, case: Figures) -> Figures:
    found = encoder.encode(case["texts"])
    return {"vectors": len(found), "finite": bool(np.isfinite(found).all())}


def _nothing(encoder: Encoder, case: Figures) -> Figures:
    return {}


CASES = [
    Case(
        "instruction_is_pooled",
        "The tokens of the text alone are counted, then as many are pooled from the end of the prompt. Where the "
        "prompt was cut to max_length, that reaches back into the instruction.",
        lambda peer, own: peer["pooled"] > peer["of_text"] == own["pooled"],
        _pooled,
    ),
    Case(
        "cut_by_words",
        "A text of more than doc_max_length tokens (400) loses its share of words, not of tokens, until it fits: fewer "
        "tokens may remain than are allowed (fed: the worst of the pairs of texts tried).",
        lambda peer, own: peer["fed"] < own["fed"] == 400,
        _fed,
    ),
    Case(
        "whitespace_is_lost",
        "A text that is cut is joined again by single spaces: its line ends are gone, those of a shorter text are not.",
        lambda peer, own: peer["line_ends_fed"] == 0 < own["line_ends_fed"],
        _line_ends,
    ),
    Case(
        "cut_without_spaces",
        "A long text without spaces is one word. Cutting by words leaves nothing of it.",
        lambda peer, own: peer["characters_fed"] == 0 and own["fed"] == 400,
        _fed,
    ),
    Case(
        "empty_text",
        "An empty text has no tokens: alone it is an error, and beside other texts it gets the vector of padding. l2v "
        "encodes the beginning-of-text token.",
        lambda peer, own: peer["alone"] != "none" and peer["cosine_with_padding_token"] > 0.9999 and own["finite"],
        _vectors,
    ),
    Case(
        "empty_text_after_instruction",
        "With no tokens to pool, -0 selects the whole row: instruction and padding.",
        lambda peer, own: peer["cosine_of_two_batches"] < 0.9999 < own["cosine_of_two_batches"],
        _two_batches,
    ),
    Case(
        "empty_text_weighted",
        "The weights of no tokens are all 0, and so is the vector; its cosines are not defined.",
        lambda peer, own: peer["norm"] == 0 < own["norm"],
        _norm,
    ),
    Case(
        "bos_token",
        "Pooling bos_token selects the states whose id is that of BOS. Where the tokenizer puts none there are no "
        "vectors. l2v takes the first token.",
        lambda peer, own: peer["error"] != "none" and own["vectors"] == 2,
        _bos,
    ),
    Case(
        "eos_token",
        "Pooling eos_token appends ' </s>' for every Llama and Mistral, whatever the model's own end is. Here that is "
        "three pieces of plain text, and the last one is pooled.",
        lambda peer, own: peer["pooled_id"] != peer["eos_id"],
        _last_token,
    ),
    Case(
        "one_string",
        "A single string, which the docstring allows, is taken as a list of its characters.",
        lambda peer, own: peer["vectors"] > own["vectors"] == 1,
        _one_string,
    ),
    Case(
        "no_texts",
        "An empty list is an error.",
        lambda peer, own: peer["error"] != "none" and own["vectors"] == 0,
        _vectors,
    ),
    Case(
        "separator_in_text",
        "The mark between instruction and text, !@#$%^&*(), is taken out of a text that has it, and only what stands "
        "between the first and the second mark is pooled.",
        lambda peer, own: peer["characters_fed"] < peer["characters"] and peer["pooled"] < own["pooled"] == own["fed"],
        _pooled,
    ),
    Case(
        "template_by_name",
        "The chat template is chosen by the model's name: the same weights give other vectors from a local folder.",
        lambda peer, own: max(peer["cosines"]) < 0.9999,
        _nothing,
    ),
    Case(
        "bos_is_pooled",
        "Where a text alone fills max_length, its count covers BOS too, which no shorter text's does (tiny model).",
        lambda peer, own: [fed - pooled for pooled, fed in peer["pooled_of_fed"]] == [1, 0],
        _nothing,
    ),
    Case(
        "right_sdpa",
        "Bidirectional without padding too: the first state moves with the last token. A batch changes nothing.",
        lambda peer, own: peer["change_of_first_state"] > 1e-3 and peer["batching"] > 0.99999,
        _nothing,
    ),
    Case(
        "right_eager",
        "The same for the other implementation of attention.",
        lambda peer, own: peer["change_of_first_state"] > 1e-3 and peer["batching"] > 0.99999,
        _nothing,
    ),
]
