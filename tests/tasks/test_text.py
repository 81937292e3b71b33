"""Tokens are named exactly: what is written parses back, leading spaces included."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diff_oracle.subject.loading import SubjectConfig, load_hf_model
from diff_oracle.tasks.text import MINUS, Vocabulary, parse_token_list, token_list


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    loaded = load_hf_model(SubjectConfig())
    return Vocabulary(loaded.tokenizer, loaded.identity.vocab_size)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_list_of_label_tokens_parses_back_from_its_ids(vocabulary: Vocabulary, data: st.DataObject) -> None:
    allowed = vocabulary.allowed.nonzero().flatten().tolist()
    ids = data.draw(st.lists(st.sampled_from(allowed), min_size=1, max_size=6, unique=True))
    text = token_list(ids)
    wanted = [vocabulary.texts[i] for i in ids]
    assert parse_token_list(vocabulary.show(text)) == wanted
    encoded = vocabulary.encode(text)
    assert [i for i in encoded if i not in vocabulary.newline] == ids
    assert vocabulary.decode([*encoded, vocabulary.tokenizer.eos_token_id, 300]) == vocabulary.show(text)

    assert parse_token_list(vocabulary.show(token_list(ids, MINUS))) == [MINUS + token for token in wanted]


def test_a_leading_space_is_part_of_a_token(vocabulary: Vocabulary) -> None:
    with_space, without = vocabulary.encode((" the",))[0], vocabulary.encode(("the",))[0]
    assert with_space != without
    assert vocabulary.decode([with_space]) == " the"
    assert vocabulary.decode([without]) == "the"


def test_a_token_named_twice_counts_once() -> None:
    assert parse_token_list(" a\n b\n a\n\nc") == [" a", " b", "c"]
