"""What is measured of a text is what a dataset of that text holds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen.build import BuildConfig, build
from data_gen.corpus import CorpusConfig
from data_gen.sampling import SamplingConfig, SitesConfig
from diff_oracle.explain import Explainer, Explanation
from diff_oracle.explain.measured import ALL, find_positions, measure_sites, read_text, shown_tokens
from diff_oracle.records import SPLITS, Record, open_dataset
from diff_oracle.subject.capture import capture
from diff_oracle.subject.forward import Query
from diff_oracle.subject.lens import direct_logit_shift
from diff_oracle.subject.sites import DiffSite
from diff_oracle.tasks import make_tasks
from tests.tasks.made import VOCABULARY

TEXT = "The value is returned by the function, and then the caller checks whether the value is None."
SITES = ["L1", "L2:4", "L0.attn", "L3.mlp", "L2H5", "L4H1"]
TASKS = {"logit_lens": {"k": 6}, "attention": {"k": 4}, "layer_skip": {"k": 5, "small_kl": 0.01}}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, explainer: Explainer) -> list[Record]:
    """A dataset of that text and another one: every site at every position from the eighth on."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "a.txt").write_text(TEXT)
    (folder / "b.txt").write_text(
        "Another text, longer than the first one, so that windows of a batch are padded. " * 2
    )
    config = BuildConfig(
        corpus=CorpusConfig("text_files", str(folder)),
        sites=SitesConfig(SITES, None),
        sampling=SamplingConfig(positions_per_window=96),
        tasks=TASKS,
        data_dir=str(tmp_path_factory.mktemp("data")),
    )
    identity = explainer.subject.identity
    dataset = open_dataset(build(config, explainer.subject), identity.weights_hash, identity.tokenizer_hash)
    every = [record for name in SPLITS if len(dataset._splits[name]) for record in dataset.split(name)]
    return [record for record in every if record.doc_id == "a.txt"]


@pytest.fixture(scope="module")
def items(explainer: Explainer) -> dict[tuple[int, str], Explanation]:
    own = Explainer(explainer.subject, explainer.oracle, make_tasks(TASKS), free_question=None)
    texts = [own.read(TEXT)]
    parts = own.explain(texts, own.queries(texts, SITES, ALL))
    return {(item.position, item.site): item for part in parts for item in part}


def test_evidence_is_the_labels_of_a_dataset(rows: list[Record], items: dict[tuple[int, str], Explanation]) -> None:
    assert len(rows) == len(SITES) * (len(VOCABULARY.tokenizer(TEXT)["input_ids"]) - 8)
    tokens = VOCABULARY.texts
    for row in rows:
        item, labels = items[row.position, row.site], row.labels
        for end, value in (("promoted", "scores"), ("suppressed", "scores"), ("gained", "deltas"), ("lost", "deltas")):
            shown = getattr(item, end)
            assert [token for token, _ in shown] == [tokens[i] for i in labels[f"{end}_ids"]]
            assert [x for _, x in shown] == pytest.approx(labels[f"{end}_{value}"].tolist(), rel=1e-4, abs=1e-6)
        assert item.skip_kl == pytest.approx(float(labels["kl"]), rel=1e-4, abs=1e-6)
        assert item.relative_size == pytest.approx(row.relative_size, rel=1e-5)
        if row.site.endswith(".mlp"):
            assert (item.sink_share, item.attended) == (None, [])
        else:
            assert item.sink_share == pytest.approx(float(labels["sink_weight"]), rel=1e-5, abs=1e-6)
            assert [position for position, _ in item.attended] == labels["attended_positions"].tolist()
            weights = [weight for _, weight in item.attended]
            assert weights == pytest.approx(labels["attended_weights"].tolist(), rel=1e-4, abs=1e-6)


def test_measured_answers_are_those_that_the_rows_give(
    rows: list[Record], items: dict[tuple[int, str], Explanation]
) -> None:
    for row in rows:
        answers = {(answer.task, answer.kind): answer.measured for answer in items[row.position, row.site].answers}
        promoted = "\n".join(VOCABULARY.texts[i] for i in row.labels["promoted_ids"][:5])
        assert answers["logit_lens", "promoted"] == promoted
        assert (answers["layer_skip", "gained"] == "no change") == (row.labels["kl"] < 0.01)
        assert ("attention", "distance") in answers or row.site.endswith(".mlp")


def test_direct_effect_is_the_shift_of_the_token_that_the_model_puts_first(
    explainer: Explainer, items: dict[tuple[int, str], Explanation]
) -> None:
    subject, ids = explainer.subject, explainer.read(TEXT).token_ids
    for position in (1, 9, len(ids) - 1):
        with torch.no_grad():
            first = int(subject.hf_model(torch.tensor([ids[: position + 1]])).logits[0, -1].argmax())
        for site in SITES:
            captured = capture(subject, torch.tensor([ids]), [Query(0, position, DiffSite.parse(site))])
            shift = direct_logit_shift(subject, captured.diff, captured.final_scale)[0, first]
            item = items[position, site]
            assert item.next_token == VOCABULARY.texts[first]
            assert item.direct_effect == pytest.approx(float(shift), rel=1e-3, abs=1e-5)


@given(st.text(max_size=30))
@settings(max_examples=60, deadline=None)
def test_tokens_as_shown_make_up_the_text(text: str) -> None:
    shown = read_text(text, VOCABULARY)
    assert len(shown.tokens) == len(shown.token_ids)
    ids = VOCABULARY.tokenizer(text)["input_ids"]
    assert shown.token_ids == ids
    assert "".join(shown.tokens[1:]) == VOCABULARY.decode(ids[1:])


def test_a_character_split_over_tokens_is_shown_once() -> None:
    ids = VOCABULARY.tokenizer("a😀 שלום")["input_ids"][1:]
    shown = shown_tokens(ids, VOCABULARY)
    assert [token for token in shown if token] == ["a", "😀", " ", *"שלום"]
    assert shown[-1] == "ם"
    # Cut in the middle of a character, nothing is lost and every token is shown.
    assert shown_tokens(ids[:3], VOCABULARY) == ["a", "\ufffd", "\ufffd"]


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(ValueError, match=r"half a character at 2: write it in whole ones, in UTF-8"):
        read_text("a \ud83d", VOCABULARY)


def test_positions() -> None:
    text = read_text("one two three", VOCABULARY)
    length = len(text.token_ids)
    assert find_positions([-1, 2, -1, length - 1], text, 0) == [length - 1, 2]
    assert find_positions(ALL, text, 0) == list(range(1, length))
    for position in (0, length, -length, -length - 1):
        with pytest.raises(ValueError, match=rf"position {position} is out of range: text 7 has {length} tokens"):
            find_positions([position], text, 7)


def test_nothing_of_the_text_behind_a_position_is_read(explainer: Explainer) -> None:
    texts = [explainer.read(TEXT), explainer.read(TEXT + " And what follows is not read, whatever it is.")]
    points = [[(9, DiffSite.parse(site)) for site in SITES]] * 2
    contexts = [text.token_ids for text in texts]
    one, two = (
        measure_sites(explainer.subject, ids, at, explainer._measured, explainer._allowed)
        for ids, at in zip(contexts, points, strict=True)
    )
    for first, second in zip(one, two, strict=True):
        np.testing.assert_allclose(first.record.diff, second.record.diff, rtol=1e-4, atol=1e-6)
        assert first.record.token_ids == second.record.token_ids
        assert first.direct_effect == pytest.approx(second.direct_effect, rel=1e-4, abs=1e-6)
