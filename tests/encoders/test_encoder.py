import json
import shutil

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from tiny import SENTENCES, make_tiny_model
from transformers import AutoModel, AutoTokenizer

from l2v.encoders.encoder import Encoder
from l2v.errors import L2VError
from l2v.models.backbone import Backbone
from l2v.models.settings import EncoderSettings
from l2v.pooling import POOLINGS
from l2v.runs.adapter_folders import SETTINGS_FILE

LONG_TEXT = "the cat " * 40
ODD_TEXTS = ["", " ", "  \n\t ", "cat", "😀 🏳️‍🌈", "\ud800", "a\udc00b", "\x00", "</s>", "مرحبا 你好", LONG_TEXT]


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return Encoder.from_pretrained(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def absolute_encoder(tmp_path_factory):
    """An encoder with absolute positions and a beginning-of-text token: what padding disturbs first."""
    folder = make_tiny_model(tmp_path_factory.mktemp("gpt2"), family="gpt2", bos=True)
    return Encoder.from_pretrained(folder, device="cpu")


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def by_hand(encoder, text):
    """Mean of the token states, by transformers alone."""
    ids = encoder.backbone.tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder.backbone.decoder(input_ids=ids, use_cache=False).last_hidden_state[0].mean(dim=0).numpy()


def test_vectors_are_the_mean_of_the_token_states(encoder):
    close(encoder.encode(SENTENCES), np.stack([by_hand(encoder, text) for text in SENTENCES]))


def test_shapes_and_type(encoder):
    assert encoder.dimension == 32
    assert encoder.encode(SENTENCES).shape == (len(SENTENCES), 32)
    assert encoder.encode(SENTENCES).dtype == np.float32
    assert encoder.encode("A cat").shape == (32,)
    assert encoder.encode([]).shape == (0, 32)
    assert encoder.encode([], truncate_dim=5).shape == (0, 5)
    assert encoder.encode([""]).shape == (1, 32)
    assert encoder.encode("").shape == (32,)


def test_a_single_string_gives_the_row_of_a_list_of_one_with_every_setting(encoder):
    settings = {"instruction": "Find", "max_length": 5, "normalize": True, "truncate_dim": 7, "batch_size": 3}
    close(encoder.encode(SENTENCES[0], **settings), encoder.encode([SENTENCES[0]], **settings)[0])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_odd_texts_have_finite_vectors(tiny_model, pooling):
    vectors = Encoder.from_pretrained(tiny_model, pooling=pooling, device="cpu").encode(ODD_TEXTS)
    assert np.isfinite(vectors).all() and (np.abs(vectors).sum(axis=1) > 0).all()


def test_a_lone_surrogate_is_read_as_the_replacement_character(encoder):
    close(encoder.encode("a \ud800 cat"), encoder.encode("a \ufffd cat"))


def test_a_text_of_100_000_words_is_cut_to_max_length(encoder):
    close(encoder.encode("cat " * 100_000), by_hand(encoder, ("cat " * 512).strip()))


def test_max_length_cuts_texts_and_can_be_raised_and_lowered(encoder):
    tokenizer, text = encoder.backbone.tokenizer, SENTENCES[0]
    first_four = tokenizer.decode(tokenizer(text).input_ids[:4])
    close(encoder.encode(text, max_length=4), encoder.encode(first_four))
    assert not np.allclose(encoder.encode(text, max_length=4), encoder.encode(text))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
@pytest.mark.parametrize("which", ["encoder", "absolute_encoder"])
def test_vectors_do_not_depend_on_the_batch(request, which, batch_size):
    encoder = request.getfixturevalue(which)
    alone = np.stack([encoder.encode(text) for text in SENTENCES + ODD_TEXTS])
    close(encoder.encode(SENTENCES + ODD_TEXTS, batch_size=batch_size), alone)


def test_vectors_come_in_the_order_of_the_texts(encoder):
    texts = SENTENCES + ODD_TEXTS
    order = np.random.default_rng(0).permutation(len(texts))
    close(encoder.encode([texts[i] for i in order], batch_size=4), encoder.encode(texts, batch_size=4)[order])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("which", ["encoder", "absolute_encoder"])
def test_vectors_do_not_depend_on_the_padding_side(request, which, pooling):
    backbone = request.getfixturevalue(which).backbone
    texts = SENTENCES + ODD_TEXTS
    right, left = (Encoder(backbone, pooling=pooling, padding_side=side) for side in ("right", "left"))
    close(left.encode(texts, instruction="Find"), right.encode(texts, instruction="Find"))


def test_duplicates_have_the_same_vector(encoder):
    vectors = encoder.encode(["cat", SENTENCES[0], "cat", SENTENCES[1], "cat"], batch_size=2)
    close(vectors[0], vectors[2])
    close(vectors[0], vectors[4])


def test_the_same_call_gives_the_same_bits(encoder):
    assert np.array_equal(encoder.encode(SENTENCES), encoder.encode(SENTENCES))


def test_an_instruction_is_seen_but_not_pooled(encoder):
    ids = encoder.backbone.tokenizer("Find:\ncat sat", return_tensors="pt").input_ids
    with torch.no_grad():
        states = encoder.backbone.decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
    close(encoder.encode("cat sat", instruction="Find"), states[-2:].mean(dim=0).numpy())
    assert not np.allclose(encoder.encode("cat sat", instruction="Find"), encoder.encode("cat sat"), atol=1e-3)


def test_pairs_are_instructions_and_texts(encoder):
    pairs = [("Find", "cat sat"), ("Find the dog", "the mat"), (None, "a dog"), ("", "a dog")]
    expected = [encoder.encode(text, instruction=instruction) for instruction, text in pairs]
    close(encoder.encode(pairs), np.stack(expected))
    close(encoder.encode([list(pair) for pair in pairs]), np.stack(expected))


def test_a_tuple_of_strings_is_two_texts_and_not_a_pair(encoder):
    close(encoder.encode(("Find", "cat")), encoder.encode(["Find", "cat"]))


@pytest.mark.parametrize("collection", [np.array, iter, tuple], ids=["array", "iterator", "tuple"])
def test_texts_come_in_any_collection(encoder, collection):
    close(encoder.encode(collection(SENTENCES)), encoder.encode(SENTENCES))


def test_pairs_and_an_instruction_exclude_each_other(encoder):
    with pytest.raises(L2VError, match="not both"):
        encoder.encode([("Find", "cat")], instruction="Find")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "expected a text or texts, found NoneType"),
        (7, "expected a text or texts, found int"),
        ({"a": "cat"}, "expected a text or texts, found dict"),
        ([None], "text 0 is NoneType, expected str"),
        (["cat", 3.5], "text 1 is float, expected str"),
        ([["a", "b", "c"]], "text 0 is list, expected str"),
        ([b"cat"], "text 0 is bytes, expected str"),
        ([("Find", None)], "text 0 is NoneType"),
        ([("Find", "cat"), (3, "cat")], "the instruction of text 1 is int, expected str or None"),
    ],
)
def test_what_is_no_text_is_refused(encoder, texts, message):
    with pytest.raises(L2VError, match=message):
        encoder.encode(texts)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_length": 3.5}, "max_length must be a number of tokens, at least 1, got 3.5"),
        ({"max_length": 0}, "max_length must be a number of tokens, at least 1, got 0"),
        ({"max_length": -3}, "max_length must be a number of tokens, at least 1, got -3"),
        ({"truncate_dim": 0}, "truncate_dim must be in 1..32, got 0"),
        ({"truncate_dim": 33}, "truncate_dim must be in 1..32, got 33"),
    ],
)
def test_settings_out_of_range_are_refused(encoder, setting, message):
    with pytest.raises(L2VError, match=message):
        encoder.encode(["cat"], **setting)


