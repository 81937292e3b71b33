import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from diff_oracle.oracle.model import Generated, Oracle
from diff_oracle.oracle.prompt import Prompt
from diff_oracle.tasks.text import MINUS, token_list
from tests.helpers import diff_at

MakePrompts = Callable[[Oracle, int], list[Prompt]]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen3", "gemma3"])
def test_loss_equals_the_cross_entropy_of_full_logits(
    make_oracle: Callable[..., Oracle], make_prompts: MakePrompts, architecture: str
) -> None:
    oracle = make_oracle(architecture)
    prompts, answers = make_prompts(oracle, 3), [[300, 301, 302], [400], [500, 501]]
    loss = oracle(**oracle.prompts.collate(prompts, answers))["loss"]
    total, count = 0.0, 0
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = [*prompt.ids, *answer, oracle.prompts.eos_id]
        mask = torch.tensor([[i < len(prompt.ids) and t == oracle.prompts.slot_id for i, t in enumerate(ids)]])
        with oracle.injector.injecting(mask, torch.from_numpy(prompt.vectors)[None]):
            logits = oracle.lm(input_ids=torch.tensor([ids])).logits[0]
        for position in range(len(prompt.ids), len(ids)):
            total -= logits[position - 1].log_softmax(-1)[ids[position]].item()
            count += 1
    assert loss.item() == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen3", "gemma3"])
