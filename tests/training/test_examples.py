"""The n-th example depends on the seed and n alone, and its answer belongs to its diff's sign."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from data_gen.build import BuildConfig, SamplingConfig, build
from diff_oracle.oracle.injection import InjectionConfig
from diff_oracle.oracle.prompt import Prompt, PromptBuilder, PromptConfig
from diff_oracle.records import DiffDataset, open_dataset
from diff_oracle.subject.loading import LoadedModel, SubjectConfig, load_hf_model
from diff_oracle.tasks import make_tasks
from diff_oracle.tasks.logit_lens import PHRASINGS
from diff_oracle.tasks.text import Vocabulary
from diff_oracle.training.examples import BUCKET_BATCHES, Example, ExampleDataset, row_length
from diff_oracle.training.mixture import MixtureConfig

TASKS = {"logit_lens": {"k": 5, "num_asked": 3}}


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_hf_model(SubjectConfig())


@pytest.fixture(scope="module")
def dataset(base: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> DiffDataset:
    sampling = SamplingConfig(max_documents=40, windows_per_document=1, positions_per_window=2)
    path = build(BuildConfig(sampling=sampling, tasks=TASKS, data_dir=str(tmp_path_factory.mktemp("data"))))
    return open_dataset(path, base.identity.weights_hash, base.identity.tokenizer_hash)


@pytest.fixture
def make_examples(base: LoadedModel, dataset: DiffDataset) -> Callable[..., ExampleDataset]:
    vocabulary = Vocabulary(base.tokenizer, base.identity.vocab_size)
    prompts = PromptBuilder(vocabulary, PromptConfig(), InjectionConfig(), base.identity.d_model)

    tasks = make_tasks(TASKS)
    for task in tasks:
        task.fit(dataset.split("train"), vocabulary)

    def make(
        length: int = 200,
        seed: int = 0,
        text_only: float = 0.0,
        none: float = 0.0,
        questions: int = 2,
        lists_first: float = 0.0,
        one_list_first: float = 0.0,
    ) -> ExampleDataset:
        mixture = MixtureConfig(
            text_only=text_only, none=none, questions_per_diff=questions, lists_first=lists_first,
            one_list_first=one_list_first,
        )  # fmt: skip
        return ExampleDataset(dataset.split("train"), tasks, prompts, mixture, length // 2, 2, seed)

    return make


def test_examples_are_the_same_in_any_order(make_examples: Callable[..., ExampleDataset]) -> None:
    one, two, other = make_examples(), make_examples(), make_examples(seed=1)
    backwards = {i: two[i] for i in reversed(range(len(two)))}

    def ids(group: list[Example]) -> list[tuple[list[int], list[int]]]:
        return [(example.prompt.ids, example.answer_ids) for example in group]

    assert all(ids(one[i]) == ids(backwards[i]) for i in range(50))
    assert any(ids(one[i]) != ids(other[i]) for i in range(50))


def test_a_diff_is_asked_different_kinds_and_its_questions_share_their_beginning(
    make_examples: Callable[..., ExampleDataset],
) -> None:
    for questions, expected in ((1, 1), (3, 3), (9, 4)):
        examples = make_examples(questions=questions)
        for i in range(20):
            group = examples[i]
            assert len(group) == expected
            first = group[0].prompt
            for example in group:
                assert example.prompt.shared == first.shared > 3
                assert example.prompt.ids[: first.shared] == first.ids[: first.shared]
                assert np.array_equal(example.prompt.vectors, first.vectors)


def test_a_flipped_diff_has_the_flipped_answer(
    make_examples: Callable[..., ExampleDataset], dataset: DiffDataset
) -> None:
    records = dataset.split("train")
    by_bytes = {}
    for i in range(len(records)):
        record = records[i]
        by_bytes[record.diff.tobytes()] = record, 1
        by_bytes[(-record.diff).tobytes()] = record, -1
    examples = make_examples(length=len(records) // 2 * 2)
    vocabulary = examples._prompts.vocabulary
    signs = []
    for example in (example for i in range(len(examples)) for example in examples[i]):
        record, sign = by_bytes[example.prompt.vectors.tobytes()]
        signs.append(sign)
        shown = vocabulary.tokenizer.decode(example.prompt.ids)
        if any(wording in shown for wording in PHRASINGS["suppressed"]["seen"]):
            end, before = "suppressed_ids" if sign > 0 else "promoted_ids", vocabulary.encode(("-",))
        else:
            end, before = "promoted_ids" if sign > 0 else "suppressed_ids", []
        if len(example.answer_ids) > 2:
            first, *others = record.labels[end][:3].tolist()
            expected = [*before, first]
            for token in others:
                expected += [*vocabulary.newline, *before, token]
            assert example.answer_ids == expected
    assert 0.4 < signs.count(1) / len(signs) < 0.6


def test_shares_of_text_and_of_nothing(make_examples: Callable[..., ExampleDataset]) -> None:
    examples = make_examples(length=600, text_only=0.3, none=0.2)
    prompts: list[Prompt] = [examples[i][0].prompt for i in range(600)]
    text = sum(p.vectors is None for p in prompts) / 600
    nothing = sum(p.vectors is not None and not np.any(p.vectors) for p in prompts) / 600
    assert text == pytest.approx(0.3, abs=0.07)
    assert nothing == pytest.approx(0.2, abs=0.07)


def test_lists_come_first_and_alone(make_examples: Callable[..., ExampleDataset]) -> None:
    fractions = {"text_only": 0.5, "none": 0.5 - 1e-9, "lists_first": 0.6, "one_list_first": 0.2}
    examples = make_examples(length=160, questions=3, **fractions)
    vocabulary = examples._prompts.vocabulary
    for i in range(160):
        group = examples[i]
        assert len(group) == (1 if i < 32 else 2 if i < 96 else 3)
        if i < 32:
            asked = vocabulary.show(tuple(group[0].prompt.ids[group[0].prompt.shared :]))
            assert any(asked.startswith(wording) for wording in PHRASINGS["promoted"]["seen"])
        if i < 96:
            assert all(e.prompt.vectors is not None and np.any(e.prompt.vectors) for e in group)
            assert all(sum(t in vocabulary.newline for t in e.answer_ids) == 2 for e in group)
        else:
            assert all(e.prompt.vectors is None or not np.any(e.prompt.vectors) for e in group)


def test_rows_of_like_length_share_a_batch_and_batches_are_shuffled(
    make_examples: Callable[..., ExampleDataset],
) -> None:
    examples = make_examples(length=4 * BUCKET_BATCHES * 2)
    lengths = [row_length(examples[i]) for i in range(len(examples))]
    batches = [(min(pair), max(pair)) for pair in zip(lengths[::2], lengths[1::2], strict=True)]
    for start in range(0, len(batches), BUCKET_BATCHES):
        bucket = batches[start : start + BUCKET_BATCHES]
        assert bucket != sorted(bucket)
        in_order = sorted(bucket)
        assert all(shorter[1] <= longer[0] for shorter, longer in pairwise(in_order))
        assert in_order[0][0] < in_order[-1][1]  # or nothing was sorted