def test_normalized_vectors_have_length_one(encoder):
    vectors = encoder.encode(SENTENCES, normalize=True)
    close(np.linalg.norm(vectors, axis=1), np.ones(len(SENTENCES)))
    plain = encoder.encode(SENTENCES)
    close(vectors, plain / np.linalg.norm(plain, axis=1, keepdims=True))


def test_truncation_comes_before_normalisation(encoder):
    close(encoder.encode(SENTENCES, truncate_dim=5), encoder.encode(SENTENCES)[:, :5])
    close(np.linalg.norm(encoder.encode(SENTENCES, truncate_dim=5, normalize=True), axis=1), np.ones(len(SENTENCES)))


def test_similarity_is_the_cosine(encoder):
    a, b = np.array([[1.0, 0.0], [3.0, 4.0]], np.float32), np.array([[0.0, 2.0], [5.0, 0.0], [0.0, 0.0]], np.float32)
    close(encoder.similarity(a, b), [[0.0, 1.0, 0.0], [0.8, 0.6, 0.0]])
    close(encoder.similarity(a[1], b), [[0.8, 0.6, 0.0]])


@pytest.mark.parametrize("training", [True, False])
def test_encoding_runs_without_dropout_and_restores_the_mode(tiny_model, training):
    encoder = Encoder.from_pretrained(tiny_model, device="cpu")
    expected = encoder.encode(SENTENCES)
    for layer in encoder.backbone.decoder.layers:
        layer.self_attn.attention_dropout = 0.5
    encoder.backbone.train(training)
    close(encoder.encode(SENTENCES), expected)
    assert all(module.training is training for module in encoder.backbone.modules())


