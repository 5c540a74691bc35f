"""Labelled words: columns of files, IOB1 and IOB2, words to tokens, word vectors."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from tiny import SENTENCES, make_tiny_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from l2v.errors import L2VError
from l2v.probing.alignment import align, word_vectors
from l2v.probing.words import ColumnWords, HubWords, conll2003, label_list, labels_of, to_iob2

COLUMNS = {"word": 0, "pos": 1, "ner": -1}
CONLL = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
"""


def write(file: Path, text: str) -> str:
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_columns_of_a_file(tmp_path: Path) -> None:
    source = ColumnWords(write(tmp_path / "a.txt", CONLL), COLUMNS)
    first, second = source.sentences()
    assert first.words == ["EU", "rejects"] and first.labels == {"pos": ["NNP", "VBZ"], "ner": ["I-ORG", "O"]}
    assert second.place(1) == f"{tmp_path / 'a.txt'}:7"
    assert source.label_columns() == ["pos", "ner"]


def test_universal_dependencies(tmp_path: Path) -> None:
    rows = ["1-2\tdella\t_\t_\t_", "1\tdi\tdi\tADP\tE", "2\tla\til\tDET\tRD", "2.1\tx\tx\tX\tX", "3\t# 5\t#\tSYM\tS"]
    text = "# sent_id = 1\n" + "\n".join(rows) + "\n\n# text = b\n1\tb\tb\tNOUN\tS\n"
    source = ColumnWords(write(tmp_path / "a.conllu", text), {"word": 1, "pos": 3}, format="conllu")
    first, second = source.sentences()
    assert first.words == ["di", "la", "# 5"] and first.labels == {"pos": ["ADP", "DET", "SYM"]}
    assert second.words == ["b"] and first.lines == [3, 4, 6]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a X O\nb Y\n", r"a\.txt:2: expected 3 columns, as in line 1, found 2: 'b Y'"),
        ("a\nb\n", r"a\.txt:1: no column 1 for pos; the line has 1; name others with data\.train\.columns"),
    ],
)
def test_a_broken_line_is_told_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(L2VError, match=message):
        list(ColumnWords(write(tmp_path / "a.txt", text), COLUMNS).sentences())


def test_a_tag_that_is_no_iob_is_told_with_its_place(tmp_path: Path) -> None:
    (sentence,) = ColumnWords(write(tmp_path / "a.txt", "a X O\nb Y S-PER\n"), COLUMNS).sentences()
    with pytest.raises(
        L2VError, match=r"a\.txt:2: expected O, B-\.\.\. or I-\.\.\. .*found 'S-PER'.*task\.spans=false"
    ):
        labels_of(sentence, "ner", spans=True)
    assert labels_of(sentence, "ner", spans=False) == ["O", "S-PER"]


def test_missing_files_and_columns_are_found_before_reading(tmp_path: Path) -> None:
    with pytest.raises(L2VError, match=r"data\.train\.files=/no: no such file"):
        ColumnWords("/no", COLUMNS)
    with pytest.raises(L2VError, match=r"data\.train\.columns=.*expected the numbers of word and of a label"):
        ColumnWords(write(tmp_path / "a.txt", CONLL), {"ner": 3})
    with pytest.raises(L2VError, match=rf"data\.folder={tmp_path}: no eng\.testb \(or test\.txt\)"):
        conll2003(part="test", folder=str(tmp_path), hub="a/b")


