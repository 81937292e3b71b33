import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from diff_oracle.subject import model as subject_model
from diff_oracle.subject.loading import LoadedModel, SubjectConfig, identify
from diff_oracle.subject.model import Norm, Subject
from tests.helpers import ARCHITECTURES, random_loaded, random_subject, random_tokens


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_bridge_gives_the_models_logits(architecture: str) -> None:
    """On texts that are longer than the probe at load and than Gemma's window."""
    plain, subject, token_ids = random_loaded(architecture).model, random_subject(architecture), random_tokens(3, 60)
    with torch.no_grad():
        expected = plain(input_ids=token_ids).logits
        assert torch.allclose(subject.bridge(token_ids), expected, atol=1e-4 * expected.abs().max().item())


def test_a_bridge_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    build = subject_model.build_bridge_from_module

    def careless(model: torch.nn.Module, *args: object, **kwargs: object) -> object:
        with torch.no_grad():
            model.get_submodule("model.layers.2.mlp.down_proj").weight[0] *= 1.1
        return build(model, *args, **kwargs)

    monkeypatch.setattr(subject_model, "build_bridge_from_module", careless)
    with pytest.raises(ValueError, match="bridge does not reproduce the logits of random-llama"):
        Subject.load(SubjectConfig(source="random"))


def test_a_lens_that_reads_the_head_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would be with a model that scales its logits in a way unknown here."""
    frozen = Norm.frozen
    monkeypatch.setattr(Norm, "frozen", lambda self, x, scale: frozen(self, x, scale) * 1.01)
    with pytest.raises(ValueError, match="logit lens does not reproduce the logits of random-gemma3"):
        Subject.load(SubjectConfig(source="random", architecture="gemma3"))


def test_damaged_weights_are_refused() -> None:
    loaded = random_loaded()
    with torch.no_grad():
        loaded.model.get_submodule("model.layers.1.mlp.down_proj").weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="logits of random-llama are not finite: its weights are damaged"):
        Subject(loaded)


def test_bfloat16_loads() -> None:
    subject = Subject.load(SubjectConfig(dtype="bfloat16"))
    assert subject.hf_model.dtype == torch.bfloat16 and subject.W_U.dtype == torch.float32


def test_a_norm_is_torchs() -> None:
    """On small residuals too, where ε is what σ is made of."""
    gamma, beta, *rows = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    x = torch.stack(rows) * 1e-3
    layer_norm = Norm(centred=True, gamma=gamma, beta=beta, eps=1e-5)
    assert torch.allclose(layer_norm(x), torch.nn.functional.layer_norm(x, (16,), gamma, beta, 1e-5), atol=1e-5)
    rms_norm = Norm(centred=False, gamma=gamma, beta=torch.zeros(16), eps=1e-5)
    assert torch.allclose(rms_norm(x), torch.nn.functional.rms_norm(x, (16,), gamma, 1e-5), atol=1e-5)


def test_writes_that_are_scaled_on_their_way_are_refused() -> None:
    """Granite multiplies what its blocks write; W_O alone does not know."""
    tokenizer = random_loaded().tokenizer
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0}
    for factor in (1.0, 0.5):
        model = GraniteForCausalLM(GraniteConfig(**sizes, **heads, residual_multiplier=factor)).eval()
        loaded = LoadedModel(model, tokenizer, identify("granite", model, tokenizer, "float32"))
        if factor == 1.0:
            Subject(loaded)
            continue
        with pytest.raises(ValueError, match=r"the heads of block 0 of granite .* do not add up"):
            Subject(loaded)
