"""The oracle: the subject's own weights + an adapter + an injector. Loss, generation, choices, saving, loading."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import DynamicCache, GenerationConfig

from diff_oracle.oracle.adapter import add_adapter, load_adapter
from diff_oracle.oracle.attention import use_together
from diff_oracle.oracle.cache import growing_cache, sliding_window
from diff_oracle.oracle.decoding import answer_of, likeliest, write_answers
from diff_oracle.oracle.injection import INJECTORS
from diff_oracle.oracle.prompt import IGNORED, Batch, Prompt, PromptBuilder
from diff_oracle.oracle.storage import (
    ADAPTER,
    INJECTOR,
    TINY_RUN,
    OracleConfig,
    Sidecar,
    portable,
    read_sidecar,
    run_folder,
    saved_scores,
    write_oracle,
)
from diff_oracle.subject.capture import Diff
from diff_oracle.subject.loading import LoadedModel, SubjectConfig, load_hf_model
from diff_oracle.subject.sites import DiffSite
from diff_oracle.tasks.text import Text, Vocabulary


@dataclass(frozen=True)
class Generated:
    """What was generated."""

    text: str
    """As people read it."""
    num_tokens: int
    """How long it is, with the token that ends it."""
    cut_off: bool
    """Whether there was no more room for that token."""


class Oracle(nn.Module):
    """A language model that reads a diff at the slots of its prompt.

    Attributes:
        lm: The base model with its adapter.
        injector: Puts diffs into the slots.
        prompts: Writes and collates prompts.
        vocabulary: Tokens as text.
        identity: The base model's identity, which a dataset's subject must equal.
        scores: The table of the card that it was loaded with, in Markdown; goes to the hub with it.
    """

    accepts_loss_kwargs = True  # tells Trainer that `forward` takes num_items_in_batch

    def __init__(
        self, loaded: LoadedModel, base: SubjectConfig, config: OracleConfig, adapter: Path | None = None
    ) -> None:
        """On a loaded model, with a fresh adapter or one read from `adapter`; see `create` and `from_pretrained`."""
        super().__init__()
        self.base, self.config, self.identity, self.scores = base, config, loaded.identity, ""
        self.vocabulary = Vocabulary(loaded.tokenizer, loaded.identity.vocab_size)
        self.prompts = PromptBuilder(self.vocabulary, config.prompt, config.injection, loaded.identity.d_model)
        self.injector = INJECTORS[config.injection.kind](config.injection, loaded.model).to(loaded.model.device)
        use_together(loaded.model)
        loaded.model.generation_config = GenerationConfig()  # the model's own may sample or penalise repetition
        if adapter is None:
            self.lm: Any = add_adapter(loaded.model, config.lora)
        else:
            self.lm = load_adapter(loaded.model, adapter)

    @classmethod
    def create(cls, base: SubjectConfig, config: OracleConfig, device: str = "cpu") -> Oracle:
        """A fresh oracle: it answers as its base model does until it is trained."""
        return cls(_load_base(base, config, device), base, config)

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
        return sliding_window(self.lm.get_base_model())

    def forward(self, num_items_in_batch: Float[Tensor, ""] | None = None, **batch: Any) -> dict[str, Tensor]:
        """Mean cross-entropy of the answers; logits are computed only where a label stands.

        Args:
            num_items_in_batch: Labels of the whole batch, where this is a part of it: the loss is then this part's
                share of the mean, and the parts' losses sum to it.
            batch: What `PromptBuilder.collate` gives.
        """
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
        loss = nn.functional.cross_entropy(logits, targets[labelled])
        return {"loss": loss if num_items_in_batch is None else loss * (labelled.sum() / num_items_in_batch)}

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, batch_size: int = 128) -> list[str]:
        """Greedy answers, as text; no line says what an earlier one says (`likeliest`)."""
        return [answer.text for answer in self.answer(prompts, max_new_tokens, batch_size)]

    @torch.no_grad()
    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int, batch_size: int = 128) -> list[Generated]:
        """The same, with how each ended."""
        answers, like = [Generated("", 0, True)] * len(prompts), list[int]()
        for indices in _by_length(prompts, batch_size, "answering"):
            base, cache = self.lm.get_base_model(), growing_cache(self.lm.get_base_model())
            hidden, seen = self.read([prompts[i] for i in indices], cache)
            eos_id, newline_id = self.prompts.eos_id, self.vocabulary.newline[-1]
            ids, cut_off = write_answers(
                base,
                hidden,
                seen,
                cache,
                eos_id,
                newline_id,
                max_new_tokens,
                likeliest(newline_id),
                like,
            )
            like = answer_of(ids[0], eos_id)  # most callers ask one question of all
            for i, row, unfinished in zip(indices, ids.tolist(), cut_off.tolist(), strict=True):
                length = len(row) if unfinished else row.index(eos_id) + 1
                answers[i] = Generated(self.vocabulary.decode(row), length, unfinished)
        return answers

    def read(
        self, prompts: Sequence[Prompt], cache: DynamicCache
    ) -> tuple[Float[Tensor, "prompt d_model"], Int[Tensor, "prompt pos"]]:
        """Reads prompts, with their diffs, into an empty cache; returns their last hidden states and attention mask."""
        batch = self._batch(prompts)
        with self.injector.injecting(batch["slot_mask"], batch["vectors"]):
            hidden = (
                self.lm.get_base_model()
                .base_model(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    position_ids=batch["position_ids"],
                    past_key_values=cache,
                    use_cache=True,
                )
                .last_hidden_state
            )
        return hidden[:, -1], batch["attention_mask"]

    @torch.no_grad()
    def choice_log_probs(
        self, prompts: Sequence[Prompt], choices: Sequence[Sequence[Text]], batch_size: int = 128
    ) -> list[Float[Tensor, "choice"]]:
        """For each prompt, the log-probability that the answer begins with each choice's first token.

        Raises:
            ValueError: There is no choice, one is empty, or two begin with the same token.
        """
        encoded = [[self.vocabulary.encode(choice) for choice in options] for options in choices]
        if not all(options and all(options) for options in encoded):
            raise ValueError("there is nothing to choose: every question takes some choices, and none may be empty")
        firsts = [[ids[0] for ids in options] for options in encoded]
        for options, ids in zip(choices, firsts, strict=True):
            if len(set(ids)) < len(ids):
                shown = ", ".join(repr(self.vocabulary.show(choice)) for choice in options)
                raise ValueError(f"choices are told apart by their first token, but two are the same: {shown}")
        result: list[Float[Tensor, "choice"]] = [torch.empty(0)] * len(prompts)
        for indices in _by_length(prompts, batch_size, "choosing"):
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

    def ask(self, diff: Diff, question: str, max_new_tokens: int = 64) -> str:
        """The answer to a question of one's own about a diff: a row of a dataset, or one of `diffs_of_text`.

        How far questions in words that no training had are understood is measured (docs/oracle.md): hardly. An answer
        that is longer than `max_new_tokens` ends there; `answer` says whether it did.

        Raises:
            ValueError: The question is empty, the oracle's model has no such site, or the vectors are not as wide as
                it, or not finite. Whether they come from that model is not known.
        """
        return self.generate([self._asked(diff, question)], max_new_tokens)[0]

    def choose(self, diff: Diff, question: str, choices: Sequence[str]) -> dict[str, float]:
        """How likely the oracle finds each choice, among them.

        Raises:
            ValueError: As `ask`; or there is no choice, one is empty, or two begin with the same token.
        """
        if isinstance(choices, str):
            raise ValueError(f"choices are a list of texts, got one text: {choices!r}")
        prompt = self._asked(diff, question)
        scores = self.choice_log_probs([prompt], [[(choice,) for choice in choices]])[0]
        return dict(zip(choices, scores.softmax(-1).tolist(), strict=True))

    def _asked(self, diff: Diff, question: str) -> Prompt:
        if not question.strip():
            raise ValueError("the question is empty")
        DiffSite.parse(diff.site).check(self.identity.n_layers, self.identity.n_heads)
        return self.prompts.about(diff, (question,))

    def _batch(self, prompts: Sequence[Prompt]) -> Batch:
        batch = self.prompts.collate(prompts)
        return Batch(**{name: tensor.to(self.device) for name, tensor in batch.items()})  # type: ignore[typeddict-item, attr-defined]

    def save(self, folder: str | Path, scores: str = "") -> None:
        """Writes a folder (`oracle.storage`); an oracle that stands there is replaced once the new one is whole.

        Args:
            folder: Where to.
            scores: A table in Markdown, for the card.

        Raises:
            ValueError: Something that is no oracle stands there.
            OSError: The disk is full; nothing is left behind.
        """
        path = None if self.base.path is None else str(Path(self.base.path).expanduser().resolve())
        sidecar = Sidecar(replace(self.base, path=path), self.identity.to_dict(), self.config)
        write_oracle(Path(folder), sidecar, self.lm, self.injector, scores=scores)

    def push_to_hub(self, repo_id: str, private: bool = False) -> str:
        """Uploads what `save` writes, without paths of this machine, to the Hugging Face hub; returns its address."""
        sidecar = portable(Sidecar(self.base, self.identity.to_dict(), self.config))
        api = HfApi()
        address = str(api.create_repo(repo_id, private=private, exist_ok=True))
        with TemporaryDirectory() as scratch:
            write_oracle(Path(scratch) / "oracle", sidecar, self.lm, self.injector, repo_id, self.scores)
            api.upload_folder(repo_id=repo_id, folder_path=Path(scratch) / "oracle")
        return address

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "cpu", base: SubjectConfig | None = None) -> Oracle:
        """Loads a saved oracle, on the base model it names or on the one given.

        Args:
            name: A folder; where there is no such folder, `tiny`, the oracle that comes with the package, or a
                repository's id on the Hugging Face hub.
            device: Where the model goes.
            base: Where the base model is, for an oracle of a local model that came from another machine.

        Raises:
            ValueError: The folder holds no oracle, one that was changed since, or one of another format or base model.
                Or there is no such folder, and the hub cannot be reached or has no such repository.
        """
        folder = Path(name)
        if run_folder(name) == TINY_RUN:
            folder = TINY_RUN / "oracle"
        # An id of the hub looks like a folder in a folder. Where the outer one is here, the inner one was meant.
        if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) and not folder.parent.is_dir():
            try:
                folder = Path(snapshot_download(str(name)))
            except (OSError, HFValidationError) as error:
                raise ValueError(
                    f"there is no folder {str(name)!r} here, and no repository of that name that can be had from the "
                    f"Hugging Face hub ({' '.join(str(error).split())}): check the name and the network"
                ) from error
        sidecar = read_sidecar(folder)
        base = base or sidecar.base
        loaded = _load_base(base, sidecar.config, device)
        found, identity = loaded.identity.to_dict(), sidecar.identity
        for key in ("weights_hash", "tokenizer_hash"):
            if found[key] != identity[key]:
                raise ValueError(
                    f"{folder} is an oracle of another model: it was trained on {identity['name']} with "
                    f"{key} {identity[key][:12]}, but {found['name']} has {str(found[key])[:12]}"
                )
        oracle = cls(loaded, base, sidecar.config, adapter=folder / ADAPTER)
        oracle.injector.load_state_dict(load_file(folder / INJECTOR))
        oracle.scores = saved_scores(folder)
        return oracle.eval()


def _load_base(base: SubjectConfig, config: OracleConfig, device: str) -> LoadedModel:
    return load_hf_model(replace(base, dtype=config.base_dtype or base.dtype), device)


def _by_length(prompts: Sequence[Prompt], batch_size: int, doing: str) -> Iterable[np.ndarray]:
    """Indices in batches of like length, so that little is padded; several are counted on the screen."""
    order = np.argsort([len(prompt.ids) for prompt in prompts], kind="stable")
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return tqdm(batches, desc=doing, unit=" batches", leave=False, disable=len(batches) < 2)
