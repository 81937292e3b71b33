"""The oracle: the subject's own weights + an adapter + an injector. Loss, generation, choices, saving, loading.

A saved oracle is a folder: `adapter/` (PEFT), `injector.safetensors`, and `oracle.json` with everything needed to load
it, checked on load.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessorList

from diff_oracle.oracle.adapter import LoraOptions, add_adapter
from diff_oracle.oracle.decoding import DistinctLines
from diff_oracle.oracle.injection import INJECTORS, InjectionConfig
from diff_oracle.oracle.prompt import IGNORED, Batch, Prompt, PromptBuilder, PromptConfig
from diff_oracle.subject.capture import Diff
from diff_oracle.subject.loading import LoadedModel, SubjectConfig, load_hf_model
from diff_oracle.tasks.text import MINUS, Text, Vocabulary

SIDECAR = "oracle.json"
FORMAT_VERSION = 2


@dataclass
class OracleConfig:
    """What an oracle is made of, beside its base model."""

    lora: LoraOptions
    prompt: PromptConfig
    injection: InjectionConfig


class Oracle(nn.Module):
    """A language model that reads a diff at the slots of its prompt.

    Attributes:
        lm: The base model with its adapter.
        injector: Puts diffs into the slots.
        prompts: Writes and collates prompts.
        vocabulary: Tokens as text.
        identity: The base model's identity, which a dataset's subject must equal.
    """

    accepts_loss_kwargs = False  # tells Trainer that the loss is a mean already

    def __init__(
        self, loaded: LoadedModel, base: SubjectConfig, config: OracleConfig, adapter: Path | None = None
    ) -> None:
        """On a loaded model, with a fresh adapter or one read from `adapter`; see `create` and `from_pretrained`."""
        super().__init__()
        self.base, self.config, self.identity = base, config, loaded.identity
        self.vocabulary = Vocabulary(loaded.tokenizer, loaded.identity.vocab_size)
        self.prompts = PromptBuilder(self.vocabulary, config.prompt, config.injection, loaded.identity.d_model)
        self.injector = INJECTORS[config.injection.kind](config.injection, loaded.model).to(loaded.model.device)
        loaded.model.generation_config = GenerationConfig()  # the model's own may sample or penalise repetition
        if adapter is None:
            self.lm: Any = add_adapter(loaded.model, config.lora)
        else:
            self.lm = PeftModel.from_pretrained(loaded.model, str(adapter), is_trainable=True)

    @classmethod
    def create(cls, base: SubjectConfig, config: OracleConfig, device: str = "cpu") -> Oracle:
        """A fresh oracle: it answers as its base model does until it is trained."""
        return cls(load_hf_model(base, device), base, config)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.lm.parameters()).device

    @property
    def takes_any_mask(self) -> bool:
        """Whether the model's attention follows a mask with a row and a column for every position."""
        return bool(self.lm.get_base_model()._supports_attention_backend)

    @property
    def sliding_window(self) -> float:
        """Positions that every attention layer sees; infinite where none is limited."""
        window = getattr(self.lm.get_base_model().config.get_text_config(), "sliding_window", None)
        return float("inf") if window is None else float(window)

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """Mean cross-entropy of the answers; logits are computed only where a label stands."""
        inputs = Batch(**batch)  # type: ignore[typeddict-item]
        base = self.lm.get_base_model()
        mask = inputs["attention_mask"]
        if mask.ndim == 4:  # models take such a mask as what is added to the attention scores
            mask = torch.zeros_like(mask, dtype=base.dtype).masked_fill(~mask, torch.finfo(base.dtype).min)
        with self.injector.injecting(inputs["slot_mask"], inputs["vectors"]):
            hidden = base.base_model(
                input_ids=inputs["input_ids"],
                attention_mask=mask,
                position_ids=inputs["position_ids"],
                use_cache=False,
            ).last_hidden_state
        targets = inputs["labels"][:, 1:]
        labelled = targets != IGNORED
        logits = base.get_output_embeddings()(hidden[:, :-1][labelled]).float()
        return {"loss": nn.functional.cross_entropy(logits, targets[labelled])}

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, batch_size: int = 128) -> list[str]:
        """Greedy answers, as text; every line names another token (`DistinctLines`)."""
        answers = [""] * len(prompts)
        for indices in tqdm(_by_length(prompts, batch_size), desc="answering", unit=" batches", leave=False):
            batch = self._batch([prompts[i] for i in indices])
            marks = self.vocabulary.newline[-1], self.vocabulary.encode_string(MINUS)[-1]
            distinct = DistinctLines(*marks, batch["input_ids"].shape[1])
            with self.injector.injecting(batch["slot_mask"], batch["vectors"]):
                out = self.lm.generate(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    logits_processor=LogitsProcessorList([distinct]),
                    eos_token_id=self.prompts.eos_id,
                    pad_token_id=self.prompts.eos_id,
                )
            for i, row in zip(indices, out[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                answers[i] = self.vocabulary.decode(row)
        return answers

    @torch.no_grad()
    def choice_log_probs(
        self, prompts: Sequence[Prompt], choices: Sequence[Sequence[Text]], batch_size: int = 128
    ) -> list[Float[Tensor, "choice"]]:
        """For each prompt, the log-probability that the answer begins with each choice's first token.

        Raises:
            ValueError: Two choices begin with the same token.
        """
        firsts = [[self.vocabulary.encode(choice)[0] for choice in options] for options in choices]
        for options, ids in zip(choices, firsts, strict=True):
            if len(set(ids)) < len(ids):
                shown = ", ".join(repr(self.vocabulary.show(choice)) for choice in options)
                raise ValueError(f"choices are told apart by their first token, but two are the same: {shown}")
        result: list[Float[Tensor, "choice"]] = [torch.empty(0)] * len(prompts)
        for indices in tqdm(_by_length(prompts, batch_size), desc="choosing", unit=" batches", leave=False):
            batch = self._batch([prompts[i] for i in indices])
            with self.injector.injecting(batch["slot_mask"], batch["vectors"]):
                logits = self.lm(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    position_ids=batch["position_ids"],
                    logits_to_keep=1,
                    use_cache=False,
                ).logits[:, -1]
            for i, row in zip(indices, logits.float().log_softmax(-1).cpu(), strict=True):
                result[i] = row[firsts[i]]
        return result

    def ask(self, diff: Diff, question: str, max_new_tokens: int = 32) -> str:
        """The answer to a question of one's own about a diff: a row of a dataset, or one of `diffs_of_text`."""
        return self.generate([self.prompts.about(diff, (question,))], max_new_tokens)[0]

    def choose(self, diff: Diff, question: str, choices: Sequence[str]) -> dict[str, float]:
        """How likely the oracle finds each choice, among them.

        Raises:
            ValueError: Two choices begin with the same token.
        """
        prompt = self.prompts.about(diff, (question,))
        scores = self.choice_log_probs([prompt], [[(choice,) for choice in choices]])[0]
        return dict(zip(choices, scores.softmax(-1).tolist(), strict=True))

    def _batch(self, prompts: Sequence[Prompt]) -> Batch:
        batch = self.prompts.collate(prompts)
        return Batch(**{name: tensor.to(self.device) for name, tensor in batch.items()})  # type: ignore[typeddict-item, attr-defined]

    def save(self, folder: Path) -> None:
        """Writes adapter, injector and sidecar; an oracle that stands there is replaced once the new one is whole.

        Raises:
            OSError: The disk is full; nothing is left behind.
        """
        base = asdict(self.base)
        if self.base.path is not None:
            base["path"] = str(Path(self.base.path).expanduser().resolve())
        sidecar = {
            "format_version": FORMAT_VERSION,
            "base": base,
            "identity": self.identity.to_dict(),
            "config": asdict(self.config),
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
            partial = Path(scratch) / folder.name
            try:
                self.lm.save_pretrained(str(partial / "adapter"))
                state = {name: value.contiguous().cpu() for name, value in self.injector.state_dict().items()}
                save_file(state, partial / "injector.safetensors")
            except SafetensorError as error:
                if "No space left" in str(error):
                    raise OSError(errno.ENOSPC, "no space left for the oracle", str(folder)) from error
                raise
            (partial / SIDECAR).write_text(json.dumps(sidecar, indent=2) + "\n")
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu", base: SubjectConfig | None = None) -> Oracle:
        """Loads a saved oracle, on the base model it names or on the one given.

        Raises:
            ValueError: The folder holds no oracle, a damaged one, or one of another format or base model.
        """
        folder = Path(folder)
        config, saved_base, identity = _read_sidecar(folder)
        base = base or saved_base
        loaded = load_hf_model(base, device)
        found = loaded.identity.to_dict()
        for key in ("weights_hash", "tokenizer_hash"):
            if found[key] != identity[key]:
                raise ValueError(
                    f"{folder} is an oracle of another model: it was trained on {identity['name']} with "
                    f"{key} {identity[key][:12]}, but {found['name']} has {str(found[key])[:12]}"
                )
        try:
            oracle = cls(loaded, base, config, adapter=folder / "adapter")
            oracle.injector.load_state_dict(load_file(folder / "injector.safetensors"))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{folder} is damaged: {error}") from error
        return oracle.eval()


def _read_sidecar(folder: Path) -> tuple[OracleConfig, SubjectConfig, dict[str, str]]:
    if not (folder / SIDECAR).is_file():
        raise ValueError(f"{folder} holds no oracle: it has no {SIDECAR}")
    try:
        sidecar = json.loads((folder / SIDECAR).read_text())
        if sidecar["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {sidecar['format_version']}, expected {FORMAT_VERSION}")
        parts = sidecar["config"]
        config = OracleConfig(
            LoraOptions(**parts["lora"]), PromptConfig(**parts["prompt"]), InjectionConfig(**parts["injection"])
        )
        return config, SubjectConfig(**sidecar["base"]), sidecar["identity"]
    except (KeyError, TypeError, ValueError) as error:  # edited by hand, or by another version
        raise ValueError(f"{folder / SIDECAR} cannot be read: {type(error).__name__}: {error}") from error


def _by_length(prompts: Sequence[Prompt], batch_size: int) -> list[np.ndarray]:
    """Indices in batches of like length, so that little is padded."""
    order = np.argsort([len(prompt.ids) for prompt in prompts], kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
