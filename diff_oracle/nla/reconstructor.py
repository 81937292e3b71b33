"""The reconstructor (AR): an explanation is read by the subject's first blocks, and a diff comes out.

    L3H2:▮
    raises: return
    reads: def

The prompt is the oracle's own, with the explanation where the question stands. Its slots are empty, or hold the
residual before the diff; or the context's text is shown. Behind the last token no final norm is applied but a linear
head that starts as the identity: an untrained reconstructor gives what the truncated model holds there, in units of its
mean size. With a floor the head starts at zero, and what it gives is added to what a bag of words tells (`floor`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diff_oracle.nla.bag import ClaimFeatures
from diff_oracle.nla.floor import Floor
from diff_oracle.nla.rows import Claims, Rows
from diff_oracle.oracle.adapter import LoraOptions
from diff_oracle.oracle.injection import InjectionConfig, decoder_blocks
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import Batch, Prompt, PromptConfig
from diff_oracle.oracle.storage import ADAPTER, INJECTOR, OracleConfig, check_signature, read_sidecar, signed
from diff_oracle.records import file_hash
from diff_oracle.subject.capture import Diff
from diff_oracle.subject.loading import LoadedModel, SubjectConfig, load_hf_model
from diff_oracle.tasks.claims import WORDINGS, ClaimKind, parse
from diff_oracle.tasks.text import Text

READER, HEAD, FLOOR, SETTINGS = "reader", "head.safetensors", "floor.safetensors", "reconstructor.json"
Wordings = dict[ClaimKind, tuple[str, ...]]
STATES, TARGETS = ("none", "vector", "text"), ("diff", "residual")


@dataclass
class ReconstructorConfig:
    """What a reconstructor is, and what it is told beside the explanation."""

    blocks: int | None = None
    """The subject's first so many blocks read; all of them where it is not given."""
    before: str = "none"
    """How it is told the state before the diff: `none`, `vector` (the residual, in the slots), `text` (the context)."""
    target: str = "diff"
    """What it rebuilds: the `diff`, or the `residual` that ridge regression from the state before leaves of it."""
    floor: bool = True
    """Whether the transformer adds to what a bag of words tells, or rebuilds all by itself."""
    show_site: bool = True
    """Whether it is told the site's name; without it there can be no floor, which has a map for each site."""
    context_tokens: int = 96
    """Last tokens of the context that are shown where `before` is `text`."""
    lora: LoraOptions = field(default_factory=LoraOptions)
    """What is trained of the blocks."""

    def __post_init__(self) -> None:
        if self.before not in STATES:
            raise ValueError(f"unknown ar.before {self.before!r}: choose from {', '.join(STATES)}")
        if self.target not in TARGETS:
            raise ValueError(f"unknown ar.target {self.target!r}: choose from {', '.join(TARGETS)}")
        if self.blocks is not None and self.blocks < 1:
            raise ValueError(f"ar.blocks must be at least 1, got {self.blocks}")
        if self.floor and not self.show_site:
            raise ValueError("ar.show_site=false needs ar.floor=false: a bag of words reads each site by its own map")


