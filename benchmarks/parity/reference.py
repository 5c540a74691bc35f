"""The peer's side: runs in an environment with llm2vec 0.2.3, never imports l2v, and writes what the peer computes.

python reference.py published BASE FOLDER    a published-like checkpoint that the peer itself saves, and its vectors
python reference.py values MODEL FOLDER      vectors, losses and learning rates for FOLDER/inputs.json and inputs.npz
python reference.py cases MODEL FOLDER       what the peer does in each case where it may be wrong
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from llm2vec import LLM2Vec
from llm2vec.loss.utils import load_loss
from llm2vec.models import LlamaBiForMNTP
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

LORA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""The linear layers that llm2vec's training scripts adapt in Llama."""


def encode(model: LLM2Vec, texts: list, instruction: str = "", batch_size: int = 8) -> np.ndarray:
    """(texts, hidden) float32, by the peer's own ``encode``."""
    pairs = [[instruction, text] for text in texts]
    return model.encode(pairs, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)


# vectors, losses, learning rates


def values(folder: Path, where: Path) -> None:
    """Write ``values.npz`` and ``values.json``: what the peer makes of the inputs."""
    inputs = json.loads((where / "inputs.json").read_text(encoding="utf-8"))
    with np.load(where / "inputs.npz") as file:
        arrays = {name: file[name] for name in file.files}
    found, tokens = {}, {}
    for attention in inputs["attentions"]:
        # no text is cut: both lengths are those of the other side
        model = LLM2Vec.from_pretrained(
            str(folder), enable_bidirectional=attention == "bidirectional", max_length=512, doc_max_length=512
        )
        for pooling in inputs["poolings"]:
            model.pooling_mode = pooling
            for kind, instruction in (("plain", ""), ("instruction", inputs["instruction"])):
                print(f"llm2vec: {attention}, {pooling}, {kind}", flush=True)
                found[f"{attention}/{pooling}/{kind}"] = encode(model, inputs["texts"], instruction)
                tokens[f"{pooling}/{kind}"] = [_pooled(model, instruction, text) for text in inputs["texts"]]
    found |= _losses(folder, arrays)
    for name, schedule in inputs["schedules"].items():
        found[f"learning_rate/{name}"] = _learning_rates(schedule, inputs["steps"])
    np.savez(where / "values.npz", **found)
    packages = ("llm2vec", "transformers", "peft", "tokenizers", "accelerate", "torch", "numpy")
    _write(where / "values.json", {"tokens": tokens, "versions": {name: version(name) for name in packages}})


def _pooled(model: LLM2Vec, instruction: str, text: str) -> dict:
    """The ids that the peer feeds for a text, and how many of the last ones it pools."""
    prompt = model.prepare_for_tokenization(model._convert_to_str(instruction, text))
    features = model.tokenize([prompt])
    return {"ids": features["input_ids"][0].tolist(), "pooled": int(features["embed_mask"].sum())}


@torch.inference_mode()
def _losses(folder: Path, arrays: dict) -> dict:
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    model = LlamaBiForMNTP.from_pretrained(folder).eval()
    queries, positives, negatives = (tensors[name] for name in ("queries", "positives", "negatives"))
    losses = {
        "mntp": model(input_ids=tensors["ids"], labels=tensors["labels"]).loss,
        "simcse": load_loss("HardNegativeNLLLoss", scale=20.0)(queries, positives),
        "supervised": load_loss("HardNegativeNLLLoss", scale=50.0)(queries, positives, negatives),
    }
    return {f"loss/{name}": loss.numpy() for name, loss in losses.items()}


class _Rows(torch.utils.data.Dataset):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        return {"x": 0.0}


class _Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> dict:
        return {"loss": (self.weight * x).sum()}


