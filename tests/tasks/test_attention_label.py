"""Attention labels read by hand."""

from diff_oracle.records import Record
from diff_oracle.tasks.attention_label import Reader, Reading
from tests.tasks.made import LINE_BREAK, NO_ID, VOCABULARY, attention, make_record

READ = Reader(min_share=0.05, sink_only=0.95, allowed=VOCABULARY.allowed.numpy(), no_id=NO_ID)


def read(record: Record) -> Reading:
    reading = READ(record.labels, record.token_ids)
    assert reading is not None
    return reading


def test_what_is_attended_to_what_is_ignored_and_where_either_stands() -> None:
    context = [1, 500, 501, LINE_BREAK, 500, 503, NO_ID, 505, 506]
    # Of what is not the sink's, 500 has 0.7 at two places, 503 has 0.2, the line break 0.06, and 505 has 0.04.
    labels = attention([1, 4, 5, 3, 7], [500, 500, 503, LINE_BREAK, 505], [0.2, 0.15, 0.1, 0.03, 0.02], sink=0.5)
    reading = read(make_record(labels, context=context))
    assert not reading.only_sink
    assert reading.attended == [500, 503]
    assert reading.ignored == [501, 506]  # 505 has too much to be ignored, "no" and the line break are never named
    assert reading.tokens.tolist() == [500, 503, 501, 506]
    assert reading.distances.tolist() == [4, 3, 6, 0]
    assert reading.times.tolist() == [2, 1, 1, 1]
    assert reading.distance == "near"  # the strongest position is 1, seven back


def test_a_sink_that_has_nearly_all_leaves_nothing_to_read_and_an_mlp_has_no_label() -> None:
    sink = read(make_record(attention([1], [501], [0.01], sink=0.97)))
    assert (sink.only_sink, sink.attended, sink.ignored, sink.distance) == (True, [], [], None)
    assert len(sink.tokens) == len(sink.distances) == 0
    mlp = make_record(attention([], [], [], sink=None))
    assert READ(mlp.labels, mlp.token_ids) is None


def test_a_token_is_ignored_only_if_the_positions_that_were_not_kept_could_not_give_it_weight() -> None:
    # Every kept position has 0.02; 500 stands at five more, which could have as much each: 0.1 in all.
    context = [1, *[500] * 5, *range(510, 560), 560]
    kept = list(range(6, 56))
    row = make_record(attention(kept[:41], context[6:47], [0.1] + [0.02] * 40), context=context)
    assert 500 not in read(row).ignored
    # The same, but nothing is left for them.
    row = make_record(attention(kept[:41], context[6:47], [0.2] + [0.02] * 40), context=context)
    assert 500 in read(row).ignored
