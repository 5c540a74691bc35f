"""A linear probe on a frozen model's word vectors: chunking, NER, POS tagging (paper, section 3.1 and table 4)."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import torch
from annotated_types import Ge, Lt
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from l2v.data.order import Pick, seed_of
from l2v.errors import L2VError
from l2v.losses.masked_tokens import masked_token_loss
from l2v.models.loading import load_tokenizer_and_config
from l2v.models.settings import DType, Sharding
from l2v.probing.alignment import Shift
from l2v.probing.datamodule import WordData, WordRows
from l2v.probing.scores import tagging_scores
from l2v.probing.states import FrozenModel
from l2v.probing.words import WordSource
from l2v.progress import say, track
from l2v.runs.files import check_name, draft_folder, read_json, write_json
from l2v.stages.stage import Stage

if TYPE_CHECKING:
    from l2v.runs.initialization import Initialization
    from l2v.runs.run import Run
    from l2v.training.settings import Training

PROBE = "probe"
"""The folder of a run that holds what was trained."""
_WEIGHTS, _SETTINGS = "probe.safetensors", "probe.json"
_SCORED_AT_ONCE = 64
"""Sentences."""


class LinearProbe(nn.Module):
    """Dropout and a linear classifier, on one layer's vectors or on a learned mix of several.

    The mix is gamma * sum_l softmax(w)_l h_l, with the scalars w and gamma learned (Peters et al. 2018, equation 1).
    """

    def __init__(
        self, hidden: int, labels: int, *, mixed: int = 0, dropout: float = 0.0, normalize: bool = False
    ) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(mixed)) if mixed else None
        self.gamma = nn.Parameter(torch.ones(())) if mixed else None
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, labels)
        self.normalize = normalize

    def forward(self, vectors: Float[Tensor, "layers words hidden"]) -> Float[Tensor, "words labels"]:
        # float32 whatever the precision around: the layer is tiny, and the vectors may be large
        with torch.autocast(vectors.device.type, enabled=False):
            if self.normalize:
                vectors = nn.functional.layer_norm(vectors, vectors.shape[-1:])
            if self.mix is not None and self.gamma is not None:
                mixed = self.gamma * torch.einsum("l,lwh->wh", self.mix.softmax(0), vectors)
            else:
                mixed = vectors[0]
            return self.classifier(self.dropout(mixed))


@dataclass(frozen=True)
class ProbeSettings:
    """What a saved probe reads and says."""

    task: str
    labels: list[str]
    """By number of the classifier's output."""
    spans: bool
    layers: list[int]
    """Of the model, 0 being the embeddings; a probe for each, or one for their mix."""
    mix: bool
    normalize: bool
    shift: Shift
    hidden: int


def load_probe(folder: Path) -> tuple[list[LinearProbe], ProbeSettings]:
    """The probes that a run trained, from ``<run>/probe``: one a layer, or one for the mix.

    Raises:
        L2VError: nothing there, or weights that do not fit the settings.
    """
    settings = ProbeSettings(**read_json(folder / _SETTINGS))
    probes = _probes(settings, dropout=0.0)
    weights = load_file(folder / _WEIGHTS)
    try:
        probes.load_state_dict(weights)
    except RuntimeError as error:
        raise L2VError(f"{folder / _WEIGHTS}: does not fit {_SETTINGS} ({error})") from None
    return [probe for probe in probes.eval() if isinstance(probe, LinearProbe)], settings


def _probes(settings: ProbeSettings, dropout: float) -> nn.ModuleList:
    mixed = len(settings.layers) if settings.mix else 0
    return nn.ModuleList(
        LinearProbe(settings.hidden, len(settings.labels), mixed=mixed, dropout=dropout, normalize=settings.normalize)
        for _ in range(1 if settings.mix else len(settings.layers))
    )


