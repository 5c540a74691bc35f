import concurrent.futures
from typing import Any

import pytest
import torch
from tiny import SENTENCES, make_tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from l2v.errors import L2VError
from l2v.text.prompts import Prompt
from l2v.text.tokenization import Tokens, clean, mask_token_id, pad, tokenize
from l2v.text.vocabulary import settle

BOS, EOS = 0, 1


@pytest.fixture(scope="module", params=[False, True], ids=["no_bos", "bos"])
def tokenizer(request):
    return make_tiny_tokenizer(bos=request.param)


def pooled(tokenizer, row):
    return tokenizer.convert_ids_to_tokens(row.input_ids[row.text_begin :])


def test_texts_without_an_instruction_are_pooled_whole(tokenizer):
    assert tokenize(SENTENCES, tokenizer, max_length=99) == [Tokens(tokenizer(text).input_ids, 0) for text in SENTENCES]


def test_only_the_text_after_an_instruction_is_pooled(tokenizer):
    [row] = tokenize(["cat sat"], tokenizer, max_length=99, instructions=["Find the sentence"])
    assert row.input_ids == tokenizer("Find the sentence:\ncat sat").input_ids
    assert pooled(tokenizer, row) == ["cat", "Ġsat"]


def test_a_token_across_the_border_counts_as_text(tokenizer):
    # ": " ends in a space, and the tokenizer makes one token of the space and the word after it
    [row] = tokenize(["cat"], tokenizer, max_length=99, instructions=["the"], prompt=Prompt(separator=": "))
    assert tokenizer.convert_ids_to_tokens(row.input_ids)[-2:] == [":", "Ġcat"]
    assert pooled(tokenizer, row) == ["Ġcat"]


def test_a_token_of_letters_from_both_sides_of_the_border_counts_as_text(tokenizer):
    [row] = tokenize(["at on the mat"], tokenizer, max_length=99, instructions=["a c"], prompt=Prompt(separator=""))
    assert tokenizer.decode(row.input_ids, skip_special_tokens=True) == "a cat on the mat"
    assert pooled(tokenizer, row) == ["Ġcat", "Ġon", "Ġthe", "Ġmat"]


def test_the_border_is_found_after_letters_of_several_bytes(tokenizer):
    [row] = tokenize(["cat"], tokenizer, max_length=99, instructions=["Où est-il 😀"])
    assert pooled(tokenizer, row) == ["cat"]


def test_each_text_has_its_own_instruction_or_none(tokenizer):
    rows = tokenize(["cat", "cat", "cat"], tokenizer, max_length=99, instructions=["Find", None, ""])
    first = len(tokenizer("Find:\n").input_ids)
    assert [row.text_begin for row in rows] == [first, 0, 0]
    assert rows[1] == rows[2] == tokenize(["cat"], tokenizer, max_length=99)[0]


def test_the_separator_is_between_instruction_and_text(tokenizer):
    [row] = tokenize(["cat"], tokenizer, max_length=99, instructions=["Find"], prompt=Prompt(separator=" -> "))
    assert row.input_ids == tokenizer("Find -> cat").input_ids


def test_texts_are_cut_on_the_right(tokenizer):
    whole = tokenizer(SENTENCES[0]).input_ids
    assert tokenize(SENTENCES[:1], tokenizer, max_length=5) == [Tokens(whole[:5])]
    assert tokenize(SENTENCES[:1], tokenizer, max_length=len(whole)) == [Tokens(whole)]


def test_a_cut_leaves_the_instruction_whole(tokenizer):
    instruction = len(tokenizer("Find:\n").input_ids)
    [row] = tokenize(["cat sat on the mat"], tokenizer, max_length=instruction + 2, instructions=["Find"])
    assert pooled(tokenizer, row) == ["cat", "Ġsat"]


def test_an_instruction_without_room_for_its_text_is_refused(tokenizer):
    with pytest.raises(L2VError, match=r"the instruction 'Find the sentence:\\n'.* takes all of max_length=3 tokens"):
        tokenize(["cat"], tokenizer, max_length=3, instructions=["Find the sentence"])


def test_an_empty_text_becomes_one_special_token(tokenizer):
    assert tokenize([""], tokenizer, max_length=9) == [Tokens([BOS])]


