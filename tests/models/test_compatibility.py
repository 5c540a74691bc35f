"""Files of a saved model say the same to transformers 4 and 5."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import SENTENCES, make_tiny_decoder, make_tiny_tokenizer
from transformers import AutoConfig, AutoTokenizer

from l2v import Encoder
from l2v.models.compatibility import write_for_transformers_4

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 5000.0}


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 100_000.0}, YARN], ids=["default", "yarn"])
def test_a_saved_encoder_says_where_its_tokens_are_to_both(tmp_path: Path, rope: dict[str, Any]) -> None:
    make_tiny_decoder(rope_parameters=rope).save_pretrained(tmp_path / "model")
    make_tiny_tokenizer().save_pretrained(tmp_path / "model")
    encoder = Encoder.from_pretrained(tmp_path / "model", device="cpu")
    encoder.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["rope_theta"] == rope["rope_theta"]
    own = {key: value for key, value in rope.items() if key != "rope_theta"}
    assert config["rope_scaling"] == (own if rope is YARN else None)
    tokenizer = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    # as before to the version that is here
    before, after = (AutoConfig.from_pretrained(tmp_path / name).rope_parameters for name in ("model", "saved"))
    assert before == after
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("model", "saved")]
    assert tokenizers[0](SENTENCES) == tokenizers[1](SENTENCES)
    again = Encoder.from_pretrained(tmp_path / "saved", device="cpu")
    assert (again.encode(SENTENCES) == encoder.encode(SENTENCES)).all()


def test_parameters_by_kind_of_layer_stay_as_they_are(tmp_path: Path) -> None:
    config = {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    write_for_transformers_4(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == config
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"tokenizer_class": "GPT2Tokenizer"}
