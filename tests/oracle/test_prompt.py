from collections.abc import Callable

import numpy as np
import pytest

from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import IGNORED, size_word
from tests.helpers import diff_at


def test_slots_are_where_the_mask_says_and_labels_are_the_answer_alone(make_oracle: Callable[..., Oracle]) -> None:
    prompts = make_oracle(num_slots=3).prompts
    diff = np.ones(prompts.d_model, np.float32)
    short = prompts.about(diff_at("L1", diff), ("Why?",))
    long = prompts.about(diff_at("L1H0", diff), ("Which tokens become more likely, and why?",))
    batch = prompts.collate([short, long], [[5, 6], [7]])
    assert batch["slot_mask"].sum(1).tolist() == [3, 3]
    assert (batch["input_ids"][batch["slot_mask"]] == prompts.slot_id).all()
    labels = [[i for i in row if i != IGNORED] for row in batch["labels"].tolist()]
    assert labels == [[5, 6, prompts.eos_id], [7, prompts.eos_id]]
    assert batch["labels"][:, -1].tolist() == [prompts.eos_id, prompts.eos_id]
    assert batch["attention_mask"].sum(1).tolist() == [len(short.ids) + 3, len(long.ids) + 2]
    assert batch["position_ids"].max().item() == max(len(short.ids) + 2, len(long.ids) + 1)


def test_a_slot_in_the_question_is_refused(make_oracle: Callable[..., Oracle]) -> None:
    prompts = make_oracle().prompts
    prompt = prompts.about(diff_at("L1", np.ones(prompts.d_model, np.float32)), ("Why ", prompts.slot_id, "?"))
    with pytest.raises(ValueError, match="expected 2 slots side by side"):
        prompts.collate([prompt])


def test_a_text_prompt_shows_the_end_of_the_context_and_has_no_slot(make_oracle: Callable[..., Oracle]) -> None:
    prompts = make_oracle().prompts
    context = prompts.vocabulary.tokenizer("one two three " * 50)["input_ids"]
    prompt = prompts.with_text(diff_at("L1", np.ones(4, np.float32), token_ids=(*context, prompts.slot_id)), ("Why?",))
    shown = prompts.vocabulary.tokenizer.decode(prompt.ids)
    assert prompt.vectors is None
    assert "two three" in shown
    assert prompts.slot_id not in prompt.ids
    assert not prompts.collate([prompt])["slot_mask"].any()


def test_an_oracle_of_text_sees_all_of_it_and_the_control_its_end(make_oracle: Callable[..., Oracle]) -> None:
    def shown(most: int | None, **injection: str) -> int:
        prompts = make_oracle(**injection).prompts
        prompts.config.context_tokens = most
        return len(prompts.with_text(diff, ("Why?",)).ids)

    diff = diff_at("L1", np.ones(4, np.float32), token_ids=tuple(range(500, 590)))
    frame = shown(1) - 1
    assert [shown(None) - frame, shown(None, input="text") - frame] == [48, 90]
    assert [shown(60) - frame, shown(60, input="text") - frame] == [60, 60]


def test_the_site_and_the_size_can_be_hidden(make_oracle: Callable[..., Oracle]) -> None:
    prompts = make_oracle().prompts
    diff = np.ones(prompts.d_model, np.float32)

    def shown() -> str:
        return str(prompts.vocabulary.tokenizer.decode(prompts.about(diff_at("L1H0", diff, 0.5), ("Why?",)).ids))

    assert "L1H0 large" in shown()
    prompts.config.show_site = False
    assert "L1H0" not in shown()
    prompts.config.show_size = False
    assert "large" not in shown()


@pytest.mark.parametrize(
    ("size", "word"), [(0.0, "tiny"), (0.05, "small"), (0.1, "medium"), (0.5, "large"), (9.0, "huge")]
)
def test_sizes_in_words(size: float, word: str) -> None:
    assert size_word(size) == word