def test_an_empty_text_becomes_the_end_token_where_there_is_no_beginning_token():
    tokenizer = make_tiny_tokenizer()
    tokenizer.bos_token = None
    assert tokenize([""], tokenizer, max_length=9) == [Tokens([EOS])]


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_text_after_an_instruction_pools_at_least_one_token(tokenizer, text):
    [row] = tokenize([text], tokenizer, max_length=9, instructions=["Find"])
    assert 0 <= row.text_begin < len(row.input_ids)


def test_an_empty_text_is_represented_by_its_instruction_even_when_that_is_cut(tokenizer):
    [row] = tokenize([""], tokenizer, max_length=2, instructions=["Find the sentence"])
    assert row.text_begin == 0 and len(row.input_ids) == 2


def test_a_text_that_the_tokenizer_drops_is_represented_by_its_instruction():
    tokenizer = make_tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    [row] = tokenize(["\u200b"], tokenizer, max_length=99, instructions=["Find"])
    assert row == Tokens(tokenizer("Find:\n").input_ids, 0)


@pytest.mark.parametrize(
    ("separator", "apart"), [(":\n", True), ("\n", True), (": ", False), (" ", False), ("", True), (":\n\n", True)]
)
def test_whether_a_separator_has_the_same_tokens_alone_and_before_a_text(tokenizer, separator, apart):
    assert Prompt(separator=separator).stays_apart(tokenizer) is apart


def test_an_end_token_after_the_separator_is_not_the_separators():
    tokenizer = make_tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", EOS)]
    )
    assert tokenizer("Find").input_ids[-1] == EOS
    assert Prompt().stays_apart(tokenizer) and not Prompt(separator=": ").stays_apart(tokenizer)


TEMPLATE = Prompt(template="user\n{text}</s>")


def test_a_template_stands_around_the_text_and_its_end_is_pooled(tokenizer):
    [row] = tokenize(["cat sat"], tokenizer, max_length=99, prompt=TEMPLATE)
    assert row.input_ids == tokenizer("user\ncat sat</s>").input_ids
    assert tokenizer.decode(row.input_ids[row.text_begin :]) == "cat sat</s>"


def test_an_instruction_goes_inside_the_template(tokenizer):
    [row] = tokenize(["cat sat"], tokenizer, max_length=99, instructions=["Find"], prompt=TEMPLATE)
    assert row.input_ids == tokenizer("user\nFind:\ncat sat</s>").input_ids
    assert pooled(tokenizer, row) == ["cat", "Ġsat", "</s>"]


def test_only_the_text_is_cut_and_the_template_stays_whole(tokenizer):
    whole = tokenizer("user\ncat sat on the mat</s>").input_ids
    [row] = tokenize(["cat sat on the mat"], tokenizer, max_length=len(whole) - 2, prompt=TEMPLATE)
    assert row.input_ids == [*whole[:-3], EOS]


def test_a_text_alone_can_be_cut_shorter_than_its_prompt(tokenizer):
    prefix = len(tokenizer("Find:\n").input_ids)
    [row] = tokenize(["cat sat on"], tokenizer, max_length=99, instructions=["Find"], text_max_length=2)
    assert row.input_ids == tokenizer("Find:\ncat sat").input_ids and row.text_begin == prefix
    special = len(tokenizer("").input_ids)
    [row] = tokenize(["The cat sat on"], tokenizer, max_length=99, text_max_length=2)
    assert row.input_ids == tokenizer("The cat sat on").input_ids[: special + 2]


def test_an_empty_text_in_a_template_is_represented_by_the_templates_end(tokenizer):
    [row] = tokenize([""], tokenizer, max_length=99, prompt=TEMPLATE)
    assert pooled(tokenizer, row) == ["</s>"]


@pytest.mark.parametrize(
    ("pooled_tokens", "instruction", "expected"),
    [
        ("after_prompt", None, ["<s>", "cat", "Ġsat"]),
        ("after_prompt", "the", ["cat", "Ġsat"]),
        ("text", None, ["cat", "Ġsat"]),
        ("text", "the", ["cat", "Ġsat"]),
        ("all", None, ["<s>", "cat", "Ġsat"]),
        ("all", "the", ["<s>", "the", ":", "Ċ", "cat", "Ġsat"]),
    ],
)
def test_which_tokens_are_pooled(pooled_tokens, instruction, expected):
    tokenizer = make_tiny_tokenizer(bos=True)
    prompt = Prompt(pooled_tokens=pooled_tokens)
    [row] = tokenize(["cat sat"], tokenizer, max_length=99, instructions=[instruction], prompt=prompt)
    assert pooled(tokenizer, row) == expected


