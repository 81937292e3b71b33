import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from diff_oracle.subject.capture import capture
from diff_oracle.subject.forward import Query
from diff_oracle.subject.lens import (
    direct_logit_shift,
    label_tokens,
    lens_difference,
    token_texts,
    top_tokens,
)
from diff_oracle.subject.sites import DiffSite, expand_sites
from tests.helpers import ARCHITECTURES, random_loaded, random_subject, random_tokens, relative_error
from tests.subject.reference import LAYOUTS, reference

PLACE = (1, 17)


def slow_shift(architecture: str, diff: np.ndarray, final: np.ndarray) -> list[float]:
    """(δ·γ/σ)·W_U centred over the vocabulary, a number at a time, from the Hugging Face weights."""
    model = random_loaded(architecture).model
    norm = model.get_submodule(LAYOUTS[architecture].norm)
    weight = norm.weight.double().tolist()
    rows = model.get_output_embeddings().weight.double().tolist()
    eps = model.config.layer_norm_epsilon if architecture == "gpt2" else None
    if eps is None:
        eps = model.config.layer_norm_eps if architecture == "gpt_neox" else model.config.rms_norm_eps
    delta, residual = diff.tolist(), final.tolist()
    width = len(delta)
    if architecture in ("gpt2", "gpt_neox"):
        delta = [x - sum(delta) / width for x in delta]
        residual = [x - sum(residual) / width for x in residual]
    sigma = math.sqrt(sum(x * x for x in residual) / width + eps)
    gamma = [1 + w for w in weight] if architecture == "gemma3" else weight
    scaled = [d * g / sigma for d, g in zip(delta, gamma, strict=True)]
    logits = [sum(s * w for s, w in zip(scaled, row, strict=True)) for row in rows]
    mean = sum(logits) / len(logits)
    return [logit - mean for logit in logits]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_direct_shift_is_the_formula(architecture: str) -> None:
    subject, token_ids = random_subject(architecture), random_tokens()
    final = reference(random_loaded(architecture).model, architecture, token_ids).final[PLACE]
    captured = capture(subject, token_ids, [Query(*PLACE, DiffSite.parse("L1H2"))])
    got = direct_logit_shift(subject, captured.diff, captured.final_scale)[0]
    expected = slow_shift(architecture, captured.diff[0].double().numpy(), final.detach().double().numpy())
    assert relative_error(got, torch.tensor(expected, dtype=torch.float64)) < 1e-4


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [*((name, {}) for name in ARCHITECTURES), ("gemma3", {"final_logit_softcapping": 5.0})],
)
def test_all_shifts_sum_to_the_logits(architecture: str, overrides: dict) -> None:
    """The shifts of the embedding and of every write are the model's centred logits, but for the norm's bias."""
    token_ids = random_tokens()
    loaded = random_loaded(architecture, **overrides)
    logits = reference(loaded.model, architecture, token_ids).logits[PLACE].double()
    loaded.model.requires_grad_(False)
    if overrides:
        logits = 5.0 * torch.atanh(logits / 5.0)  # the shift knows no softcap
    norm = loaded.model.get_submodule(LAYOUTS[architecture].norm)
    if getattr(norm, "bias", None) is not None:
        logits = logits - loaded.model.get_output_embeddings().weight.double() @ norm.bias.double()

    subject = random_subject(architecture, **overrides)
    sites = expand_sites(["components"], subject.n_layers, subject.n_heads)
    captured = capture(subject, token_ids, [Query(*PLACE, site) for site in sites])
    writes = torch.cat([captured.before[:1], captured.diff])
    shift = direct_logit_shift(subject, writes, captured.final_scale[:1].expand(len(writes))).double().sum(0)
    assert relative_error(shift, logits - logits.mean()) < (1e-2 if overrides else 1e-4)  # atanh magnifies rounding


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [*((name, {}) for name in ARCHITECTURES), ("gemma3", {"final_logit_softcapping": 5.0})],
)
def test_lens_difference_is_the_models_own_head(architecture: str, overrides: dict) -> None:
    token_ids = random_tokens()
    loaded = random_loaded(architecture, **overrides)
    seen = reference(loaded.model, architecture, token_ids)
    subject = random_subject(architecture, **overrides)
    last = f"L{subject.n_layers - 1}"
    diff, before = seen.diff[last][PLACE][None], seen.before[last][PLACE][None]
    got = lens_difference(subject, before, diff)[0]

    def head(residual: Tensor) -> Tensor:
        logits = loaded.model.get_output_embeddings()(loaded.model.get_submodule(LAYOUTS[architecture].norm)(residual))
        return (5.0 * torch.tanh(logits / 5.0) if overrides else logits).log_softmax(-1)

    with torch.no_grad():
        expected = seen.logits[PLACE].log_softmax(-1) - head(before)[0]
    assert (got - expected).abs().max() < 1e-3
    assert expected.abs().max() > 1