class _Stop(TrainerCallback):
    """Keeps the learning rate after each step, and stops as the peer's training scripts do."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.rates: list[float] = []

    def on_step_end(self, args, state, control, lr_scheduler=None, **_) -> None:
        self.rates.append(lr_scheduler.get_last_lr()[0])
        control.should_training_stop = state.global_step >= self.steps


def _learning_rates(schedule: dict, steps: int) -> np.ndarray:
    """From a run of the Trainer on a model of one weight; the peer's training scripts leave its schedule as it is."""
    stop = _Stop(steps)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            num_train_epochs=3,
            learning_rate=schedule["learning_rate"],
            warmup_steps=schedule["warmup_steps"],
            per_device_train_batch_size=schedule["batch_size"],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
        )
        Trainer(_Line(), settings, train_dataset=_Rows(schedule["rows"]), callbacks=[stop]).train()
    return np.array(stop.rates)


# where the peer may be wrong

CUT = 400
"""The peer's doc_max_length, in tokens."""


def cases(folder: Path, where: Path) -> None:
    """Write ``cases.json``: for each case the texts, and what the peer did with them, in numbers."""
    inputs = json.loads((where / "inputs.json").read_text(encoding="utf-8"))
    model = LLM2Vec.from_pretrained(str(folder))
    short, other = inputs["texts"][20], inputs["texts"][30]
    long = max(inputs["texts"], key=lambda text: len(text.split()))
    found = {}

    text = " ".join(long.split()[:250])
    instruction = " ".join([inputs["instruction"]] * 20)
    tokens = _pooled(model, instruction, text)
    found["instruction_is_pooled"] = {
        "texts": [text],
        "instruction": instruction,
        "fed": len(tokens["ids"]),
        "pooled": tokens["pooled"],
        "of_text": _reaching_into_text(model, instruction, text),
    }
    lines = "\n".join(long.split())
    unspaced = "東京は日本の首都です。人口は約千四百万人。" * 40
    found["cut_by_words"] = _cut_by_words(model, [text for text in inputs["texts"] if len(text.split()) >= 100])
    found["whitespace_is_lost"] = {
        "texts": [lines],
        "line_ends": lines.count("\n"),
        "line_ends_fed": model._convert_to_str("", lines).count("\n"),
    }
    found["cut_without_spaces"] = {"texts": [unspaced], "characters_fed": len(_fed(model, "", unspaced))}
    found["empty_text"] = {
        "texts": [""],
        "alone": _error(lambda: encode(model, [""])),
        "cosine_with_padding_token": _with_padding_token(model, encode(model, ["", other])[0]),
    }
    found["empty_text_after_instruction"] = {
        "texts": [""],
        "cosine_of_two_batches": _in_two_batches(model, inputs["instruction"], "", short, long[:600]),
    }
    model.pooling_mode = "weighted_mean"
    found["empty_text_weighted"] = {
        "texts": [""],
        "instruction": inputs["instruction"],
        "norm": float(np.linalg.norm(encode(model, [""], inputs["instruction"]))),
    }
    model.pooling_mode = "bos_token"
    found["bos_token"] = {"texts": [short, other], "error": _error(lambda: encode(model, [short, other]))}
    model.pooling_mode = "eos_token"
    features = model.tokenize([model.prepare_for_tokenization(model._convert_to_str("", short))])
    last = int(features["input_ids"][0, -1])
    found["eos_token"] = {
        "texts": [short],
        "pooled_token": model.tokenizer.decode([last]),
        "pooled_id": last,
        "eos_id": model.tokenizer.eos_token_id,
    }
    model.pooling_mode = "mean"
    found["one_string"] = {
        "texts": ["hello world"],
        "vectors": len(model.encode("hello world", show_progress_bar=False)),
    }
    found["no_texts"] = {"texts": [], "error": _error(lambda: model.encode([]))}
    marks = "She typed !@#$%^&*() and left."
    found["separator_in_text"] = {
        "texts": [marks],
        "characters": len(marks),
        "characters_fed": len(_fed(model, "", marks)),
        "pooled": _pooled(model, "", marks)["pooled"],
    }
    by_folder = encode(model, [short, long])
    model.config._name_or_path = "meta-llama/Llama-2-7b-chat-hf"
    by_name = encode(model, [short, long])
    found["template_by_name"] = {"texts": [short, long], "cosines": _cosines(by_folder, by_name).tolist()}

    small = LLM2Vec.from_pretrained(str(Path(inputs["published"]) / "base"), max_length=64, doc_max_length=64)
    found["bos_is_pooled"] = {
        "texts": [short, long],
        "pooled_of_fed": [[t["pooled"], len(t["ids"])] for t in (_pooled(small, "", text) for text in (short, long))],
    }

    for implementation in ("sdpa", "eager"):
        model = LLM2Vec.from_pretrained(str(folder), attn_implementation=implementation, torch_dtype=torch.float32)
        found[f"right_{implementation}"] = {
            "batching": float(
                _cosines(encode(model, inputs["texts"][:40]), encode(model, inputs["texts"][:40], batch_size=1)).min()
            ),
            "change_of_first_state": _change_of_first_state(model, other),
        }
    _write(where / "cases.json", found)


