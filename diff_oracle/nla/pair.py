"""The pair: the oracle explains a diff (AV), the reconstructor rebuilds it from the explanation (AR)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from jinja2 import Template

from diff_oracle import __version__
from diff_oracle.nla.metrics import cosine
from diff_oracle.nla.reconstructor import Reconstructor
from diff_oracle.oracle.model import Generated, Oracle
from diff_oracle.records import Record
from diff_oracle.subject.capture import Diff
from diff_oracle.subject.model import Subject
from diff_oracle.tasks.claims import Claim, parse, write
from diff_oracle.tasks.explanation import PHRASINGS, ExplanationConfig
from diff_oracle.tasks.text import Text
from diff_oracle.tasks.truth import TruthConfig, measured

AV, AR, SETTINGS = "av", "ar", "nla.json"
QUESTION: Text = (PHRASINGS["explain"]["seen"][0],)
_TOKENS_A_CLAIM = 8  # more than any wording of one takes, line break included


@dataclass(frozen=True)
class Score:
    """How good an explanation of a diff is."""

    cosine: float
    """Of the reconstruction and the diff."""
    nmse: float
    """2 (1 − cosine)."""
    claims: int
    """How many claims it makes."""
    true_claims: int | None
    """How many of them are true on the model; None where no subject is given to check them."""


class DiffNLA:
    """Explains diffs and rebuilds them.

    Attributes:
        av: The oracle that explains.
        ar: The reconstructor.
        config: What an explanation names.
    """

    def __init__(self, av: Oracle, ar: Reconstructor, config: ExplanationConfig) -> None:
        self.av, self.ar, self.config = av, ar, config

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu") -> DiffNLA:
        """Loads what `save` wrote.

        Raises:
            ValueError: The folder holds no pair, or its parts are of different models.
        """
        folder = Path(folder)
        if not (folder / SETTINGS).is_file():
            raise ValueError(f"{folder} holds no diff-NLA: it has no {SETTINGS}")
        config = ExplanationConfig(**json.loads((folder / SETTINGS).read_text()))
        av, ar = Oracle.from_pretrained(folder / AV, device), Reconstructor.from_pretrained(folder / AR, device)
        if av.identity.weights_hash != ar.reader.identity.weights_hash:
            raise ValueError(f"{folder} is no pair: its parts were trained on different models")
        return cls(av, ar, config)

    def save(self, folder: str | Path) -> None:
        """Writes both parts, `nla.json` and a card into a folder."""
        folder = Path(folder)
        self.av.save(folder / AV)
        self.ar.save(folder / AR)
        about = {"identity": self.av.identity, "ar": self.ar.config, "named": self.config}
        template = Template(Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8"))
        card = template.render(about, place=folder, version=__version__)
        (folder / "README.md").write_text(f"{card}\n", encoding="utf-8")
        (folder / SETTINGS).write_text(json.dumps(asdict(self.config), indent=2) + "\n")

    @property
    def truth(self) -> TruthConfig:
        """Which claims are true, by the thresholds that its explanations learned from."""
        named = self.config
        return TruthConfig(min_share=named.min_share, sink_only=named.sink_only, small_kl=named.small_kl)

    def explain(self, diff: Diff) -> str:
        """What the diff does, one claim a line (`tasks.claims`)."""
        return explain(self.av, [diff], self.config)[0].text

    def reconstruct(
        self,
        text: str,
        site: str,
        before: Float[np.ndarray, "d_model"] | None = None,
        token_ids: Sequence[int] = (),
    ) -> Float[np.ndarray, "d_model"]:
        """The diff's direction, with mean square about 1, that an explanation tells.

        Args:
            text: The explanation.
            site: The site's name.
            before: The residual before the diff, for a reconstructor that is told it.
            token_ids: The context, for a reconstructor that is told its text.
        """
        zeros = np.zeros(self.ar.head.out_features, dtype=np.float32)
        diff = Diff(site, max(0, len(token_ids) - 1), tuple(token_ids), zeros, zeros if before is None else before)
        return np.asarray(self.ar.reconstruct([diff], [as_read(parsed_claims(text, self.av))])[0])

    def score(self, record: Record, text: str, subject: Subject | None = None) -> Score:
        """How near the reconstruction from a text comes to a diff, and how many of its claims are true."""
        claims = parsed_claims(text, self.av)
        rebuilt = self.ar.reconstruct([record], [as_read(claims)])
        near = float(cosine(rebuilt, record.diff[None].astype(np.float64))[0])
        true = None
        if subject is not None:
            true = sum(map(measured([record], subject, self.av.vocabulary, self.truth)[0].holds, claims))
        return Score(near, 2 * (1 - near), len(claims), true)


def explain(
    av: Oracle, diffs: Sequence[Diff], config: ExplanationConfig, batch_size: int = 128, from_text: bool = False
) -> list[Generated]:
    """The oracle's explanations; `from_text`: of what it makes of the context alone, without the diff."""
    about = av.prompts.with_text if from_text else av.prompts.about
    return av.answer([about(diff, QUESTION) for diff in diffs], longest_explanation(config), batch_size)


def longest_explanation(config: ExplanationConfig) -> int:
    """Tokens that an explanation takes at most."""
    return (config.num_raised + config.num_lowered + config.num_read + 1) * _TOKENS_A_CLAIM


def parsed_claims(text: str, av: Oracle) -> list[Claim]:
    """The claims of an explanation; lines that are none are left out."""
    return list(parse(text, av.vocabulary).claims)


def as_read(claims: Sequence[Claim]) -> Text:
    """What the reconstructor gets to read."""
    return write(claims)
