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
from diff_oracle.nla.reconstructor import READER, Reconstructor
from diff_oracle.nla.reconstructor import SETTINGS as READER_SETTINGS
from diff_oracle.oracle.model import Generated, Oracle
from diff_oracle.oracle.storage import SIDECAR, check_signature, signed
from diff_oracle.records import Record
from diff_oracle.subject.capture import Diff
from diff_oracle.subject.model import Subject
from diff_oracle.tasks.claims import Claim, parse, write
from diff_oracle.tasks.explanation import PHRASINGS, ExplanationConfig
from diff_oracle.tasks.text import Text
from diff_oracle.tasks.truth import TruthConfig, measured

AV, AR, SETTINGS = "av", "ar", "nla.json"
SIDECARS = (SETTINGS, f"{AV}/{SIDECAR}", f"{AR}/{READER_SETTINGS}", f"{AR}/{READER}/{SIDECAR}")
"""Files of a pair that hold the hashes of the weights beside them."""
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
        try:
            content = json.loads((folder / SETTINGS).read_text())
            check_signature(content)
            config = ExplanationConfig(**content["named"])
        except (KeyError, TypeError, ValueError) as error:  # edited by hand, or by another version
            raise ValueError(f"{folder / SETTINGS} cannot be read: {type(error).__name__}: {error}") from error
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
        (folder / SETTINGS).write_text(signed({"named": asdict(self.config)}))

    @property
    def truth(self) -> TruthConfig:
        """Which claims are true, by the thresholds that its explanations learned from."""
        named = self.config
        return TruthConfig(min_share=named.min_share, sink_only=named.sink_only, small_kl=named.small_kl)

    def check_target(self) -> None:
        """Makes sure that what it rebuilds are diffs.

        Raises:
            ValueError: They are what ridge regression leaves of diffs, which is in no pair's files.
        """
        if self.ar.config.target != "diff":
            raise ValueError(
                f"this pair rebuilds the {self.ar.config.target} of ridge regression from the residual before, which "
                "is not saved with it: take a pair that was trained with ar.target=diff"
            )

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
        """The diff's direction, with mean square about 1, that an explanation tells (q; `nla.metrics`).

        With `ar.target=residual` it is what ridge regression from the residual before leaves of q.

        Args:
            text: The explanation.
            site: The site's name.
            before: The residual before the diff, for a reconstructor that is told it.
            token_ids: The context, for a reconstructor that is told its text.

        Raises:
            ValueError: The reconstructor is told something else that is not given.
        """
        told = self.ar.config.before
        if told == "vector" and before is None:
            raise ValueError("this pair rebuilds diffs with before=, the residual before the diff: give it too")
        if told == "text" and not len(token_ids):
            raise ValueError("this pair rebuilds diffs with token_ids=, the context: give it too")
        zeros = np.zeros(self.ar.head.out_features, dtype=np.float32)
        diff = Diff(site, max(0, len(token_ids) - 1), tuple(token_ids), zeros, zeros if before is None else before)
        return np.asarray(self.ar.reconstruct([diff], [as_read(parsed_claims(text, self.av))])[0])

    def score(self, record: Record, text: str, subject: Subject | None = None) -> Score:
        """How near the reconstruction from a text comes to a diff, and how many of its claims are true.

        Raises:
            ValueError: The pair rebuilds no diffs.
        """
        self.check_target()
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