def test_an_empty_text_pools_its_beginning_token_where_there_is_nothing_else():
    [row] = tokenize([""], make_tiny_tokenizer(bos=True), max_length=9, prompt=Prompt(pooled_tokens="text"))
    assert row == Tokens([BOS], 0)


def test_the_tokenizers_chat_template_is_written_out():
    tokenizer = make_tiny_tokenizer(bos=True)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    prompt = Prompt.of(tokenizer, template="chat")
    assert prompt.template == "<user>{text}</s>"  # the tokenizer puts <s> first itself
    assert Prompt.of(make_tiny_tokenizer()).template == "{text}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the tokenizer has no chat template"),
        ("{{ messages[0].content | upper }}", "changes the text"),
        ("{{ raise_exception('no system prompt') }}", "the tokenizer has no chat template that can be used"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_refused(template, message):
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(L2VError, match=f"model.template=chat: .*{message}"):
        Prompt.of(tokenizer, template="chat")


@pytest.mark.parametrize("template", ["no place for it", "{text} {text}"])
def test_a_template_has_one_place_for_the_text(template):
    with pytest.raises(L2VError, match="model.template=.*: expected {text} once"):
        Prompt(template=template)


def test_no_texts_make_no_rows(tokenizer):
    assert tokenize([], tokenizer, max_length=9) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ud800", "\ufffd"),
        ("a\udfffb", "a\ufffdb"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("x\ud83d", "x\ufffd"),
        ("\ud83d\ude00", "😀"),  # a pair of surrogates is a character
        ("\ufeffcafé 😀\x00", "\ufeffcafé 😀\x00"),
        ("", ""),
    ],
)
def test_clean_replaces_lone_surrogates_and_nothing_else(text, expected):
    assert clean(text) == expected


def test_lone_surrogates_in_text_and_instruction_are_tokenized(tokenizer):
    [row] = tokenize(["a \ud800 cat"], tokenizer, max_length=99, instructions=["\udfff"])
    assert row.input_ids == tokenizer("\ufffd:\na \ufffd cat").input_ids


def test_right_padding():
    batch = pad([Tokens([5, 6, 7], 1), Tokens([8])], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["pool_mask"].tolist() == [[0, 1, 1], [1, 0, 0]]
    assert "position_ids" not in batch
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_left_padding_comes_with_positions_from_the_first_token():
    batch = pad([Tokens([5, 6, 7], 1), Tokens([8])], pad_token_id=9, side="left")
    assert batch["input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["pool_mask"].tolist() == [[0, 1, 1], [0, 0, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


def test_padding_with_the_end_token_is_told_from_a_real_end_token_by_the_mask():
    batch = pad([Tokens([5, EOS]), Tokens([5])], pad_token_id=EOS)
    assert batch["input_ids"].tolist() == [[5, EOS], [5, EOS]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_the_mask_token_is_found_in_the_vocabulary(tokenizer):
    assert tokenizer.convert_ids_to_tokens(mask_token_id(tokenizer, "_")) == "_"


def test_a_mask_token_that_is_no_single_token_is_refused(tokenizer):
    with pytest.raises(L2VError, match=r"stage.mask_token='<mask>' is not one token .* choose another, e.g. '_'"):
        mask_token_id(tokenizer, "<mask>")


def test_special_tokens_in_a_text_are_plain_text_where_that_is_wanted() -> None:
    tokenizer = make_tiny_tokenizer(bos=True)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    text, template = "A cat</s><s>a dog", "<s>{text}</s>"
    [read], [plain] = (
        tokenize([text], tokenizer, max_length=64, prompt=Prompt(special_tokens=kind)) for kind in ("tokens", "text")
    )
    assert read.input_ids.count(bos) == 2 and read.input_ids.count(eos) == 1
    assert plain.input_ids.count(bos) == 1 and plain.input_ids[0] == bos and eos not in plain.input_ids
    assert tokenizer.decode(plain.input_ids[1:]) == text
    [framed] = tokenize(
        [text], tokenizer, max_length=64, instructions=["Find</s>"], prompt=Prompt(template, special_tokens="text")
    )
    assert framed.input_ids[:2] == [bos, bos] and framed.input_ids[-1] == eos and framed.input_ids.count(eos) == 1
    assert tokenizer.decode(framed.input_ids[framed.text_begin : -1]) == text
    [again] = tokenize([text], tokenizer, max_length=64)
    assert again == read  # the tokenizer is left as it was


@pytest.mark.parametrize("template", ["{text}", "<s>[{text}]</s>"])
@pytest.mark.parametrize("length", [8, 64])
def test_texts_without_special_tokens_are_the_same_either_way(template: str, length: int) -> None:
    tokenizer = make_tiny_tokenizer(bos=True)
    prompts = [Prompt(template, special_tokens=kind) for kind in ("tokens", "text")]
    how = {"max_length": length, "text_max_length": 5}
    one, two = (tokenize([*SENTENCES, ""], tokenizer, prompt=prompt, **how) for prompt in prompts)
    assert one == two


def test_markers_that_are_not_called_special_are_plain_text_too() -> None:
    tokenizer = make_tiny_tokenizer(bos=True)
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=False)])
    marker = tokenizer.convert_tokens_to_ids("<|im_start|>")
    text = "a cat</s><|im_start|>b"
    [plain] = tokenize([text], tokenizer, max_length=64, prompt=Prompt("<|im_start|>{text}", special_tokens="text"))
    assert plain.input_ids.count(marker) == 1 and tokenizer.eos_token_id not in plain.input_ids
    assert tokenizer.decode(plain.input_ids[plain.text_begin :]) == text


