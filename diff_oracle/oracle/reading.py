"""Many questions about the same diffs: what their prompts share is read once. Beside the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diff_oracle.oracle.cache import growing_cache
from diff_oracle.oracle.decoding import answer_of, likeliest, write_answers
from diff_oracle.oracle.model import Oracle
from diff_oracle.subject.capture import Diff
from diff_oracle.tasks.text import Text


class Reading:
    """A batch of diffs that an oracle has read, ready to be asked about.

    Answers are those of `Oracle.generate` and `Oracle.choice_log_probs`. Up to the question a prompt is the same,
    whatever is asked; the keys and values of that part are kept, and every question goes on from a copy of them.

    Attributes:
        diffs: Those that were read.
        said: Of the questions that were asked, the tokens of the first answer.
    """

    @torch.inference_mode()
    def __init__(self, oracle: Oracle, diffs: Sequence[Diff], said: Mapping[Text, Sequence[int]] | None = None) -> None:
        """Reads the diffs: one pass over what their prompts begin with.

        Args:
            oracle: Reads.
            diffs: Of its model.
            said: What another reading holds: answers like those are written faster.
        """
        self._oracle, self.diffs = oracle, diffs
        self._expected, self.said = said or {}, dict[Text, list[int]]()
        prompts = [oracle.prompts.about(diff, ()) for diff in diffs]
        batch = oracle.prompts.collate([replace(prompt, ids=prompt.ids[: prompt.shared]) for prompt in prompts])
        self._mask = batch["attention_mask"].to(oracle.device)
        base = oracle.lm.get_base_model()
        self._cache = growing_cache(base)
        with oracle.injector.injecting(batch["slot_mask"].to(oracle.device), batch["vectors"].to(oracle.device)):
            base.base_model(
                input_ids=batch["input_ids"].to(oracle.device),
                attention_mask=self._mask,
                position_ids=batch["position_ids"].to(oracle.device),
                past_key_values=self._cache,
                use_cache=True,
            )

    @torch.inference_mode()
    def generate(self, rows: Sequence[int], question: Text, max_new_tokens: int) -> list[str]:
        """What `Oracle.generate` answers to a question about the diffs of these rows."""
        inputs, oracle = self._asking(rows, question), self._oracle
        base, newline_id = oracle.lm.get_base_model(), oracle.vocabulary.newline[-1]
        ids, _ = write_answers(
            base,
            base.base_model(**inputs).last_hidden_state[:, -1],
            inputs["attention_mask"],
            inputs["past_key_values"],
            oracle.prompts.eos_id,
            newline_id,
            max_new_tokens,
            likeliest(newline_id),
            self._expected.get(question, ()),
        )
        self.said[question] = answer_of(ids[0], oracle.prompts.eos_id)
        return [oracle.vocabulary.decode(row) for row in ids.tolist()]

    @torch.inference_mode()
    def choice_log_probs(
        self, rows: Sequence[int], question: Text, choices: Sequence[Text]
    ) -> Float[Tensor, "row choice"]:
        """The log-probability that the answer of each row begins with each choice's first token."""
        logits = self._oracle.lm(**self._asking(rows, question), logits_to_keep=1).logits[:, -1]
        firsts = [self._oracle.vocabulary.encode(choice)[0] for choice in choices]
        return logits.float().log_softmax(-1).cpu()[:, firsts]

    def _asking(self, rows: Sequence[int], question: Text) -> dict[str, Any]:
        """A question to some rows, behind what was read, and a copy of what that left."""
        prompt = self._oracle.prompts.about(self.diffs[0], question)
        asked = torch.tensor(prompt.ids[prompt.shared :], device=self._mask.device).expand(len(rows), -1)
        cache, kept = deepcopy(self._cache), torch.tensor(rows, device=self._mask.device)
        cache.batch_select_indices(kept)
        seen = torch.cat([self._mask[kept], torch.ones_like(asked)], dim=1)
        return {
            "input_ids": asked,
            "attention_mask": seen,
            "position_ids": (seen.cumsum(-1) - 1).clamp(min=0)[:, self._mask.shape[1] :],
            "past_key_values": cache,
            "use_cache": True,
        }