class Reconstructor(nn.Module):
    """Reads explanations.

    Attributes:
        config: What it is.
        reader: The truncated model with its adapter, prompts and injector.
        head: From the last token's residual to the diff.
        floor: What the transformer adds to; None until it is fitted, or where there is none.
        wordings: Words by which it knows each kind of claim (`nla.rewriting` finds more).
    """

    accepts_loss_kwargs = False
    size: Tensor

    def __init__(
        self, loaded: LoadedModel, base: SubjectConfig, config: ReconstructorConfig, adapter: Path | None = None
    ) -> None:
        """On a loaded model, which is cut; with a fresh adapter or one read from `adapter`."""
        super().__init__()
        self.config = config
        truncate(loaded, config.blocks)
        parts = OracleConfig(
            config.lora,
            PromptConfig(show_site=config.show_site, show_size=False, context_tokens=config.context_tokens),
            InjectionConfig(map="affine", num_slots=1),
        )
        self.reader = Oracle(loaded, base, parts, adapter)
        d_model = loaded.identity.d_model
        self.head = nn.Linear(d_model, d_model, device=self.reader.device)
        (nn.init.zeros_ if config.floor else nn.init.eye_)(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.head.bias.requires_grad_(False)  # what is trained is matrices; the reader's own site tells the mean
        self.register_buffer("size", torch.ones((), device=self.reader.device))
        self.floor: Floor | None = None
        self.wordings: Wordings = dict(WORDINGS)
        self._features = ClaimFeatures(loaded.model.get_output_embeddings().weight.detach().float().cpu().numpy())

    @classmethod
    def create(cls, base: SubjectConfig, config: ReconstructorConfig, device: str = "cpu") -> Reconstructor:
        """A fresh one."""
        return cls(load_hf_model(base, device), base, config)

    @property
    def lm(self) -> Any:
        """The model that reads."""
        return self.reader.lm

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.reader.device

    def prompt(self, diff: Diff, explanation: Text) -> Prompt:
        """What is read. Of the diff itself nothing but its site is in it."""
        if self.config.before == "text":
            return self.reader.prompts.with_text(diff, explanation)
        shown = diff.before if self.config.before == "vector" else np.zeros_like(diff.before)
        return self.reader.prompts.about(diff, explanation, instead=shown)

    def fit_floor(
        self, train: Rows, select: Rows, claims: tuple[Sequence[Claims], Sequence[Claims]], seed: int = 0
    ) -> None:
        """Fits what the transformer adds to, where the configuration wants that."""
        if self.config.floor:
            self.floor = Floor.fit(self._features, train, select, claims, seed).to(self.device)

    def forward(
        self,
        target: Float[Tensor, "row d_model"] | None = None,
        floor: Float[Tensor, "row d_model"] | None = None,
        **batch: Any,
    ) -> dict[str, Tensor]:
        """Reconstructions in q scale (`nla.metrics`), and their mean squared error where a target is given."""
        inputs = Batch(**batch)  # type: ignore[typeddict-item]
        rebuilt = self.head(self.residual(inputs).float() / self.size)
        if floor is not None:
            rebuilt = rebuilt + floor
        result = {"rebuilt": rebuilt}
        if target is not None:
            result = {"loss": nn.functional.mse_loss(rebuilt, target), **result}
        return result

    def residual(self, batch: Batch) -> Float[Tensor, "row d_model"]:
        """The last token's residual behind the last block that was kept."""
        with self.reader.injector.injecting(batch["slot_mask"], batch["vectors"]):
            hidden = self.lm.get_base_model().base_model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                position_ids=batch["position_ids"],
                use_cache=False,
            )
        return hidden.last_hidden_state[:, -1]  # rows are padded on the left

    @torch.no_grad()
    def calibrate(self, diffs: Sequence[Diff], explanations: Sequence[Text]) -> None:
        """Sets the unit of size: the root mean square of these rows' residuals."""
        batch = self.batch(diffs, explanations)
        batch.pop("floor", None)
        self.size.copy_(self.residual(Batch(**batch)).float().pow(2).mean().sqrt())  # type: ignore[typeddict-item]

    def batch(self, diffs: Sequence[Diff], explanations: Sequence[Text]) -> dict[str, Tensor]:
        """Rows to read, on the model's device, and what a bag of words tells of them."""
        collated: Any = self.reader.prompts.collate(
            [self.prompt(*row) for row in zip(diffs, explanations, strict=True)]
        )
        batch = {name: value.to(self.device) for name, value in collated.items()}
        if self.floor is None:
            return batch
        words = self.reader.vocabulary
        claims = [parse(words.show(explanation), words, self.wordings).claims for explanation in explanations]
        return batch | {"floor": self.floor([diff.site for diff in diffs], claims)}

    @torch.no_grad()
    def reconstruct(
        self, diffs: Sequence[Diff], explanations: Sequence[Text], batch_size: int = 128
    ) -> Float[np.ndarray, "row d_model"]:
        """Reconstructions in q scale."""
        result = np.empty((len(diffs), self.head.out_features))
        lengths = [len(self.prompt(*row).ids) for row in zip(diffs, explanations, strict=True)]
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = self.batch([diffs[i] for i in rows], [explanations[i] for i in rows])
            result[rows] = self(**batch)["rebuilt"].cpu().numpy()
        return result

    def save(self, folder: str | Path) -> None:
        """Writes a folder: the reader as an oracle is saved, the head, and `reconstructor.json`."""
        folder = Path(folder)
        self.reader.save(folder / READER)
        save_file({"weight": self.head.weight.detach().cpu(), "size": self.size.cpu()}, folder / HEAD)
        (folder / FLOOR).unlink(missing_ok=True)
        if self.floor is not None:
            self.floor.save(folder / FLOOR)
        files = {name: file_hash(folder / name) for name in (HEAD, FLOOR) if (folder / name).is_file()}
        content = {"config": asdict(self.config), "wordings": self.wordings, "files": files}
        (folder / SETTINGS).write_text(signed(content))

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu") -> Reconstructor:
        """Loads what `save` wrote.

        Raises:
            ValueError: The folder holds no reconstructor, one that was changed since, or one of another base model.
        """
        folder = Path(folder)
        if not (folder / SETTINGS).is_file():
            raise ValueError(f"{folder} holds no reconstructor: it has no {SETTINGS}")
        try:
            content = json.loads((folder / SETTINGS).read_text())
            check_signature(content)
            settings, files = content["config"], content["files"]
            config = ReconstructorConfig(**settings | {"lora": LoraOptions(**settings["lora"])})
            wordings: Wordings = {kind: tuple(words) for kind, words in content["wordings"].items()}
        except (KeyError, TypeError, ValueError) as error:  # edited by hand, or by another version
            raise ValueError(f"{folder / SETTINGS} cannot be read: {type(error).__name__}: {error}") from error
        for name, expected in files.items():
            if not (folder / name).is_file() or file_hash(folder / name) != expected:
                raise ValueError(f"{folder} is damaged: {name} is missing or not what was saved")
        sidecar = read_sidecar(folder / READER)
        loaded = load_hf_model(sidecar.base, device)
        if loaded.identity.weights_hash != sidecar.identity["weights_hash"]:
            raise ValueError(f"{folder} is a reconstructor of another model: {sidecar.identity['name']}")
        made = cls(loaded, sidecar.base, config, folder / READER / ADAPTER)
        made.reader.injector.load_state_dict(load_file(folder / READER / INJECTOR))
        saved = load_file(folder / HEAD)
        with torch.no_grad():
            made.head.weight.copy_(saved["weight"])
            made.size.copy_(saved["size"])
        made.wordings = wordings
        if FLOOR in files:
            made.floor = Floor.load(folder / FLOOR, made._features).to(made.device)
        return made.eval()


def truncate(loaded: LoadedModel, blocks: int | None) -> None:
    """Leaves a model its first `blocks` blocks, and no final norm.

    Raises:
        ValueError: It has fewer.
    """
    found = decoder_blocks(loaded.model)
    if blocks is not None and blocks > len(found):
        raise ValueError(f"ar.blocks={blocks}, but the model has {len(found)} blocks")
    base = loaded.model.base_model
    norms = [name for name, module in base.named_children() if "norm" in type(module).__name__.lower()]
    if len(norms) != 1:
        raise ValueError(f"{type(base).__name__} has no single final norm, found {norms}: it cannot be a reconstructor")
    setattr(base, norms[0], nn.Identity())
    if blocks is not None:
        del found[blocks:]
        loaded.model.config.get_text_config().num_hidden_layers = blocks
