"""Samples are drawn from what the model says with its diff injected, whatever is kept, repeated and left out."""

import numpy as np
import pytest
import torch

from diff_oracle.nla.sampler import drift, log_probs, sample
from diff_oracle.nla.updates import MAX_DRIFT
from diff_oracle.oracle.adapter import LoraOptions
from diff_oracle.oracle.injection import InjectionConfig
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import Prompt, PromptConfig
from diff_oracle.oracle.storage import OracleConfig
from diff_oracle.subject.loading import SubjectConfig
from tests.helpers import ARCHITECTURES, diff_at

CASES = [(name, {}) for name in ARCHITECTURES] + [("gemma3", {"kind": "residual"}), ("llama", {"input": "diff_before"})]


def made(architecture: str = "llama", **injection: object) -> Oracle:
    """On a random model whose adapter does something; its answers end now and then."""
    torch.manual_seed(0)
    config = OracleConfig(LoraOptions(rank=4, alpha=4.0), PromptConfig(), InjectionConfig(**injection))  # type: ignore[arg-type]
    oracle = Oracle.create(SubjectConfig(source="random", architecture=architecture), config).eval()
    for name, parameter in oracle.lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return oracle


def ask(oracle: Oracle, number: int = 3) -> list[Prompt]:
    rng = np.random.default_rng(0)
    questions = ["Why?", "Which tokens become more likely?", "What does this step do, and to which tokens?"]
    return [
        oracle.prompts.about(
            diff_at(f"L{i}", rng.standard_normal(oracle.prompts.d_model).astype(np.float32)), (questions[i % 3],)
        )
        for i in range(number)
    ]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def often_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model hardly ever draws its end-of-sequence token: here a quarter of all draws end an answer."""
    drawn = torch.multinomial

    def multinomial(probs: torch.Tensor, number: int, generator: torch.Generator) -> torch.Tensor:
        ends = torch.rand(len(probs), 1, generator=generator) < 0.25
        return torch.where(ends, 0, drawn(probs, number, generator=generator))

    monkeypatch.setattr(torch, "multinomial", multinomial)


@pytest.mark.parametrize(("architecture", "injection"), CASES)
def test_log_probs_are_those_at_sampling(
    architecture: str, injection: dict[str, str], often_ending: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = made(architecture, **injection)
    monkeypatch.setattr(oracle.prompts, "eos_id", 0)
    prompts = ask(oracle)
    samples = sample(oracle, prompts, 4, 10, seeded())
    assert len(set(samples.lengths.tolist())) > 2  # rows were left out on the way
    with torch.no_grad():
        again = log_probs(oracle, samples)
        in_parts = [log_probs(oracle, samples.take([i])) for i in range(len(samples))]
    assert drift(samples, again) < 1e-4
    for i, part in enumerate(in_parts):
        torch.testing.assert_close(part[0], again[i, : part.shape[1]], rtol=1e-4, atol=1e-4)
    # The diff takes part: the same tokens are more or less likely with another one.
    for prompt in prompts:
        assert prompt.vectors is not None
        prompt.vectors[...] = -prompt.vectors
    with torch.no_grad():
        assert drift(samples, log_probs(oracle, samples)) > 1e-3


def test_in_bf16_log_probs_are_near_those_at_sampling() -> None:
    oracle = Oracle.from_pretrained("tiny")  # what a trained one says is far from equally likely
    prompts = ask(oracle)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        samples = sample(oracle, prompts, 4, 24, seeded())
        assert 0 < drift(samples, log_probs(oracle, samples)) <= MAX_DRIFT[True]
    with torch.no_grad():  # rounding is seen
        assert drift(samples, log_probs(oracle, samples)) > MAX_DRIFT[False]


@pytest.mark.parametrize(("architecture", "injection"), CASES)
def test_greedy_is_generate(architecture: str, injection: dict[str, str]) -> None:
    oracle = made(architecture, **injection)
    prompts = ask(oracle)
    samples = sample(oracle, prompts, 2, 8, None)
    for i, prompt in enumerate(prompts):
        batch = oracle.prompts.collate([prompt])
        with oracle.injector.injecting(batch["slot_mask"], batch["vectors"]), torch.no_grad():
            expected = oracle.lm.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=8,
                do_sample=False,
                eos_token_id=oracle.prompts.eos_id,
                pad_token_id=oracle.prompts.eos_id,
            )[0, len(prompt.ids) :]
        for row in (2 * i, 2 * i + 1):
            assert samples.ids[row, : len(expected)].tolist() == expected.tolist()


def test_samples_of_a_group_differ_and_come_again_with_the_seed() -> None:
    oracle = made()
    samples, same, other = (sample(oracle, ask(oracle), 4, 6, seeded(seed)) for seed in (0, 0, 1))
    assert len({tuple(row) for row in samples.ids.tolist()}) == 12
    assert torch.equal(samples.ids, same.ids) and torch.equal(samples.log_probs, same.log_probs)
    assert not torch.equal(samples.ids, other.ids)
    assert [id(prompt) for prompt in samples.prompts[:5]] == [id(samples.prompts[0])] * 4 + [id(samples.prompts[4])]


def test_tokens_are_as_frequent_as_they_are_likely() -> None:
    oracle = made()
    (prompt,) = ask(oracle, 1)
    number = 4000
    first = sample(oracle, [prompt], number, 1, seeded())
    batch = oracle.prompts.collate([prompt])
    with oracle.injector.injecting(batch["slot_mask"], batch["vectors"]), torch.no_grad():
        scores = oracle.lm(input_ids=batch["input_ids"]).logits[0, -1].log_softmax(-1)
    halves = torch.zeros(len(scores), dtype=torch.bool)
    halves[scores.argsort(descending=True)[: len(scores) // 4]] = True
    expected = float(scores[halves].exp().sum())
    assert float(halves[first.ids[:, 0]].float().mean()) == pytest.approx(expected, abs=4 * 0.5 / number**0.5)
    torch.testing.assert_close(first.log_probs[:, 0], scores[first.ids[:, 0]], rtol=1e-4, atol=1e-4)
    assert float(first.entropy[0, 0]) == pytest.approx(float(-(scores.exp() * scores).sum()), rel=1e-4)


def test_what_is_cut_off_and_what_ends(often_ending: None, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = made()
    monkeypatch.setattr(oracle.prompts, "eos_id", 0)
    samples = sample(oracle, ask(oracle), 8, 5, seeded())
    assert 0 < int(samples.cut_off.sum()) < len(samples)
    for ids, mask, cut_off in zip(samples.ids.tolist(), samples.mask.tolist(), samples.cut_off.tolist(), strict=True):
        length = sum(mask)
        assert mask == [True] * length + [False] * (len(mask) - length)
        assert 0 not in ids[: length - 1]
        assert (ids[length - 1] != 0) == cut_off
        assert not cut_off or length == 5
    assert float(samples.log_probs[~samples.mask].abs().sum()) == 0
    assert float(samples.entropy[~samples.mask].abs().sum()) == 0


def test_only_the_prompt_is_injected(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = made()
    shapes: list[tuple[int, ...]] = []
    inject = oracle.injector.inject
    monkeypatch.setattr(oracle.injector, "inject", lambda h, v: shapes.append(tuple(h.shape[:2])) or inject(h, v))
    prompts = ask(oracle)
    width = max(len(prompt.ids) for prompt in prompts)
    samples = sample(oracle, prompts, 4, 6, seeded())
    assert shapes == [(3, width)]  # once, before the cache is repeated
    # A sampled slot token is a token as any other.
    samples.ids[:, 0] = oracle.prompts.slot_id
    log_probs(oracle, samples)
    assert shapes[1:] == [(3, width)]


@pytest.mark.parametrize(("architecture", "injection"), CASES)
def test_log_probs_and_gradients_are_those_of_whole_rows(architecture: str, injection: dict[str, str]) -> None:
    oracle = made(architecture, **injection)
    samples = sample(oracle, ask(oracle), 2, 6, seeded()).take([5, 0, 3, 4])  # in any order, groups torn apart
    trained = [parameter for parameter in oracle.parameters() if parameter.requires_grad]
    found = log_probs(oracle, samples)
    gradients = torch.autograd.grad(found.sum(), trained)
    expected = []
    for prompt, ids in zip(samples.prompts, samples.ids, strict=True):  # prompt and answer, read at once
        batch = oracle.prompts.collate([prompt])
        row = torch.cat([batch["input_ids"], ids[None]], dim=1)
        slots = torch.nn.functional.pad(batch["slot_mask"], (0, len(ids)))
        with oracle.injector.injecting(slots, batch["vectors"]):
            scores = oracle.lm(input_ids=row).logits[0].log_softmax(-1)
        expected.append(scores[len(prompt.ids) - 1 : -1].gather(1, ids[:, None])[:, 0])
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(gradients, torch.autograd.grad(torch.stack(expected).sum(), trained), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_gradients_reach_adapter_and_injector() -> None:
    oracle = made()
    samples = sample(oracle, ask(oracle), 2, 4, seeded())
    log_probs(oracle, samples)[samples.mask].mean().backward()
    grads = {name: p.grad for name, p in oracle.named_parameters() if p.requires_grad}
    assert all(grad is not None and grad.abs().sum() > 0 for name, grad in grads.items() if "lora_B" in name)
    assert all(grad is not None and grad.abs().sum() > 0 for name, grad in grads.items() if "injector" in name)