def test_a_parquet_copy_gives_what_the_columns_give(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["O", "B-PER", "I-PER"])
    data = datasets.Dataset.from_dict(
        {"tokens": [["Peter", "sat"], ["-DOCSTART-"]], "ner_tags": [[1, 0], [0]]},
        datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(names)}),
    )
    file = tmp_path / "a.parquet"
    data.to_parquet(str(file))
    columns = {"word": "tokens", "ner": "ner_tags"}
    (sentence,) = HubWords("parquet", "train", columns, data_files=str(file)).sentences()
    assert sentence.words == ["Peter", "sat"] and sentence.labels == {"ner": ["B-PER", "O"]}
    with pytest.raises(L2VError, match="no column 'tags'; it has tokens, ner_tags"):
        list(HubWords("parquet", "train", {"word": "tokens", "ner": "tags"}, data_files=str(file)).sentences())


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("I-A I-A O I-A", "B-A I-A O B-A"),  # IOB1
        ("I-A B-A I-A", "B-A B-A I-A"),  # IOB1: a span beside one of its own type
        ("I-A I-B I-B", "B-A B-B I-B"),
        ("B-A I-B", "B-A B-B"),
        ("B-A I-A O B-B B-B I-B", "B-A I-A O B-B B-B I-B"),  # IOB2 stays
        ("O O", "O O"),
        ("I-A-1 I-A-1", "B-A-1 I-A-1"),
        ("", ""),
    ],
)
def test_iob1_becomes_iob2(tags: str, expected: str) -> None:
    assert to_iob2(tags.split()) == expected.split()


def test_labels_are_numbered_by_the_training_part() -> None:
    assert label_list({"train": [["b", "a"], ["b"]], "test": [["c", "a"]]}) == ["a", "b", "c"]


# words to tokens

NASTY = [
    ["A", "cat", "sat", "."],
    ["don't", "U.S.-based", "...", "3,000%", "http://x.y/z?a=b"],
    ["naïve", "日本語", "👩‍👩‍👧", "e\u0301", "\ud800", "x"],
    ["#", "``", "''", "-", "ß"],
    ["w"],
]


@pytest.mark.parametrize("bos", [True, False])
def test_every_word_has_just_its_tokens(bos: bool) -> None:
    tokenizer = make_tiny_tokenizer(bos=bos)
    aligned = align(NASTY, tokenizer, 512)
    word = 0
    for number, sentence in enumerate(NASTY):
        begin, end = aligned.rows[number], aligned.rows[number + 1]
        ids = aligned.ids[begin:end]
        assert ids[0] == tokenizer.bos_token_id  # put there where the tokenizer does not
        text = [w.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for w in sentence]
        assert ids[1:].tolist() == tokenizer(" ".join(text), add_special_tokens=False)["input_ids"]
        tokens = []
        for plain in text:
            first, last = int(aligned.begins[word]), int(aligned.ends[word])
            assert begin + 1 <= first < last <= end
            assert tokenizer.decode(aligned.ids[first:last]).strip() == plain
            tokens += range(first, last)
            word += 1
        others = sorted(set(range(begin + 1, end)) - set(tokens))
        assert len(set(tokens)) == len(tokens)
        assert all(tokenizer.decode(aligned.ids[other : other + 1]) == " " for other in others)  # a blank is no word's
    assert word == len(aligned.begins) == aligned.sentences[-1]


def test_special_tokens_stand_around_a_sentence_as_the_tokenizer_puts_them() -> None:
    from tokenizers import processors

    tokenizer = make_tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    aligned = align([["cat"], ["dog"]], tokenizer, 512)
    assert aligned.ids[aligned.rows[1]] == 0 and aligned.ids[aligned.rows[1] - 1] == 1


def dropping_tokenizer() -> PreTrainedTokenizerFast:
    """Drops the character x, and makes one token of "new york"."""
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "a": 2, "b": 3, "new york": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.normalizer = normalizers.Replace("x", "")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[CLS]"])
    tokenizer.add_tokens(["new york"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="[CLS]", eos_token="[CLS]", unk_token="[UNK]")


def test_dropped_words_and_tokens_across_words() -> None:
    tokenizer = dropping_tokenizer()
    aligned = align([["x", "a", "x", "b", "x"], ["new", "york", "b"], ["x"]], tokenizer, 512)
    assert aligned.ids.tolist() == [1, 2, 3, 1, 4, 3, 1]
    assert aligned.begins.tolist() == [1, 1, 2, 2, 3, 4, 4, 5, 7]
    assert aligned.ends.tolist() == [1, 2, 2, 3, 3, 5, 5, 6, 7]
    states = torch.arange(7.0)[:, None]
    begins, ends = torch.from_numpy(aligned.begins), torch.from_numpy(aligned.ends)
    # a dropped word takes the state before it, whatever the shift
    assert word_vectors(states, begins, ends, "same_token").flatten().tolist() == [0, 1, 1, 2, 2, 4, 4, 5, 6]
    assert word_vectors(states, begins, ends, "next_token").flatten().tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 6]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("max_length", [3, 4, 7, 512])
