"""Several tasks at once: what is asked of which row, under which sign, and a run through training and evaluation."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diff_oracle.evaluation.controls import CONTROLS
from diff_oracle.evaluation.metrics import EvaluationConfig, Evaluator, selection_metric, selection_scores
from diff_oracle.oracle.adapter import LoraOptions
from diff_oracle.oracle.injection import InjectionConfig
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import PromptBuilder, PromptConfig
from diff_oracle.oracle.storage import OracleConfig
from diff_oracle.records import DiffDataset, RecordSet
from diff_oracle.subject.loading import SubjectConfig
from diff_oracle.tasks import TASKS, Task, make_tasks
from diff_oracle.tasks.attention import PHRASINGS as ATTENTION
from diff_oracle.tasks.layer_skip import PHRASINGS as LAYER_SKIP
from diff_oracle.tasks.logit_lens import PHRASINGS as LOGIT_LENS
from diff_oracle.training.examples import ExampleDataset
from diff_oracle.training.mixture import MixtureConfig
from diff_oracle.training.sft import TrainingConfig, train_oracle
from tests.tasks.made import VOCABULARY, attention, make_record, make_rows, mixed_records

OPTIONS: dict[str, Any] = {"logit_lens": {"k": 8, "num_asked": 3}, "attention": {}, "layer_skip": {}}
WORDINGS = {
    re.compile(".+".join(map(re.escape, re.split(r"{\d}", wording)))): (task, kind)
    for task, phrasings in (("logit_lens", LOGIT_LENS), ("attention", ATTENTION), ("layer_skip", LAYER_SKIP))
    for kind, wordings in phrasings.items()
    for wording in wordings["seen"]
}
LONGEST_FIRST = sorted(WORDINGS, key=lambda wording: len(wording.pattern), reverse=True)


def fitted(records: RecordSet, *names: str) -> list[Task]:
    tasks = make_tasks({name: OPTIONS[name] for name in names})
    for task in tasks:
        task.fit(records, VOCABULARY)
    return tasks


def examples_of(
    records: RecordSet,
    *names: str,
    length: int = 1500,
    lists: float = 0.0,
    one: float = 0.0,
    text: float = 0.0,
    **weights: float,
) -> list[list[tuple[str, str, bytes | None]]]:
    """(task, kind, diff) of each question of each group."""
    prompts = PromptBuilder(VOCABULARY, PromptConfig(), InjectionConfig(), len(records[0].diff))
    mixture = MixtureConfig(
        tasks=weights, text_only=text, none=0.0, questions_per_diff=2, lists_first=lists, one_list_first=one
    )
    examples = ExampleDataset(records, fitted(records, *names), prompts, mixture, length // 2, 2, 0)
    groups = []
    for group in (examples[i] for i in range(length)):
        asked = [VOCABULARY.show(tuple(e.prompt.ids[e.prompt.shared :])) for e in group]
        found = [WORDINGS[next(w for w in LONGEST_FIRST if w.match(question))] for question in asked]
        diffs = [None if e.prompt.vectors is None else e.prompt.vectors.tobytes() for e in group]
        groups.append([(*name, diff) for name, diff in zip(found, diffs, strict=True)])
    return groups


@pytest.fixture(scope="module")
def records() -> RecordSet:
    return make_rows(mixed_records(120), *OPTIONS)


def test_only_logit_lens_is_asked_about_flipped_diffs_and_every_task_keeps_its_share(records: RecordSet) -> None:
    site_of = {(sign * records[i].diff).tobytes(): (records[i].site, sign) for i in range(120) for sign in (1, -1)}
    kinds, signs = Counter[str](), Counter[int]()
    for group in examples_of(records, *OPTIONS, length=1500):
        assert len({diff for _, _, diff in group}) == 1
        for task, kind, diff in group:
            assert diff is not None
            site, sign = site_of[diff]
            assert sign == 1 or task == "logit_lens"
            assert site != "L1.mlp" or task != "attention"
            assert task != "attention" or kind in ATTENTION
            kinds[kind] += 1
            if task == "logit_lens":
                signs[sign] += 1
    assert kinds["promoted"] == pytest.approx(kinds["gained"], rel=0.2)  # of one share; any row can be asked either
    assert signs[1] / signs.total() == pytest.approx(0.5, abs=0.05)


def test_rows_without_a_label_are_never_drawn(records: RecordSet) -> None:
    site_of = {records[i].diff.tobytes(): records[i].site for i in range(120)}
    groups = examples_of(records, "attention", length=400)
    seen = Counter(diff for group in groups[:80] for diff in {diff for _, _, diff in group})
    assert {site_of[diff] for diff in seen if diff} == {"L1", "L0H1"}
    assert set(seen.values()) == {1}  # the first pass shows each of the 80 rows once
    mlp = make_record(attention([], [], [], sink=None), site="L1.mlp")
    (task,) = fitted(records, "attention")
    with pytest.raises(ValueError, match="none of the 8 training rows can be asked about attention"):
        prompts = PromptBuilder(VOCABULARY, PromptConfig(), InjectionConfig(), 4)
        ExampleDataset(make_rows([mlp] * 8, "attention"), [task], prompts, MixtureConfig(), 1, 2, 0)


def test_lists_come_first_where_a_row_has_one(records: RecordSet) -> None:
    groups = examples_of(records, *OPTIONS, length=640, lists=0.5, one=0.25)
    opens = {name: task.open_kinds for name, (task, _) in TASKS.items() if name in OPTIONS}
    for task, kind, _ in (question for group in groups[:160] for question in group):
        assert kind == opens[task][0]
    assert {kind for group in groups[:320] for _, kind, _ in group} == {
        kind for kinds in opens.values() for kind in kinds
    }
    assert {kind for group in groups[320:] for _, kind, _ in group} == {
        kind for name in OPTIONS for kind in TASKS[name][0].kinds
    }
    # No token of this row has its share: only the distance can be asked.
    diffuse = make_record(attention([5], [503], [0.02], sink=0.1))
    lists = examples_of(make_rows([diffuse] * 4, "attention"), "attention", length=8, lists=1.0, one=1.0)
    assert {kind for group in lists for _, kind, _ in group} == {"distance"}


def test_a_task_s_weight_acts_on_its_lists_too(records: RecordSet) -> None:
    names, length = ("logit_lens", "layer_skip"), 400
    equal = examples_of(records, *names, length=length, lists=1.0)
    assert examples_of(records, *names, length=length, lists=1.0, logit_lens=3.0, layer_skip=3.0) == equal
    found = []
    for weight in (1.0, 9.0, 0.0):
        groups = examples_of(records, *names, length=length, lists=1.0, one=1.0, layer_skip=weight, logit_lens=1.0)
        first = Counter(task for group in groups for task, _, _ in group[:1])
        found.append(first["layer_skip"] / first.total())
    assert found == [pytest.approx(1 / 2, abs=0.08), pytest.approx(9 / 10, abs=0.06), 0.0]


def test_the_fullest_of_the_last_groups_is_found_among_smaller_ones() -> None:
    diffuse, clear = attention([5], [503], [0.02], sink=0.1), attention([5, 6], [503, 504], [0.6, 0.3], sink=0.1)
    rows = make_rows([make_record(diffuse)] * 31 + [make_record(clear)], "attention")
    prompts = PromptBuilder(VOCABULARY, PromptConfig(), InjectionConfig(), 4)
    mixture = MixtureConfig(lists_first=0.0, text_only=0.0, none=0.0)
    examples = ExampleDataset(rows, fitted(rows, "attention"), prompts, mixture, 8, 4, 1)
    assert len(examples[len(examples) - 1]) == 1 < len(examples.fullest_group())


def test_an_oracle_of_text_is_never_asked_about_flipped_diffs(records: RecordSet) -> None:
    prompts = PromptBuilder(VOCABULARY, PromptConfig(), InjectionConfig(input="text"), len(records[0].diff))
    mixture = MixtureConfig(lists_first=1.0, one_list_first=1.0)  # promoted alone
    examples = ExampleDataset(records, fitted(records, "logit_lens"), prompts, mixture, 30, 16, 0)
    upright = {tuple(records[i].labels["promoted_ids"][:3].tolist()) for i in range(len(records))}
    for group in (examples[i] for i in range(480)):
        assert tuple(t for t in group[0].answer_ids if t not in VOCABULARY.newline) in upright


def test_without_a_diff_tasks_are_asked_by_their_shares(records: RecordSet) -> None:
    groups = examples_of(records, "logit_lens", "layer_skip", length=900, text=0.999)
    kinds = Counter(kind for group in groups for _, kind, diff in group if diff is None)
    assert kinds["promoted"] == pytest.approx(kinds["gained"], rel=0.2)


def test_all_tasks_train_and_are_evaluated() -> None:
    parts = LoraOptions(rank=2), PromptConfig(), InjectionConfig()
    oracle = Oracle.create(SubjectConfig(), OracleConfig(*parts))
    width = oracle.identity.d_model
    splits = {
        split: make_rows(mixed_records(48, seed), *OPTIONS, width=width)
        for seed, split in enumerate(("train", "select", "test"))
    }
    dataset = DiffDataset(Path("made"), {"counts": {}}, splits)
    tasks = fitted(dataset.split("train"), *OPTIONS)

    def measure(oracle: Oracle) -> dict[str, float]:
        return selection_scores(oracle, dataset, tasks, 3, 16, 0)

    config = TrainingConfig(steps=2, batch_size=4, evaluations=1)
    history = train_oracle(oracle, dataset.split("train"), tasks, config, MixtureConfig(lists_first=0.5), 0, measure)
    assert np.isfinite([entry["loss"] for entry in history if "loss" in entry]).all()
    (measured,) = (e for e in history if "select/logit_lens/promoted/matched" in e)
    measured = {name: score for name, score in measured.items() if name.startswith("select/")}
    kinds = {(task.name, kind) for task in tasks for kind in task.kinds}
    controls = ("matched", "shuffled")
    assert set(measured) == {f"select/{task}/{kind}/{control}" for task, kind in kinds for control in controls}
    assert np.isfinite(selection_metric(measured))
    asked = EvaluationConfig(num_rows=6, batch_size=32, resamples=20)
    results = Evaluator(oracle, dataset, tasks, asked, 0).evaluate("test")
    assert {(r.task, r.question) for r in results if "held-out" not in r.question} == kinds
    asked_controls = {r.control for r in results if " - " not in r.control}
    assert asked_controls >= set(CONTROLS) - {"wrong_site", "same_document"}  # made-up rows share no context
    assert {r.task for r in results if r.control == "recency"} == {"attention"}
    one = tasks[-1]
    alone = Evaluator(oracle, dataset, [one], asked, 0).evaluate("test")
    assert alone == [r for r in results if r.task == one.name]  # whatever else is asked