def test_a_new_encoder_stays_in_evaluation_mode(tiny_model):
    encoder = Encoder.from_pretrained(tiny_model, device="cpu")
    encoder.encode("cat")
    assert not any(module.training for module in encoder.backbone.decoder.modules())


def test_the_mode_is_restored_after_an_interruption(tiny_model, monkeypatch):
    encoder = Encoder.from_pretrained(tiny_model, device="cpu")
    encoder.backbone.train()
    monkeypatch.setattr(encoder, "_embed", lambda tokens: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        encoder.encode("cat")
    assert encoder.backbone.decoder.training


def test_encoding_keeps_no_gradients(encoder):
    encoder.encode("cat")
    assert all(parameter.grad is None for parameter in encoder.backbone.parameters())


@pytest.mark.parametrize("setting", ["pooling", "attention", "attn_implementation", "dtype"])
def test_unknown_names_are_refused_before_anything_is_loaded(tiny_model, setting, monkeypatch):
    monkeypatch.setattr("l2v.encoders.encoder.Backbone.load", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(L2VError, match=f"{setting} must be one of .*, got 'no-such'"):
        Encoder.from_pretrained(tiny_model, **{setting: "no-such"})


def test_a_max_length_of_zero_is_refused(tiny_model):
    with pytest.raises(L2VError, match="max_length must be a number of tokens, at least 1, got 0"):
        Encoder.from_pretrained(tiny_model, max_length=0)


def test_an_unknown_padding_side_is_refused(encoder):
    with pytest.raises(L2VError, match="padding_side must be one of right, left, got 'middle'"):
        Encoder(encoder.backbone, padding_side="middle")


def test_a_missing_folder_is_told_in_one_line(tmp_path):
    with pytest.raises(L2VError, match="no such file or folder") as error:
        Encoder.from_pretrained(tmp_path / "missing")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_16_bit_encoder_gives_nearly_the_same_float32_vectors(tiny_model, encoder, dtype):
    vectors = Encoder.from_pretrained(tiny_model, dtype=dtype, device="cpu").encode(SENTENCES)
    expected = encoder.encode(SENTENCES)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors - expected) / np.linalg.norm(expected) < 0.03


SETTINGS = {
    "pooling": "weighted_mean",
    "attention": "causal",
    "max_length": 11,
    "text_max_length": 4,
    "separator": " | ",
}
SETTINGS |= {"template": "user: {text}</s>", "pooled_tokens": "text"}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", [{}, SETTINGS], ids=["defaults", "settings"])
def test_a_saved_encoder_gives_the_same_vectors(tmp_path, family, settings):
    encoder = Encoder.from_pretrained(make_tiny_model(tmp_path / "model", family=family), device="cpu", **settings)
    encoder.save(tmp_path / "saved")
    again = Encoder.from_pretrained(tmp_path / "saved", device="cpu")
    for texts in (SENTENCES, [("Find", text) for text in SENTENCES]):
        close(again.encode(texts), encoder.encode(texts), 1e-6)
    for setting in ("pooling", "max_length", "text_max_length", "prompt"):
        assert getattr(again, setting) == getattr(encoder, setting)
    assert again.backbone.attention == encoder.backbone.attention


@pytest.mark.parametrize(
    ("bos", "settings", "portable"),
    [
        (True, {}, True),
        (True, {"pooled_tokens": "text"}, False),
        (False, {"pooled_tokens": "text"}, True),
        (False, {"pooled_tokens": "all"}, False),
        (False, {"template": "[{text}]"}, False),
        (False, {"separator": ": "}, False),
        (False, {"separator": " -> "}, False),
        (True, {"separator": "\n"}, True),
        (False, {"text_max_length": 9}, False),
        (False, {"pooling": "last_token"}, True),
        (False, {"pooling": "weighted_mean"}, False),
    ],
)
def test_what_sentence_transformers_would_read_otherwise_is_said(tmp_path, capsys, bos, settings, portable):
    model = make_tiny_model(tmp_path / "model", bos=bos)
    Encoder.from_pretrained(model, device="cpu", **settings).save(tmp_path / "saved")
    assert ("its vectors differ" in capsys.readouterr().err) is not portable


def test_arguments_override_what_was_saved(tmp_path, encoder):
    encoder.save(tmp_path)
    again = Encoder.from_pretrained(tmp_path, device="cpu", **SETTINGS)
    assert (again.pooling, again.max_length, again.prompt.separator) == ("weighted_mean", 11, " | ")
    assert again.backbone.attention == "causal"


def test_arguments_change_settings_that_are_given_whole(tiny_model):
    settings = EncoderSettings(str(tiny_model), pooling="bos", max_length=64)
    encoder = Encoder.from_pretrained(settings, pooling="last_token", attention="causal", device="cpu")
    assert (encoder.pooling, encoder.max_length, encoder.backbone.attention) == ("last_token", 64, "causal")
    assert Backbone.load(str(tiny_model), settings, attention="causal").attention == "causal"
    with pytest.raises(TypeError, match="poolling"):
        Encoder.from_pretrained(settings, poolling="bos")


def test_saving_over_an_older_encoder_replaces_it(tmp_path, tiny_model, absolute_encoder):
    Encoder.from_pretrained(tiny_model, device="cpu", pooling="bos").save(tmp_path)
    absolute_encoder.save(tmp_path)
    close(Encoder.from_pretrained(tmp_path, device="cpu").encode(SENTENCES), absolute_encoder.encode(SENTENCES), 1e-6)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_transformers_alone_gives_a_saved_encoder_the_same_states(tmp_path, tiny_model, attention, attn_implementation):
    encoder = Encoder.from_pretrained(tiny_model, attention=attention, device="cpu")
    encoder.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["is_causal"] is (attention == "causal")
    model = AutoModel.from_pretrained(tmp_path, attn_implementation=attn_implementation).eval()
    rows = AutoTokenizer.from_pretrained(tmp_path)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**rows).last_hidden_state
        expected = encoder.backbone(rows.input_ids, rows.attention_mask)
    real = rows.attention_mask.bool()
    torch.testing.assert_close(states[real], expected[real], rtol=1e-5, atol=1e-5)


