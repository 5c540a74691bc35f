"""Texts to token rows: tokenized once, kept as Arrow files, memory mapped."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator

import datasets
from transformers import PreTrainedTokenizerBase

from l2v.data.texts import TextSource
from l2v.errors import L2VError
from l2v.progress import track
from l2v.sources import cache_folder, draft_folder
from l2v.tokenization import clean

_CHUNK = 1000
_FORMAT = 1


def blocks(source: TextSource, tokenizer: PreTrainedTokenizerBase, length: int, *, show: bool = True) -> datasets.Dataset:
    """Rows of exactly ``length`` tokens: texts joined, an end-of-text token after each (MNTP; paper, appendix D.1.1).

    The remainder that fills no row is dropped.
    """

    def rows(texts: Iterable[str]) -> Iterator[list[int]]:
        rest: list[int] = []
        for chunk in _chunks(texts):
            for ids in tokenizer(chunk, return_attention_mask=False)["input_ids"]:
                rest += ids
                if ids and ids[-1] != tokenizer.eos_token_id:
                    rest.append(tokenizer.eos_token_id)
            whole = len(rest) - len(rest) % length
            yield from (rest[i : i + length] for i in range(0, whole, length))
            rest = rest[whole:]

    return _cached(source, tokenizer, f"blocks:{length}", rows, show)


def rows(source: TextSource, tokenizer: PreTrainedTokenizerBase, max_length: int, *, show: bool = True) -> datasets.Dataset:
    """A row a text, cut to ``max_length`` tokens; texts without a token are left out (SimCSE)."""

    def make(texts: Iterable[str]) -> Iterator[list[int]]:
        for chunk in _chunks(texts):
            encoded = tokenizer(chunk, truncation=True, max_length=max_length, return_attention_mask=False)
            yield from (ids for ids in encoded["input_ids"] if ids)

    return _cached(source, tokenizer, f"rows:{max_length}", make, show)


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    for chunk in itertools.batched(texts, _CHUNK) if hasattr(itertools, "batched") else _batched(texts):
        yield [clean(text) for text in chunk]


def _batched(texts: Iterable[str]) -> Iterator[tuple[str, ...]]:
    iterator = iter(texts)
    while chunk := tuple(itertools.islice(iterator, _CHUNK)):
        yield chunk


def _cached(source: TextSource, tokenizer: PreTrainedTokenizerBase, kind: str, make, show: bool) -> datasets.Dataset:
    key = hashlib.sha256(
        "\n".join([str(_FORMAT), source.fingerprint(), tokenizer_hash(tokenizer), kind]).encode()
    ).hexdigest()
    folder = cache_folder("tokens") / key[:24]
    if not (folder / "dataset_info.json").exists():
        features = datasets.Features({"input_ids": datasets.Sequence(datasets.Value("int32"))})
        with draft_folder(folder) as draft:
            writer = datasets.arrow_writer.ArrowWriter(features=features, path=str(draft / "data-00000-of-00001.arrow"))
            for ids in make(track(source.texts(), "tokenizing", total=None, show=show)):
                writer.write({"input_ids": ids})
            count, _ = writer.finalize() if writer._num_examples or writer.current_examples else (0, 0)
            if count == 0:
                raise L2VError(f"the data makes no row of {kind.replace(':', ' of length ')} tokens; give more text")
            data = datasets.Dataset.from_file(str(draft / "data-00000-of-00001.arrow"))
            data.save_to_disk(str(draft / "saved"))
        
    return datasets.load_from_disk(str(folder))


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """What pins a tokenizer's output: its vocabulary, merges and special tokens."""
    state = json.dumps(tokenizer.special_tokens_map, default=str, sort_keys=True) + tokenizer.backend_tokenizer.to_str()
    return hashlib.sha256(state.encode()).hexdigest()