def test_top_tokens_are_the_ends_among_the_allowed() -> None:
    shift = torch.tensor([[0.5, 9.0, -3.0, 2.0, -9.0, -1.0]])
    tops = top_tokens(shift, torch.tensor([True, False, True, True, False, True]), k=2)
    assert tops.promoted_ids.tolist() == [[3, 0]] and tops.promoted_scores.tolist() == [[2.0, 0.5]]
    assert tops.suppressed_ids.tolist() == [[2, 5]] and tops.suppressed_scores.tolist() == [[-3.0, -1.0]]
    with pytest.raises(ValueError, match="cannot name 5 tokens: between 1 and the 4"):
        top_tokens(shift, torch.tensor([True, False, True, True, False, True]), k=5)


def test_labels_name_only_tokens_that_read_as_text() -> None:
    tokenizer = random_loaded().tokenizer
    allowed = label_tokens(tokenizer, len(tokenizer) + 32)
    assert allowed.shape == (len(tokenizer) + 32,) and not allowed[len(tokenizer) :].any()
    assert not allowed[tokenizer.all_special_ids].any()
    assert allowed.sum() > 0.9 * len(tokenizer)
    texts = token_texts(tokenizer)
    named = [texts[i] for i in allowed.nonzero()[:, 0].tolist()]
    assert len(set(named)) == len(named)
    assert all(text.strip() and text.isprintable() and "�" not in text for text in named)
    for unreadable in ("\n", " ", "    ", "\t"):
        assert not allowed[tokenizer.encode(unreadable, add_special_tokens=False)].any()
    assert not allowed[tokenizer.encode("é😀", add_special_tokens=False)[-1]]  # a part of a character


def test_texts_of_tokens_join_to_the_text() -> None:
    tokenizer = random_loaded().tokenizer
    text = "The import statement binds a name, don't it: x[0] = f(y) ."
    ids = tokenizer.encode(text, add_special_tokens=False)
    texts = token_texts(tokenizer)
    assert "".join(texts[i] for i in ids) == text


@pytest.fixture
def sentencepiece() -> PreTrainedTokenizerFast:
    """In the manner of Llama 2 and Gemma: a mark for a space, bytes for what is unknown, and a decoder that strips."""
    vocab = {
        "<bos>": 0,
        "<0x41>": 1,
        "<0xE2>": 2,
        "A": 3,
        "a": 4,
        "▁a": 5,
        "▁the": 6,
        "the": 7,
        "▁": 8,
        "<unused0>": 9,
        " the": 10,
    }
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "a")], byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>")
    tokenizer.add_tokens(["<unused0>"], special_tokens=True)
    return tokenizer


def test_leading_spaces_survive_a_decoder_that_strips(sentencepiece: PreTrainedTokenizerFast) -> None:
    assert sentencepiece.decode([6]) == "the"  # what one would get
    assert token_texts(sentencepiece)[3:8] == ["A", "a", " a", " the", "the"]


def test_a_text_names_one_token_and_no_byte(sentencepiece: PreTrainedTokenizerFast) -> None:
    """<0x41> reads like A, but the model never sees or says it; " the" is there twice."""
    assert label_tokens(sentencepiece, 12).nonzero()[:, 0].tolist() == [3, 4, 5, 6, 7]
