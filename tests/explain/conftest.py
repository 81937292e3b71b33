import pytest
import torch

from diff_oracle.explain import Explainer
from diff_oracle.oracle.adapter import LoraOptions
from diff_oracle.oracle.injection import InjectionConfig
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import PromptConfig
from diff_oracle.oracle.storage import OracleConfig
from diff_oracle.subject.loading import SubjectConfig
from diff_oracle.subject.model import Subject


def untrained_oracle(base: SubjectConfig | None = None) -> Oracle:
    """With the adapter that training starts from; of the bundled model where none is given."""
    torch.manual_seed(0)
    config = OracleConfig(LoraOptions(rank=4, alpha=4.0), PromptConfig(), InjectionConfig())
    return Oracle.create(base or SubjectConfig(), config).eval()


@pytest.fixture(scope="package")
def explainer() -> Explainer:
    oracle = untrained_oracle()
    return Explainer(Subject.load(oracle.base), oracle)
