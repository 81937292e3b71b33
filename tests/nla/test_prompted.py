"""The baseline without training reads the best examples of a site, and of the row itself only site and text."""

from dataclasses import replace

import pytest
from peft.tuners.lora import LoraLayer

from diff_oracle.nla.prompted import prompted_explanations
from diff_oracle.nla.rows import Rows
from diff_oracle.tasks.claims import Claim
from tests.explain.conftest import untrained_oracle
from tests.nla.made import made_rows


def test_the_best_examples_of_the_site_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    av, rows = untrained_oracle(), made_rows(6, seed=0)  # L0H1 and L1 in turn
    gold = [[Claim("raises", 300 + i)] for i in range(6)]
    records = [replace(record, token_ids=(400, 401)) for record in rows.records]
    examples = Rows(records, gold, rows.target, rows.before)
    asked: list[str] = []

    def answers(prompts: list, max_new_tokens: int, batch_size: int) -> list[str]:
        assert all(prompt.vectors is None for prompt in prompts)
        assert all(layer.disable_adapters for layer in av.lm.modules() if isinstance(layer, LoraLayer))
        asked.extend(av.vocabulary.decode(prompt.ids) for prompt in prompts)
        return ["raises: return\n\nL1 after and so on\nlowers: if"] * len(prompts)

    monkeypatch.setattr(av, "generate", answers)
    explained = [records[0], replace(records[0], site="L5")]
    said = prompted_explanations(av, examples, [4, 3, 2, 1, 0, 5], explained, shots=2, max_new_tokens=9)
    named = [av.vocabulary.texts[300 + i] for i in range(6)]
    assert [[i for i in range(6) if f"raises:{named[i]}\n" in text] for text in asked] == [[2, 4], [3, 4]]
    assert named[4] in asked[0].split("\n\n")[0]  # the best stands first
    assert all(text.startswith("L0H1 after ") and text.endswith("\n") for text in asked)
    assert [[claim.kind for claim in claims] for claims in said] == [["raises"], ["raises"]]
