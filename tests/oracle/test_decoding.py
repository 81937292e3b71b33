"""Answers are those that one token a pass gives; no line of one says what an earlier line says."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoConfig,
    Lfm2Config,
    LogitsProcessor,
    LogitsProcessorList,
    MptConfig,
    PretrainedConfig,
)

from diff_oracle.oracle import decoding
from diff_oracle.oracle.adapter import LoraOptions
from diff_oracle.oracle.cache import growing_cache
from diff_oracle.oracle.decoding import draft, lines_of, repeating, write_answers
from diff_oracle.oracle.injection import InjectionConfig
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import Prompt, PromptConfig
from diff_oracle.oracle.storage import OracleConfig
from diff_oracle.subject.loading import LoadedModel, SubjectConfig, identify
from diff_oracle.tasks.explanation import PHRASINGS
from tests.helpers import ARCHITECTURES, diff_at, random_loaded
from tests.oracle.conftest import MakeOracle

NEWLINE, MINUS = 0, 1
NONE: set[int] = set()


def banned(answer: list[int]) -> set[int]:
    """The tokens that may not follow this much of an answer; what stands behind it in the buffer does not count."""
    said = torch.tensor([[*answer, NEWLINE, 2, NEWLINE]])
    return set(repeating(said, torch.tensor([len(answer)]), NEWLINE)[1].tolist())


def test_a_token_is_listed_once() -> None:
    assert banned([]) == NONE
    assert banned([3, NEWLINE]) == {3}
    assert banned([3, NEWLINE, 4, NEWLINE]) == {3, 4}


def test_within_another_line_everything_may_come() -> None:
    assert banned([3]) == NONE
    assert banned([3, NEWLINE, 4]) == NONE
    assert banned([3, NEWLINE, 4, 3]) == NONE
    assert banned([5, 6, NEWLINE]) == NONE


def test_of_a_line_that_repeats_another_the_last_token_may_not_come() -> None:
    assert banned([MINUS, 3, NEWLINE]) == NONE  # another minus may come
    assert banned([MINUS, 3, NEWLINE, MINUS]) == {3}
    assert banned([MINUS, 3, NEWLINE, MINUS, 4, NEWLINE, MINUS]) == {3, 4}
    assert banned([MINUS, 3, NEWLINE, 2]) == NONE  # other words before it
    assert banned([5, 6, 7, NEWLINE, 5, 6]) == {7}
    assert banned([MINUS, NEWLINE]) == {MINUS}


@given(st.lists(st.integers(0, 3), max_size=12), st.data())
def test_as_a_comparison_of_lines_says(answer: list[int], data: st.DataObject) -> None:
    *lines, last = _lines(answer)
    assert lines_of(answer, NEWLINE) == [*lines, last]
    expected = {line[-1] for line in lines if line and line[:-1] == last}
    assert banned(answer) == expected
    token = data.draw(st.integers(1, 3))
    repeats = [*last, token] in lines
    assert (token in expected) == repeats


def _lines(answer: list[int], newline: int = NEWLINE) -> list[list[int]]:
    lines: list[list[int]] = [[]]
    for token in answer:
        if token == newline:
            lines.append([])
        else:
            lines[-1].append(token)
    return lines


def test_rows_do_not_know_of_each_other() -> None:
    rows = [[3, NEWLINE, 4, NEWLINE], [3, 4, 5, 6], [MINUS, 5, NEWLINE, MINUS], [5, NEWLINE, 6, NEWLINE]]
    of_rows, tokens = repeating(torch.tensor(rows), torch.tensor([4, 4, 4, 2]), NEWLINE)
    assert list(zip(of_rows.tolist(), tokens.tolist(), strict=True)) == [(0, 3), (0, 4), (2, 5), (3, 5)]


def test_a_draft_is_the_last_line_but_for_what_it_names() -> None:
    assert draft([], NEWLINE) == draft([3], NEWLINE) == draft([3, NEWLINE], NEWLINE) == []
    assert draft([3, NEWLINE, 4], NEWLINE) == [NEWLINE]
    assert draft([MINUS, 3, NEWLINE], NEWLINE) == [MINUS]
    assert draft([MINUS, 3, NEWLINE, MINUS], NEWLINE) == []
    assert draft([5, 6, 7, 3, NEWLINE, 5], NEWLINE) == [6, 7]
    assert draft([5, 6, 7, 3, NEWLINE, 5, 6, 7, 4], NEWLINE) == [NEWLINE, 5, 6, 7]
    assert draft([9, 9, NEWLINE, MINUS, 3, NEWLINE, MINUS, 4], NEWLINE) == [NEWLINE, MINUS]
    assert draft([3, NEWLINE, NEWLINE], NEWLINE) == []
    assert draft([5, 6, 7, NEWLINE, 8], NEWLINE) == []  # a line that begins as none before
    assert draft([5, 6, 7, NEWLINE, 8, 9, 2], NEWLINE) == [NEWLINE, 8, 9]


def test_a_draft_is_what_another_answer_says_but_for_what_it_names() -> None:
    other = lines_of([5, 6, 2, NEWLINE, 5, 6, 3, NEWLINE, 8, 2, NEWLINE, 9, 4], NEWLINE)
    assert draft([], NEWLINE, other) == [5, 6]
    assert draft([5, 6, 7], NEWLINE, other) == [NEWLINE, 5, 6]
    assert draft([5, 6, 7, NEWLINE, 5, 6, 4], NEWLINE, other) == [NEWLINE, 8]
    assert draft([5, 6, 7, NEWLINE, 8], NEWLINE, other) == []  # its name comes next
    assert draft([5, 6, 7, NEWLINE, 8, 4], NEWLINE, other) == [NEWLINE, 9]  # a line was left out
    assert draft([5, 6, 7, NEWLINE, 8, 4, NEWLINE, 9, 1], NEWLINE, other) == []  # it ends here
    assert draft([9, 1, NEWLINE, 9, 3], NEWLINE, other) == []
    assert draft([9, 1, NEWLINE] * 5, NEWLINE, other) == [9]  # the other has no more lines


def whole_passes(oracle: Oracle, prompt: Prompt, choose: Callable[[list[int], Tensor], int], most: int) -> list[int]:
    """An answer, from a pass over everything for each of its tokens."""
    said: list[int] = []
    while len(said) < most and said[-1:] != [oracle.prompts.eos_id]:
        batch = oracle.prompts.collate([prompt])
        ids = torch.cat([batch["input_ids"], torch.tensor([said], dtype=torch.long)], dim=1)
        slots = torch.nn.functional.pad(batch["slot_mask"], (0, len(said)))
        with torch.no_grad(), oracle.injector.injecting(slots, batch["vectors"]):
            logits = oracle.lm(input_ids=ids, use_cache=False).logits[0, -1].float()
        said.append(choose(said, logits))
    return said


def made_prompts(oracle: Oracle) -> list[Prompt]:
    """Of different lengths."""
    rng, width = np.random.default_rng(0), oracle.prompts.d_model
    return [
        oracle.prompts.about(diff_at(site, rng.standard_normal(width).astype(np.float32)), ("Why?",))
        for site in ("L0", "L11H7", "L2:4", "L3.attn", "L10H11")
    ]


def passes_of_same_answers(oracle: Oracle, like: bool, most: int = 24) -> list[int]:
    """Writes lines that are often, not always, as the line before, in both ways; how many tokens each pass read."""
    eos, newline, base = oracle.prompts.eos_id, oracle.vocabulary.newline[-1], oracle.lm.get_base_model()

    def choose(said: list[int], logits: Tensor) -> int:
        """Lines of three tokens, of two words for each place; other logits decide each time, so that all is said."""
        place = len(_lines(said, newline)[-1])
        best = int(logits[(17 * len(said) + 5 * torch.arange(8)) % len(logits)].argmax())
        if place == 3:
            return eos if best == 0 else newline
        return 11 + 2 * place + (best > (5, 2, 3)[place])

    prompts = made_prompts(oracle)
    batch, cache = oracle.prompts.collate(prompts), growing_cache(base)
    with torch.no_grad(), oracle.injector.injecting(batch["slot_mask"], batch["vectors"]):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}  # type: ignore[literal-required]
        hidden = base.base_model(**inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
    passes: list[int] = []
    handle = base.base_model.register_forward_hook(lambda _, __, out: passes.append(out.last_hidden_state.shape[1]))
    ids, cut_off = write_answers(
        base,
        hidden,
        batch["attention_mask"],
        cache,
        eos,
        newline,
        most,
        lambda _, said, lengths, logits: torch.tensor(
            [choose(row[:n], of_row) for row, n, of_row in zip(said.tolist(), lengths.tolist(), logits, strict=True)]
        ),
        [11, 13, 15, newline, 12, 14, 15, newline, 11, 14, 16] if like else [],
    )
    handle.remove()
    for prompt, row, unfinished in zip(prompts, ids.tolist(), cut_off.tolist(), strict=True):
        said = whole_passes(oracle, prompt, choose, most)
        assert row == said + [eos] * (len(row) - len(said))
        assert unfinished == (said[-1] != eos)
    return passes


@pytest.mark.parametrize("like", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_drafts_change_no_token(architecture: str, like: bool, make_oracle: MakeOracle) -> None:
    oracle = make_oracle(architecture)
    assert max(passes_of_same_answers(oracle, like)) == (4 if oracle.sliding_window == float("inf") else 1)


def test_a_model_that_says_no_drafts_is_left_to_write_by_tokens(
    make_oracle: MakeOracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "draft", lambda said, newline_id, like: [3] * 99)
    first, *others = passes_of_same_answers(make_oracle("llama"), like=False)
    assert first == 1 + 16
    assert others.count(1) == len(others) > 8


SMALL = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


@pytest.mark.parametrize(
    "config",
    [
        MptConfig(d_model=64, n_layers=3, n_heads=4, max_seq_len=512, **SMALL),
        GPTNeoConfig(hidden_size=48, num_layers=4, attention_types=[[["global", "local"], 2]], num_heads=4,
                     window_size=40, max_position_embeddings=512, **SMALL),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_where_attention_counts_places_of_the_cache_nothing_is_drafted(config: PretrainedConfig) -> None:
    assert set(passes_of_same_answers(made_of(config), like=True)) == {1}


def test_drafts_do_not_reach_past_the_table_of_positions(make_oracle: MakeOracle) -> None:
    width = max(len(prompt.ids) for prompt in made_prompts(make_oracle("gpt2")))
    oracle = made_of(GPT2Config(n_embd=48, n_layer=3, n_head=4, n_positions=width + 23, **SMALL))
    assert max(passes_of_same_answers(oracle, like=True)) == 4


def test_a_model_whose_layers_keep_more_than_keys_and_values_is_refused() -> None:
    config = Lfm2Config(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                        num_key_value_heads=2, layer_types=["conv", "full_attention"], **SMALL)  # fmt: skip
    with pytest.raises(ValueError, match="Lfm2ForCausalLM cannot be asked: it has layers without attention"):
        growing_cache(AutoModelForCausalLM.from_config(config))


def made_of(config: PretrainedConfig) -> Oracle:
    """An oracle on random weights of an architecture that `source=random` does not have."""
    torch.manual_seed(0)
    model, tokenizer = AutoModelForCausalLM.from_config(config).eval(), random_loaded("llama").tokenizer
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    loaded = LoadedModel(model, tokenizer, identify(config.model_type, model, tokenizer, "float32"))
    options = OracleConfig(LoraOptions(rank=4, alpha=4.0), PromptConfig(), InjectionConfig())
    return Oracle(loaded, SubjectConfig(), options).eval()


class DistinctLines(LogitsProcessor):
    """Compares lines as lists."""

    def __init__(self, newline: int, prompt_length: int) -> None:
        self.newline, self.prompt_length = newline, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row, of_row in zip(input_ids[:, self.prompt_length :].tolist(), scores, strict=True):
            *lines, last = _lines(row, self.newline)
            for line in lines:
                if line and line[:-1] == last:
                    of_row[line[-1]] = float("-inf")
        return scores


def test_a_trained_oracle_says_what_transformers_generates() -> None:
    oracle = Oracle.from_pretrained("tiny")
    newline, eos = oracle.vocabulary.newline[-1], oracle.prompts.eos_id
    rng, width = np.random.default_rng(0), oracle.prompts.d_model
    question = (PHRASINGS["explain"]["seen"][0],)
    prompts = [
        oracle.prompts.about(
            diff_at(site, rng.standard_normal(width).astype(np.float32), token_ids=(5, 6, 7 + i)), question
        )
        for i, site in enumerate(("L0", "L3H1", "L1:3", "L2.mlp") * 4)
    ]
    batch = oracle.prompts.collate(prompts)
    with torch.no_grad(), oracle.injector.injecting(batch["slot_mask"], batch["vectors"]):
        out = oracle.lm.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=90,
            do_sample=False,
            logits_processor=LogitsProcessorList([DistinctLines(newline, batch["input_ids"].shape[1])]),
            eos_token_id=eos,
            pad_token_id=eos,
        )
    expected = [oracle.vocabulary.decode(row) for row in out[:, batch["input_ids"].shape[1] :].tolist()]
    passes: list[int] = []
    handle = oracle.lm.get_base_model().base_model.register_forward_hook(lambda *_: passes.append(1))
    answers = oracle.answer(prompts, 90)
    handle.remove()
    assert [answer.text for answer in answers] == expected
    assert 2 * len(passes) < max(answer.num_tokens for answer in answers)