def test_a_saved_encoder_describes_itself_to_sentence_transformers(tmp_path, tiny_model):
    Encoder.from_pretrained(tiny_model, pooling="last_token", max_length=77, device="cpu").save(tmp_path)
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert [key for key, on in pooling.items() if "pooling_mode" in key and on] == ["pooling_mode_lasttoken"]
    assert pooling["word_embedding_dimension"] == 32
    assert json.loads((tmp_path / "sentence_bert_config.json").read_text())["max_seq_length"] == 77
    assert [module["path"] for module in json.loads((tmp_path / "modules.json").read_text())] == ["", "1_Pooling"]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_folder_of_sentence_transformers_keeps_its_pooling_and_length(tmp_path, tiny_model, pooling):
    Encoder.from_pretrained(tiny_model, pooling=pooling, max_length=33, device="cpu").save(tmp_path)
    (tmp_path / SETTINGS_FILE).unlink()
    encoder = Encoder.from_pretrained(tmp_path, device="cpu")
    assert (encoder.pooling, encoder.max_length, encoder.backbone.attention) == (pooling, 33, "bidirectional")


def test_a_causal_folder_of_sentence_transformers_stays_causal(tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "1_Pooling").mkdir()
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    encoder = Encoder.from_pretrained(tmp_path / "model", device="cpu")
    assert (encoder.pooling, encoder.backbone.attention) == ("last_token", "causal")