class WordProbe(Stage):
    """Train a dropout and a linear classifier on word vectors of a frozen model.

    Several layers without ``mix`` train a probe each, side by side: each has the loss, the gradient and the clipping
    that it would have alone.

    Args:
        task: a name for the scores.
        column: of the data's labels.
        spans: labels are spans in IOB1 or IOB2, read as IOB2; they are scored as spans too.
        layers: whose states are read: a number (0: embeddings; -1: the last, after the final norm), a list, or all.
        mix: learn one mix of the layers instead of a probe for each.
        normalize: scale each vector to mean 0 and variance 1, so that layers of different magnitude can be compared.
        shift: same_token, next_token (states one position earlier), or auto: next_token where MNTP is in the lineage.
        dropout: probability, on the vectors.
        states_dtype: of the states on disk. Rounding: float16 at most 0.05% of a value, bfloat16 0.4%.
        batch_tokens: tokens a forward pass of the encoding, padding included.
        settings: see :class:`~l2v.stages.stage.Stage`.
    """

    trains_backbone = False
    data_keys = ("test", "folder")

    def __init__(
        self,
        *,
        task: str | None,
        column: str | None,
        spans: bool = False,
        layers: int | list[int] | Literal["all"] = -1,
        mix: bool = False,
        normalize: bool = False,
        shift: Shift | Literal["auto"] = "auto",
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.1,
        states_dtype: DType = "float16",
        batch_tokens: Annotated[int, Ge(1)] = 4096,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if task is None or column is None:
            raise L2VError("task: must be given with stage=word; task=chunk, task=ner or task=pos, or all by -m")
        if mix and isinstance(layers, int):
            raise L2VError(
                f"stage.mix=true: needs several layers, found stage.layers={layers}; set it to all or a list"
            )
        if layers == []:
            raise L2VError("stage.layers=[]: expected at least one layer")
        check_name(task, "stage.task")
        self.task, self.column, self.spans = task, column, spans
        self.layers, self.mix, self.normalize = layers, mix, normalize
        self.wanted_shift: Shift | Literal["auto"] = shift
        self.shift: Shift
        self.dropout, self.states_dtype, self.batch_tokens = dropout, states_dtype, batch_tokens
        self.words: WordData
        self.probes: nn.ModuleList

    def check(self, *, encoder: bool, adapter: bool, sharding: Sharding, sources: Sequence[object]) -> None:
        if adapter:
            raise L2VError("adapter=lora: stage=word leaves the model as it is; leave adapter= out")
        if sharding != "none":
            raise L2VError("trainer=: stage=word trains one linear layer, which is not sharded; use trainer=gpu or ddp")
        for source in sources:
            if not isinstance(source, WordSource):
                raise L2VError("data=: stage=word needs labelled words: data=conll2003, data=conll or data=conllu")
            if self.column not in source.label_columns():
                columns = ", ".join(source.label_columns())
                raise L2VError(f"task.column={self.column}: the data has the columns {columns}; name one of them")

    def data(self, training: "Training", start: "Initialization", device: torch.device | str) -> WordData:
        """Labelled words as vectors of the frozen model that ``start`` stands for.

        The data call :meth:`build` when they are set up: the stage gets everything of the model from them.
        """
        model = training.model

        def frozen() -> FrozenModel:
            tokenizer, config = load_tokenizer_and_config(
                start.base, kind=model.kind, trust_remote_code=model.trust_remote_code
            )
            commit = None if start.base.is_local else getattr(config, "_commit_hash", None)
            settings = [model.attention, model.attn_implementation, model.dtype, model.partial]
            return FrozenModel(
                fingerprint=[start.fingerprint(), commit, *settings],
                tokenizer=tokenizer,
                depth=config.get_text_config().num_hidden_layers,
                max_length=model.max_length or 512,
                load=lambda: training.load_backbone(start, training_mode=False, device=device),
            )

        self.seed = training.seed
        has_mntp = any("mntp" in stage.lower() for stage in start.stages())
        self.shift = self.wanted_shift if self.wanted_shift != "auto" else "next_token" if has_mntp else "same_token"
        train, validation = cast(WordSource, training.train), cast(WordSource, training.validation)
        test = cast(WordSource | None, training.test)
        self.words = WordData(self, frozen, train, validation, test, workers=training.workers, show=training.show)
        return self.words

    def resolved_layers(self, depth: int) -> list[int]:
        """Layers counted from 0, each once.

        Raises:
            L2VError: the model has no such layer.
        """
        if self.layers == "all":
            return list(range(depth + 1))
        wanted = [self.layers] if isinstance(self.layers, int) else list(self.layers)
        for layer in wanted:
            if not -depth - 1 <= int(layer) <= depth:
                raise L2VError(
                    f"stage.layers={layer}: the model has layers 0 (embeddings) to {depth}, or -1 for the last"
                )
        return list(dict.fromkeys(int(layer) % (depth + 1) for layer in wanted))

    def build(self, labels: list[str], layers: list[int], hidden: int) -> None:
        """Make the probes, the same on every process."""
        self.probe_settings = ProbeSettings(
            self.task, labels, self.spans, layers, self.mix, self.normalize, self.shift, hidden
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(self.seed, "probe"))
            self.probes = _probes(self.probe_settings, self.dropout)

    def collator(self, *, training: bool) -> Any:
        return _as_it_is

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        # the mean over the words of all ranks: DDP averages the ranks' losses
        words = torch.tensor(len(batch["labels"]), device=self.device).float()
        count = self.trainer.strategy.reduce(words, reduce_op="mean")
        losses = torch.stack([masked_token_loss(logits, batch["labels"], count) for logits in self._logits(batch)])
        mean = self.trainer.strategy.reduce(losses.detach().mean(), reduce_op="mean")
        self.log("train/loss", mean, prog_bar=True)
        return losses.sum()

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Each probe on its own."""
        for probe in self.probes if gradient_clip_val else ():
            if gradient_clip_algorithm == "value":
                nn.utils.clip_grad_value_(probe.parameters(), float(gradient_clip_val or 0))
            else:
                nn.utils.clip_grad_norm_(probe.parameters(), float(gradient_clip_val or 0))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        all_logits, labels = self._logits(batch), batch["labels"]
        self.add_to_validation(
            loss=torch.stack([masked_token_loss(logits, labels, torch.ones(())) for logits in all_logits]).mean(),
            correct=torch.stack([(logits.argmax(dim=-1) == labels).sum() for logits in all_logits]).float().mean(),
            count=torch.tensor(len(labels)),
        )

    def on_validation_epoch_end(self) -> None:
        sums = self.validation_sums()
        count = max(sums["count"], 1)
        self.log("validation/loss", sums["loss"] / count, prog_bar=True)
        self.log("validation/accuracy", sums["correct"] / count, prog_bar=True)

    def _logits(self, batch: dict[str, Any]) -> list[Tensor]:
        return _predict([probe for probe in self.probes if isinstance(probe, LinearProbe)], batch["vectors"], self.mix)

    def configure_model(self) -> None:
        """Nothing to shard."""

    def finish(self, training: "Training", run: "Run", start: "Initialization") -> None:
        """Save the probes, read them back, and score them on all sentences of the validation and test data.

        Of several layers the one that validates best is the task's score.
        """
        begin = time.monotonic()
        with draft_folder(run.folder / PROBE) as draft:
            save_file(
                {name: value.cpu().contiguous() for name, value in self.probes.state_dict().items()}, draft / _WEIGHTS
            )
            write_json(draft / _SETTINGS, asdict(self.probe_settings))
        probes, settings = load_probe(run.folder / PROBE)
        scored = {part: self._score(probes, rows, part, training.show) for part, rows in self.words.scored().items()}
        metric = "f1" if self.spans else "paper_accuracy"
        best = max(range(len(probes)), key=lambda number: scored["validation"][number][metric])
        part = "test" if "test" in scored else "validation"
        chosen = scored[part][best]
        facts = self.words.facts()
        layers: list[int | str] = ["mix"] if self.mix else list(settings.layers)
        numbers = ("paper_accuracy", "precision", "recall", "f1")
        details = {name: chosen[name] for name in numbers if name in chosen}
        where = "" if part == "test" else " (validation)"
        scores = {
            f"{self.task}_accuracy": {
                "label": f"{self.task} token accuracy{where}",
                "metric": "paper_accuracy",
                "value": chosen["paper_accuracy"],
                "higher_is_better": True,
                "details": details,
            }
        }
        if self.spans:
            label = {"label": f"{self.task} F1{where}", "metric": "F1", "value": chosen["f1"], "higher_is_better": True}
            scores[f"{self.task}_f1"] = {**label, "details": details}
        mix = probes[0].mix
        words = {
            "task": self.task,
            "part": part,
            "shift": settings.shift,
            "layer": layers[best],
            "by_layer": [
                {
                    "layer": layer,
                    **{
                        of: {name: rows[number][name] for name in numbers if name in rows[number]}
                        for of, rows in scored.items()
                    },
                }
                for number, layer in enumerate(layers)
            ],
            "mix": None if mix is None else dict(zip(map(str, settings.layers), mix.softmax(0).tolist(), strict=True)),
            "scores": {of: rows[best] for of, rows in scored.items()},
            "states": {key: facts[key] for key in ("model", "tokens", "seconds", "tokens_per_second")},
        }
        result = {
            "suite": self.task,
            "encoder": facts["model"],
            "attention": facts["attention"],
            "seconds": round(time.monotonic() - begin, 1),
            "scores": scores,
            "words": words,
        }
        write_json(run.folder / "evaluation" / f"{self.task}.json", result)
        run.update(proof=facts["proof"], parameters=facts["parameters"])
        told = ", ".join(f"{score['metric']} {score['value']:.4f}" for score in scores.values())
        say(f"{self.task} ({part}, layer {layers[best]}, {settings.shift}): {told}")

    @torch.inference_mode()
    def _score(self, probes: list[LinearProbe], rows: WordRows, part: str, show: bool) -> list[dict[str, Any]]:
        """Scores of each probe on all sentences."""
        predicted: list[list[list[str]]] = [[] for _ in probes]
        batches = range(0, len(rows), _SCORED_AT_ONCE)
        for begin in track(batches, f"scoring ({part})", show=show):
            batch = rows.__getitems__([Pick(row, row) for row in range(begin, min(begin + _SCORED_AT_ONCE, len(rows)))])
            for sentences, logits in zip(predicted, _predict(probes, batch["vectors"], self.mix), strict=True):
                for numbers in logits.argmax(dim=-1).split(batch["lengths"]):
                    sentences.append([self.probe_settings.labels[number] for number in numbers.tolist()])
        gold, labels = self.words.gold[part], self.probe_settings.labels
        return [tagging_scores(gold, sentences, labels, spans=self.spans) for sentences in predicted]


def _predict(probes: Sequence[LinearProbe], vectors: Tensor, mix: bool) -> list[Tensor]:
    """Label scores (words, labels) of each probe."""
    return [probes[0](vectors)] if mix else [probe(vectors[n : n + 1]) for n, probe in enumerate(probes)]


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch
