"""The peer's side: runs in an environment with llm2vec 0.2.3, never imports l2v, and writes what the peer computes.

python reference.py published BASE FOLDER    a published-like checkpoint that the peer itself saves, and its vectors
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from llm2vec import LLM2Vec
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

LORA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""The linear layers that llm2vec's training scripts adapt in Llama."""


def encode(model: LLM2Vec, texts: list, instruction: str = "", batch_size: int = 8) -> np.ndarray:
    """(texts, hidden) float32, by the peer's own ``encode``."""
    pairs = [[instruction, text] for text in texts]
    return model.encode(pairs, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)


# a published-like checkpoint


def published(base: Path, folder: Path) -> None:
    """Save a base, an MNTP adapter on it and a SimCSE adapter on the merged two, laid out as on the hub.

    Paths inside are relative to ``folder``, where the hub's repositories name ``meta-llama/...``.
    """
    inputs = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    base = base.resolve()
    os.chdir(folder)
    decoder = AutoModelForCausalLM.from_pretrained(base)
    decoder.config._name_or_path = "./base"
    decoder.save_pretrained("base")
    AutoTokenizer.from_pretrained(base).save_pretrained("base")

    model = LLM2Vec.from_pretrained("./base")
    plain = encode(model, inputs["texts"])
    model.model = _random_lora(model.model, seed=1)
    model.save("mntp")
    config = json.loads(Path("base/config.json").read_text(encoding="utf-8"))
    config |= {
        "_name_or_path": "./base",
        "architectures": ["LlamaEncoderModel"],
        "auto_map": {"AutoModel": "modeling_llama_encoder.LlamaEncoderModel"},
    }
    Path("mntp/config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    model = LLM2Vec.from_pretrained("./mntp", pooling_mode="weighted_mean", max_length=128)
    model.model = _random_lora(model.model, seed=2)
    model.save("simcse")
    for name in ("mntp", "simcse"):
        Path(name, "README.md").unlink()  # PEFT's empty model card

    mntp = LLM2Vec.from_pretrained("./mntp")
    simcse = LLM2Vec.from_pretrained("./mntp", peft_model_name_or_path="./simcse")
    for text in inputs["texts"]:
        _check_border(mntp, inputs["instruction"], text)
    vectors = {}
    for name, model in (("mntp", mntp), ("simcse", simcse)):
        vectors[name] = encode(model, inputs["texts"])
        vectors[f"{name}_instruction"] = encode(model, inputs["texts"], inputs["instruction"])
    # the same weights, where the base is one whose chat template the peer knows by its name
    for name, base_name in (
        ("llama2", "meta-llama/Llama-2-7b-chat-hf"),
        ("llama3", "meta-llama/Meta-Llama-3-8B-Instruct"),
    ):
        mntp.model.config._name_or_path = base_name
        vectors[f"mntp_{name}"] = encode(mntp, inputs["texts"])
        vectors[f"mntp_{name}_instruction"] = encode(mntp, inputs["texts"], inputs["instruction"])
    np.savez("expected.npz", **vectors)
    print(
        "cosine of base and mntp, mntp and simcse:",
        _cosines(plain, vectors["mntp"]).round(3),
        _cosines(vectors["mntp"], vectors["simcse"]).round(3),
    )


def _random_lora(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """An adapter with weights that move the vectors far, as if trained."""
    settings = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.05, target_modules=LORA_MODULES, bias="none", task_type=None
    )
    adapted = get_peft_model(model, settings)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.15
    return adapted


def _check_border(model: LLM2Vec, instruction: str, text: str) -> None:
    """Stop where the peer's count of the text's tokens is not that of the whole prompt."""
    prefix = f"{instruction} "
    encoded = model.tokenizer(prefix + text, return_offsets_mapping=True)
    right = sum(end > len(prefix) for _, end in encoded["offset_mapping"])
    counted = int(model.tokenize([f"{prefix}!@#$%^&*(){text}"])["embed_mask"].sum())
    if right != counted:
        raise SystemExit(f"{text!r}: {counted} tokens counted, {right} tokens reach into the text; choose another text")


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("published")
    command.add_argument("base", type=Path)
    command.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    published(arguments.base, arguments.folder)


if __name__ == "__main__":
    main()