def test_questions_that_share_a_row_have_the_loss_of_rows_of_their_own(
    make_oracle: Callable[..., Oracle], architecture: str
) -> None:
    oracle = make_oracle(architecture)
    if architecture == "gemma3":  # within its window
        oracle.lm.get_base_model().config.sliding_window = 512
    rng, build = np.random.default_rng(0), oracle.prompts
    questions = [("Why?",), ("Which tokens become more likely?",), ("Is ", 300, " raised?")]
    answers = [[300, 301, 302], [400], [500, 501]]
    groups, alone = [], []
    for site in ("L1", "L1H0"):  # headings of different lengths: one row is padded
        diff = rng.standard_normal(build.d_model).astype(np.float32)
        group = [(build.about(diff_at(site, diff), q), a) for q, a in zip(questions, answers, strict=True)]
        groups.append(group[: 3 if site == "L1" else 2])
        alone += groups[-1]
    loss = oracle(**build.collate_shared(groups))["loss"]
    expected = oracle(**build.collate([p for p, _ in alone], [a for _, a in alone]))["loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    parameter = oracle.injector.maps[0]
    for one, other in zip(torch.autograd.grad(loss, parameter), torch.autograd.grad(expected, parameter), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("mark", ["", MINUS])
def test_no_line_of_a_generated_answer_names_what_an_earlier_one_named(
    make_oracle: Callable[..., Oracle], make_prompts: MakePrompts, mark: str
) -> None:
    oracle, steps = make_oracle(), itertools.count()
    turns = [[i] for i in oracle.vocabulary.encode((mark,))]  # the mark, then a token, then a line break
    turns += [[300, 301, 302], list(oracle.vocabulary.newline)]

    def prefer(module: nn.Module, args: object, logits: torch.Tensor) -> torch.Tensor:
        """Of tokens always 300, then 301, then 302."""
        wanted = turns[next(steps) % len(turns)]
        forced = torch.zeros_like(logits)
        forced[..., wanted] = torch.arange(len(wanted), 0, -1).float()
        return forced

    oracle.lm.get_base_model().get_output_embeddings().register_forward_hook(prefer)
    expected = oracle.vocabulary.show(token_list([300, 301, 302], mark))
    assert oracle.generate(make_prompts(oracle, 2), max_new_tokens=3 * len(turns) - 1) == [expected] * 2


def test_a_model_with_a_sliding_window_says_so(make_oracle: Callable[..., Oracle]) -> None:
    assert make_oracle("gemma3").sliding_window == 8
    assert make_oracle("llama").sliding_window == float("inf")


def test_only_adapter_and_injector_learn(make_oracle: Callable[..., Oracle], make_prompts: MakePrompts) -> None:
    oracle = make_oracle()
    oracle(**oracle.prompts.collate(make_prompts(oracle, 2), [[300], [301]]))["loss"].backward()
    learned = {name for name, p in oracle.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"injector.maps.0", "injector.maps.1"} <= learned
    assert all("lora_" in name or name.startswith("injector.") for name in learned)
    assert sum("lora_" in name for name in learned) > 10


def test_eight_examples_are_learned_by_their_diffs_alone(make_oracle: Callable[..., Oracle]) -> None:
    oracle = make_oracle(disturb=False)
    rng = np.random.default_rng(0)
    diffs = rng.standard_normal((8, oracle.prompts.d_model)).astype(np.float32)
    prompts = [oracle.prompts.about(diff_at("L1", diff), ("Which?",)) for diff in diffs]
    answers = [[300 + 2 * i, 301 + 2 * i] for i in range(8)]
    batch = oracle.prompts.collate(prompts, answers)
    optimizer = torch.optim.AdamW([p for p in oracle.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        oracle(**batch)["loss"].backward()
        nn.utils.clip_grad_norm_(oracle.parameters(), 1.0)
        optimizer.step()
    expected = [oracle.vocabulary.show(tuple(answer)) for answer in answers]
    assert oracle.generate(prompts, max_new_tokens=3) == expected
    for room, length, cut_off in ((2, 2, True), (3, 3, False), (4, 3, False)):
        assert oracle.answer(prompts, room) == [Generated(text, length, cut_off) for text in expected]
    swapped = [Prompt(p.ids, q.vectors) for p, q in zip(prompts, reversed(prompts), strict=True)]
    assert oracle.generate(swapped, max_new_tokens=3) == expected[::-1]


def test_choices_are_scored_by_the_next_token(make_oracle: Callable[..., Oracle], make_prompts: MakePrompts) -> None:
    oracle = make_oracle()
    prompts = make_prompts(oracle, 3)
    scores = oracle.choice_log_probs(prompts, [[(300,), (301,)], [(302,), (303,)], [("yes",), ("no",)]], batch_size=2)
    batch = oracle.prompts.collate([prompts[1]])
    with torch.no_grad(), oracle.injector.injecting(batch["slot_mask"], batch["vectors"]):
        expected = oracle.lm(input_ids=batch["input_ids"]).logits[0, -1].log_softmax(-1)[[302, 303]]
    torch.testing.assert_close(scores[1], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="told apart by their first token"):
        oracle.choice_log_probs(prompts[:1], [[(300, 5), (300, 6)]])


def test_what_is_no_diff_of_the_model_is_refused(make_oracle: Callable[..., Oracle]) -> None:
    oracle = make_oracle()
    width = oracle.identity.d_model
    some = diff_at("L0", np.ones(width, np.float32))
    for vector in (np.ones(width + 1, np.float32), np.full(width, np.nan, np.float32)):
        with pytest.raises(ValueError, match=f"cannot be injected: expected {width} finite numbers"):
            oracle.ask(diff_at("L0", vector), "More likely?")
    with pytest.raises(ValueError, match="L40H0"):
        oracle.ask(diff_at("L40H0", np.ones(width, np.float32)), "More likely?")
    for ask in (lambda: oracle.ask(some, " "), lambda: oracle.choose(some, "", ["yes", "no"])):
        with pytest.raises(ValueError, match="the question is empty"):
            ask()


@pytest.mark.parametrize(
    ("choices", "message"), [([], "nothing to choose"), (["", "yes"], "none may be empty"), ("yes", "got one text")]
)
def test_choices_that_are_none_are_refused(
    make_oracle: Callable[..., Oracle], choices: list[str], message: str
) -> None:
    oracle = make_oracle()
    with pytest.raises(ValueError, match=message):
        oracle.choose(diff_at("L0", np.ones(oracle.identity.d_model, np.float32)), "Which?", choices)