def test_long_sentences_are_split_at_word_borders_and_no_word_is_lost(bos: bool, max_length: int) -> None:
    tokenizer = make_tiny_tokenizer(bos=bos)
    words = [*SENTENCES[5].split(), "incomprehensibilities", "3,000%", "."]
    whole, split = (align([words, ["w"]], tokenizer, length) for length in (512, max_length))
    assert len(split.begins) == len(words) + 1 and split.sentences.tolist() == [0, len(words), len(words) + 1]
    lengths = np.diff(split.rows)
    assert lengths.max() <= max_length and (split.ids[split.rows[:-1]] == tokenizer.bos_token_id).all()
    assert len(lengths) == (2 if max_length == 512 else len(lengths)) and (max_length == 512 or len(lengths) > 2)
    rows = np.searchsorted(split.rows, split.begins, side="right")
    assert (rows == np.searchsorted(split.rows, split.ends - 1, side="right")).all()  # no word is in two rows
    for word in range(len(words)):
        own = whole.ids[whole.begins[word] : whole.ends[word]]
        kept = split.ids[split.begins[word] : split.ends[word]]
        assert kept.tolist() == own[: max_length - 1].tolist()  # only a word that is longer than a row is cut


def test_no_room_for_a_token_is_told() -> None:
    with pytest.raises(L2VError, match=r"model\.max_length=1: expected room"):
        align([["a"]], make_tiny_tokenizer(), 1)


def test_word_vectors_are_means_of_their_states() -> None:
    states = torch.randn(9, 5, dtype=torch.float16)
    begins, ends = torch.tensor([1, 2, 5, 7]), torch.tensor([2, 5, 5, 9])
    same = word_vectors(states, begins, ends, "same_token")
    expected = [states[1:2], states[2:5], states[4:5], states[7:9]]
    assert (
        torch.allclose(same, torch.stack([part.float().mean(0) for part in expected])) and same.dtype == torch.float32
    )
    shifted = word_vectors(states, begins, ends, "next_token")
    expected = [states[0:1], states[1:4], states[4:5], states[6:8]]
    assert torch.allclose(shifted, torch.stack([part.float().mean(0) for part in expected]))


CONLL2003 = Path(__file__).parents[2] / "../shared/data/conll2003"


@pytest.mark.skipif(not CONLL2003.is_dir(), reason="the files of CoNLL-2003 are not here")
def test_the_files_of_conll2003_are_read_whole() -> None:
    """Sentences and words as published, and the number of entities and chunks of the shared task (tables 1 and 2)."""
    expected = {"train": (14041, 203621, 23499), "validation": (3250, 51362, 5942), "test": (3453, 46435, 5648)}
    for part, counts in expected.items():
        sentences = list(conll2003(part=part, folder=str(CONLL2003), hub="").sentences())  # type: ignore[arg-type]
        tags = [label for s in sentences for label in labels_of(s, "ner", spans=True)]
        spans = sum(label.startswith("B-") for label in tags)
        assert (len(sentences), sum(len(s.words) for s in sentences), spans) == counts


GERMAN = Path(__file__).parents[2] / "../shared/data/ud-german-gsd"


@pytest.mark.skipif(not GERMAN.is_dir(), reason="the German treebank GSD is not here")
@pytest.mark.parametrize(("part", "sentences", "words"), [("dev", 799, 12_480), ("test", 977, 16_499)])
def test_a_german_treebank_is_read_whole_and_its_words_are_found(part: str, sentences: int, words: int) -> None:
    """A contraction (zum) is two words of the treebank (zu dem)."""
    source = ColumnWords(str(GERMAN / f"de_gsd-ud-{part}.conllu"), {"word": 1, "pos": 3, "xpos": 4}, format="conllu")
    found = list(source.sentences())
    tags = {label for sentence in found for label in sentence.labels["pos"]}
    assert (len(found), sum(len(sentence.words) for sentence in found)) == (sentences, words)
    assert {"NOUN", "VERB", "ADP"} < tags and "_" not in tags
