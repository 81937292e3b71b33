"""Injection is exact: nothing without a diff, the formula with one, and the same padded, cached or in training."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from diff_oracle.oracle.injection import decoder_blocks, final_gains
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import Prompt
from diff_oracle.subject.loading import SubjectConfig, load_hf_model

ARCHITECTURES = ["llama", "gpt2", "gpt_neox", "qwen3", "gemma3"]
KINDS = ["embed", "residual"]
MakePrompts = Callable[[Oracle, int], list[Prompt]]


def last_logits(oracle: Oracle, prompts: list[Prompt], diffs: bool = True) -> Tensor:
    batch = oracle.prompts.collate(prompts)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}  # type: ignore[literal-required]
    with torch.no_grad():
        if not diffs:
            return oracle.lm(**inputs).logits[:, -1]
        with oracle.injector.injecting(batch["slot_mask"], batch["vectors"]):
            return oracle.lm(**inputs).logits[:, -1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_zero_diff_changes_nothing_and_a_diff_does(
    make_oracle: Callable[..., Oracle], make_prompts: MakePrompts, architecture: str, kind: str
) -> None:
    oracle = make_oracle(architecture, kind=kind)
    prompts = make_prompts(oracle, 3)
    empty = [Prompt(p.ids, np.zeros_like(p.vectors)) for p in prompts]
    plain = last_logits(oracle, prompts, diffs=False)
    assert torch.equal(last_logits(oracle, empty), plain)
    assert (last_logits(oracle, prompts) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("map_", ["none", "affine", "per_slot"])
def test_autocast_does_not_round_what_is_injected(make_oracle: Callable[..., Oracle], kind: str, map_: str) -> None:
    oracle = make_oracle(kind=kind, map=map_, input="before_after")
    for matrix in oracle.injector.maps:
        torch.nn.init.normal_(matrix)
    before = torch.ones(3, 1, oracle.prompts.d_model)
    vectors = torch.cat([before, before + 1e-3 * torch.randn(before.shape)], dim=1)  # bfloat16 takes them for the same
    hidden = torch.randn(3, 1, oracle.prompts.d_model)
    directions = oracle.injector.directions(vectors)
    injected = oracle.injector.inject(hidden, directions[:, :1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(oracle.injector.directions(vectors), directions)
        assert torch.equal(oracle.injector.inject(hidden, directions[:, :1]), injected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_map_in_the_unembeddings_basis_equals_one_made_by_hand(
    make_oracle: Callable[..., Oracle], architecture: str, kind: str
) -> None:
    injector = make_oracle(architecture, kind=kind, basis="unembedding").injector
    model = load_hf_model(SubjectConfig(source="random", architecture=architecture)).model
    names = ("model.norm.weight", "ln_f.weight", "final_layer_norm.weight")
    (weight,) = (weight for name, weight in model.named_parameters() if name.endswith(names))
    gains = weight.detach() + (architecture == "gemma3")  # Gemma's norm multiplies by 1 + weight
    torch.testing.assert_close(injector.gains, gains, rtol=1e-4, atol=1e-4)
    vectors = torch.randn(3, 1, len(gains))
    direction = vectors[:, 0] / vectors[:, 0].norm(dim=-1, keepdim=True)
    started = injector.directions(vectors).detach()
    torch.testing.assert_close(started[:, 0], direction)
    torch.testing.assert_close(started[:, 1], -direction)
    for matrix in injector.maps:
        torch.nn.init.normal_(matrix)
    with torch.no_grad():
        for slot, matrix in enumerate(injector.maps):
            seen = vectors[:, 0] @ gains.diag()
            size = seen.norm(dim=-1, keepdim=True)
            mapped = (seen / size) @ matrix[:, :-1].T + matrix[:, -1]
            expected = mapped @ gains.diag().inverse() * size / vectors[:, 0].norm(dim=-1, keepdim=True)
            torch.testing.assert_close(injector.directions(vectors)[:, slot], expected, rtol=1e-3, atol=1e-4)


def test_a_model_without_gains_to_divide_by_is_refused() -> None:
    model = load_hf_model(SubjectConfig(source="random", architecture="llama")).model
    with torch.no_grad():
        model.base_model.norm.weight[3] = 0
    with pytest.raises(ValueError, match=r"gains of zero: take injection\.basis=residual"):
        final_gains(model)
    model.base_model.norm = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"no final norm to be found: take injection\.basis=residual"):
        final_gains(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_embed_equals_replaced_embeddings(
    make_oracle: Callable[..., Oracle], make_prompts: MakePrompts, architecture: str
) -> None:
    oracle = make_oracle(architecture, kind="embed", map="none", scale=0.5)
    (prompt,) = make_prompts(oracle, 1)
    embedding = oracle.lm.get_input_embeddings()
    with torch.no_grad():
        mean_norm = embedding(torch.arange(embedding.weight.shape[0])).norm(dim=-1).mean()
        embeds = embedding(torch.tensor([prompt.ids])).clone()
        for position, token in enumerate(prompt.ids):
            if token == oracle.prompts.slot_id:
                diff = torch.from_numpy(prompt.vectors)[0]
                embeds[0, position] = 0.5 * mean_norm * diff / diff.norm()
        expected = oracle.lm(inputs_embeds=embeds).logits[:, -1]
    torch.testing.assert_close(last_logits(oracle, [prompt]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_residual_equals_a_hand_made_addition_behind_the_block(
    make_oracle: Callable[..., Oracle], make_prompts: MakePrompts, architecture: str
) -> None:
    oracle = make_oracle(architecture, kind="residual", map="none", scale=2.0, block=1)
    (prompt,) = make_prompts(oracle, 1)
    ids = torch.tensor([prompt.ids])
    # The input of block 2 is the output of block 1: changing it there is another way to the same place.
    block = decoder_blocks(oracle.lm.get_base_model())[2]

    def change(module: object, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict]:
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        diff = torch.from_numpy(prompt.vectors)[0]
        for position, token in enumerate(prompt.ids):
            if token == oracle.prompts.slot_id:
                hidden[0, position] += 2.0 * hidden[0, position].norm() * diff / diff.norm()
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    handle = block.register_forward_pre_hook(change, with_kwargs=True)
    with torch.no_grad():
        expected = oracle.lm(input_ids=ids).logits[:, -1]
    handle.remove()
    torch.testing.assert_close(last_logits(oracle, [prompt]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_padded_row_gives_what_it_gives_alone(
    make_oracle: Callable[..., Oracle], make_prompts: MakePrompts, architecture: str, kind: str
) -> None:
    oracle = make_oracle(architecture, kind=kind)
    prompts = make_prompts(oracle, 3)
    together = last_logits(oracle, prompts)
    for row, prompt in zip(together, prompts, strict=True):
        torch.testing.assert_close(row, last_logits(oracle, [prompt])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cached_generation_equals_full_passes(
    make_oracle: Callable[..., Oracle], make_prompts: MakePrompts, architecture: str, kind: str
) -> None:
    oracle = make_oracle(architecture, kind=kind)
    prompts = make_prompts(oracle, 3)
    batch = oracle.prompts.collate(prompts)
    with oracle.injector.injecting(batch["slot_mask"], batch["vectors"]):
        cached = oracle.lm.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=6, min_new_tokens=6,
            do_sample=False, pad_token_id=0,
        )[:, -6:]  # fmt: skip
    for prompt, row in zip(prompts, cached.tolist(), strict=True):
        ids = list(prompt.ids)
        for token in row:
            mask = torch.tensor([[i < len(prompt.ids) and t == oracle.prompts.slot_id for i, t in enumerate(ids)]])
            with torch.no_grad(), oracle.injector.injecting(mask, torch.from_numpy(prompt.vectors)[None]):
                logits = oracle.lm(input_ids=torch.tensor([ids])).logits[0, -1]
            logits[oracle.prompts.eos_id] = -torch.inf  # as min_new_tokens does
            assert logits.max() - logits[token] < 1e-4
            ids.append(token)


@pytest.mark.parametrize("kind", KINDS)
def test_a_generated_slot_token_is_not_injected(
    make_oracle: Callable[..., Oracle], make_prompts: MakePrompts, kind: str
) -> None:
    oracle = make_oracle(kind=kind)
    (prompt,) = make_prompts(oracle, 1)
    batch = oracle.prompts.collate([prompt])
    slot = torch.tensor([[oracle.prompts.slot_id]])
    with torch.no_grad(), oracle.injector.injecting(batch["slot_mask"], batch["vectors"]):
        cache = oracle.lm(input_ids=batch["input_ids"], use_cache=True).past_key_values
        step = oracle.lm(input_ids=slot, past_key_values=cache).logits[0, -1]
    longer = torch.cat([batch["slot_mask"], torch.tensor([[False]])], 1)
    with torch.no_grad(), oracle.injector.injecting(longer, batch["vectors"]):
        full = oracle.lm(input_ids=torch.cat([batch["input_ids"], slot], 1)).logits[0, -1]
    torch.testing.assert_close(step, full, rtol=1e-4, atol=1e-4)


def test_the_size_of_a_diff_is_not_injected(make_oracle: Callable[..., Oracle], make_prompts: MakePrompts) -> None:
    oracle = make_oracle()
    (prompt,) = make_prompts(oracle, 1)
    larger = Prompt(prompt.ids, 1000 * prompt.vectors)
    torch.testing.assert_close(last_logits(oracle, [prompt]), last_logits(oracle, [larger]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_slots", [1, 3])
@pytest.mark.parametrize("map", ["none", "affine", "per_slot"])
def test_each_slot_gets_its_map_of_the_direction(make_oracle: Callable[..., Oracle], map: str, num_slots: int) -> None:
    injector = make_oracle(map=map, num_slots=num_slots).injector
    diff = torch.randn(2, 64)
    unit = diff / diff.norm(dim=-1, keepdim=True)
    signs = [1, -1, 1] if map == "per_slot" else [1, 1, 1]
    start = torch.stack([sign * unit for sign in signs[:num_slots]], dim=1)
    torch.testing.assert_close(injector.directions(diff[:, None]), start)
    for parameter in injector.parameters():
        torch.nn.init.normal_(parameter)
    matrices = list(injector.parameters())
    for j, learned in enumerate(injector.directions(diff[:, None]).unbind(1)):
        if matrices:
            matrix = matrices[j % len(matrices)]
            torch.testing.assert_close(learned, unit @ matrix[:, :64].T + matrix[:, 64], rtol=1e-4, atol=1e-5)
    assert len(matrices) == {"none": 0, "affine": 1, "per_slot": num_slots}[map]


@pytest.mark.parametrize("kind", KINDS)
def test_slots_are_told_apart_in_a_padded_row_too(
    make_oracle: Callable[..., Oracle], make_prompts: MakePrompts, kind: str
) -> None:
    oracle = make_oracle(kind=kind, block=0)
    prompts = make_prompts(oracle, 2)
    batch = oracle.prompts.collate(prompts)
    module = oracle.lm.get_input_embeddings() if kind == "embed" else decoder_blocks(oracle.lm.get_base_model())[0]
    seen: list[Tensor] = []

    def keep(module: object, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(keep)
    with torch.no_grad():
        oracle.lm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        with oracle.injector.injecting(batch["slot_mask"], batch["vectors"]):
            oracle.lm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    handle.remove()
    plain, injected = seen
    for row, (diff,) in enumerate(batch["vectors"]):
        first, second = batch["slot_mask"][row].nonzero().flatten().tolist()
        base = plain[row] if kind == "residual" else torch.zeros_like(plain[row])
        for place, sign in ((first, 1), (second, -1)):
            direction = injected[row, place] - base[place]
            cosine = torch.cosine_similarity(direction, sign * diff, dim=0)
            assert cosine.item() == pytest.approx(1, abs=1e-4)
    unchanged = ~batch["slot_mask"]
    assert torch.equal(plain[unchanged], injected[unchanged])


def test_a_block_that_is_not_there_is_refused(make_oracle: Callable[..., Oracle]) -> None:
    with pytest.raises(ValueError, match=r"injection.block=9, but the model has blocks 0…"):
        make_oracle(kind="residual", block=9)