def _cut_by_words(model: LLM2Vec, texts: list[str]) -> dict:
    """How many tokens are left of pairs of texts that are too long; the worst pair is the case's text."""
    pairs = [f"{a} {b}" for a in texts for b in texts if a != b]
    pairs = [pair for pair in pairs if len(model.tokenizer(pair).input_ids) > CUT]
    left = [len(model.tokenizer(_fed(model, "", pair)).input_ids) for pair in pairs]
    worst = min(left)
    return {"texts": [pairs[left.index(worst)]], "fed": worst, "pairs": len(pairs), "mean_fed": sum(left) / len(left)}


def _fed(model: LLM2Vec, instruction: str, text: str) -> str:
    """What is tokenized in place of a text."""
    return model._convert_to_str(instruction, text).replace("!@#$%^&*()", "")


def _reaching_into_text(model: LLM2Vec, instruction: str, text: str) -> int:
    prefix = f"{instruction} "
    encoded = model.tokenizer(prefix + text, return_offsets_mapping=True, truncation=True, max_length=model.max_length)
    return sum(end > len(prefix) for _, end in encoded["offset_mapping"])


def _in_two_batches(model: LLM2Vec, instruction: str, text: str, short: str, long: str) -> float:
    """Cosine of one text's vectors, once in a batch with a short text and once with a long one."""
    a, b = (encode(model, [text, other], instruction)[0] for other in (short, long))
    return float(_cosines(a, b))


def _with_padding_token(model: LLM2Vec, vector: np.ndarray) -> float:
    """Cosine of a vector with the state of a lone padding token."""
    with torch.no_grad():
        state = model.model(input_ids=torch.tensor([[model.tokenizer.pad_token_id]])).last_hidden_state[0, 0]
    return float(_cosines(vector, state.numpy()))


def _change_of_first_state(model: LLM2Vec, text: str) -> float:
    """Greatest change of the first token's state when the last token becomes another, without padding."""
    ids = model.tokenizer(text, return_tensors="pt").input_ids
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    with torch.no_grad():
        a, b = (
            model.model(input_ids=x, attention_mask=torch.ones_like(x)).last_hidden_state[0, 0] for x in (ids, other)
        )
    return float((a - b).abs().max())


def _error(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "none"


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
    _write(Path("mntp/config.json"), config)

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
    right, counted = _reaching_into_text(model, instruction, text), _pooled(model, instruction, text)["pooled"]
    if right != counted:
        raise SystemExit(f"{text!r}: {counted} tokens counted, {right} tokens reach into the text; choose another text")


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def _write(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for task in (published, values, cases):
        command = commands.add_parser(task.__name__, help=task.__doc__.split("\n")[0])
        command.add_argument("model", type=Path)
        command.add_argument("folder", type=Path)
        command.set_defaults(task=task)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    arguments.task(arguments.model, arguments.folder)


if __name__ == "__main__":
    main()