def test_white_space_that_was_added_to_a_vocabulary_stays_a_token() -> None:
    tokenizer = make_tiny_tokenizer(bos=True)
    tokenizer.add_tokens([AddedToken(space, special=False, normalized=False) for space in ("    ", "\n\n")])
    texts = ["def f():\n    return 1", "one.\n\ntwo"]
    read, plain = (
        tokenize(texts, tokenizer, max_length=64, prompt=Prompt(special_tokens=kind)) for kind in ("tokens", "text")
    )
    assert read == plain and any(tokenizer.convert_tokens_to_ids("    ") in row.input_ids for row in plain)


def test_two_threads_with_one_tokenizer_do_not_cut_each_others_texts() -> None:
    tokenizer = make_tiny_tokenizer(bos=True)
    texts, framed = [" ".join(SENTENCES) * 4] * 8, Prompt("{text}</s>")

    def cut() -> list[Any]:
        return tokenize(texts, tokenizer, max_length=64)

    def whole() -> list[Any]:
        return tokenize(texts, tokenizer, max_length=2000, prompt=framed)

    wanted = cut(), whole()
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(one) for _ in range(150) for one in (cut, whole)]
        found = [call.result() for call in calls]
    assert all(one == wanted[number % 2] for number, one in enumerate(found))


def test_a_tokenizer_without_a_fast_form_is_refused() -> None:
    with pytest.raises(L2VError, match="its tokenizer has no fast form"):
        settle(ByT5Tokenizer(), None)


@pytest.mark.parametrize("kind", ["Unigram", "WordLevel"])
def test_special_tokens_in_the_vocabulary_itself_are_text_where_that_is_asked_for(kind: str) -> None:
    if kind == "Unigram":
        letters = sorted({*"abs<>/"})
        pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -3.0), *((letter, -5.0) for letter in letters)]
        whole = Tokenizer(models.Unigram(pieces, unk_id=0))
        whole.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        words = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}
        whole = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=whole, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    read, plain = (
        tokenize(["a </s> b"], tokenizer, max_length=64, prompt=Prompt(special_tokens=kind))[0].input_ids
        for kind in ("tokens", "text")
    )
    special = {1, 2}
    assert special & {*read} and not special & {*plain}
    assert tokenizer.decode([plain[-1]]).strip() == "b"


def test_a_template_that_is_too_long_is_told_without_an_instruction() -> None:
    with pytest.raises(L2VError, match="what stands around a text takes all of max_length=2 tokens"):
        tokenize(["a cat"], make_tiny_tokenizer(bos=True), max_length=2, prompt=Prompt("{text} end of it"))
