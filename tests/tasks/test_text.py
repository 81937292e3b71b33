"""Tokens are named exactly: what is written parses back, leading spaces included."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

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
    marked = token_list(ids, MINUS)
    assert parse_token_list(vocabulary.show(marked)) == [MINUS + token for token in wanted]
    assert vocabulary.decode(vocabulary.encode(marked)) == vocabulary.show(marked)


def test_a_tokenizer_that_puts_a_space_before_every_text_writes_lists_as_they_are_shown() -> None:
    pieces = ["<s>", "\u2581", "-", "\u2581-", "\n", "\u2581\n", "a", "\u2581a", "b", "no", "\u2581no"]
    merges = [("\u2581", "-"), ("\u2581", "\n"), ("\u2581", "a"), ("n", "o"), ("\u2581", "no")]
    known = {piece: i for i, piece in enumerate([*pieces, "n", "o"])}
    metaspace = tokenizers.Tokenizer(tokenizers.models.BPE(known, merges))
    metaspace.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    metaspace.decoder = tokenizers.decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=metaspace, eos_token="<s>")
    assert tokenizer.encode("-", add_special_tokens=False) == [3]
    vocabulary = Vocabulary(tokenizer, len(known))
    assert vocabulary.encode(token_list([7, 8], MINUS)) == [2, 7, 4, 2, 8]
    assert vocabulary.decode([2, 7, 4, 2, 8]) == vocabulary.show(token_list([7, 8], MINUS)) == "- a\n-b"
    assert vocabulary.encode(("no",)) == [9]


def test_a_leading_space_is_part_of_a_token(vocabulary: Vocabulary) -> None:
    with_space, without = vocabulary.encode((" the",))[0], vocabulary.encode(("the",))[0]
    assert with_space != without
    assert vocabulary.decode([with_space]) == " the"
    assert vocabulary.decode([without]) == "the"


def test_a_token_named_twice_counts_once() -> None:
    assert parse_token_list(" a\n b\n a\n\nc") == [" a", " b", "c"]