def test_a_pooling_that_is_not_known_is_refused(tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "1_Pooling").mkdir()
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(L2VError, match="pooling max: what l2v does not do"):
        Encoder.from_pretrained(tmp_path / "model", device="cpu")


def test_damaged_settings_are_told_with_their_file_and_line(tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / SETTINGS_FILE).write_text('{\n"pooling": mean\n}')
    with pytest.raises(L2VError, match=f"{SETTINGS_FILE}:2: not JSON"):
        Encoder.from_pretrained(tmp_path / "model", device="cpu")


def test_an_encoder_on_the_hub_keeps_its_settings(tmp_path, tiny_model, monkeypatch):
    repository = tmp_path / "models--someone--encoder"
    Encoder.from_pretrained(tiny_model, device="cpu", **SETTINGS).save(repository / "snapshots" / "c0ffee")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    encoder = Encoder.from_pretrained("someone/encoder", device="cpu")
    assert (encoder.pooling, encoder.max_length, encoder.prompt.separator) == ("weighted_mean", 11, " | ")
    assert encoder.backbone.attention == "causal"


def test_a_run_folder_stands_for_its_encoder(tmp_path, encoder):
    (tmp_path / "run.json").write_text('{"status": "finished"}')
    with pytest.raises(L2VError, match="the run has no encoder yet"):
        Encoder.from_pretrained(tmp_path, device="cpu")
    encoder.save(tmp_path / "encoder")
    close(Encoder.from_pretrained(tmp_path, device="cpu").encode(SENTENCES), encoder.encode(SENTENCES), 1e-6)


def test_the_real_encoder_has_576_dimensions(real_encoder_source):
    vectors = Encoder.from_pretrained(real_encoder_source, device="cpu").encode(["A cat sat on the mat."])
    assert vectors.shape == (1, 576) and np.isfinite(vectors).all()


@pytest.mark.parametrize(
    ("dtype", "attention"), [("bfloat16", "causal"), pytest.param("float16", "bidirectional", marks=pytest.mark.slow)]
)
def test_the_real_encoder_in_16_bits_agrees_with_float32(real_encoder_source, dtype, attention):
    vectors, expected = (
        Encoder.from_pretrained(real_encoder_source, device="cpu", dtype=t, attention=attention).encode(
            SENTENCES, normalize=True
        )
        for t in (dtype, "float32")
    )
    assert (vectors * expected).sum(axis=1).min() >= 0.999
