from typing import Any

import pytest
import torch

from diff_oracle.explain import Explainer
from diff_oracle.nla import DiffNLA
from diff_oracle.nla.reconstructor import Reconstructor, ReconstructorConfig
from diff_oracle.oracle.adapter import LoraOptions
from diff_oracle.oracle.injection import InjectionConfig
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import PromptConfig
from diff_oracle.oracle.storage import OracleConfig
from diff_oracle.subject.loading import SubjectConfig
from diff_oracle.subject.model import Subject
from diff_oracle.tasks.explanation import ExplanationConfig


def untrained_oracle(base: SubjectConfig | None = None, **tasks: dict[str, Any]) -> Oracle:
    """With the adapter that training starts from; of the bundled model where none is given."""
    torch.manual_seed(0)
    config = OracleConfig(LoraOptions(rank=4, alpha=4.0), PromptConfig(), InjectionConfig(), tasks=tasks)
    return Oracle.create(base or SubjectConfig(), config).eval()


def untrained_pair(oracle: Oracle) -> DiffNLA:
    """That oracle, and a reconstructor of one block as training begins with it."""
    torch.manual_seed(1)
    config = ReconstructorConfig(blocks=1, floor=False, lora=LoraOptions(rank=4, alpha=4.0))
    ar = Reconstructor.create(oracle.base, config).eval()
    return DiffNLA(oracle, ar, ExplanationConfig(num_raised=1, num_lowered=1, num_read=1))


@pytest.fixture(scope="package")
def explainer() -> Explainer:
    oracle = untrained_oracle()
    return Explainer(Subject.load(oracle.base), oracle)
