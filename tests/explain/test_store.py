"""What is explained so far stays on disk, and only what was made with the same settings is gone on with."""

from pathlib import Path

import pytest

from diff_oracle.explain.store import FILE, Store
from tests.explain.made import make_explanation

SETTINGS = {"oracle": "abc", "texts": ["a\nb", "</script>"], "tasks": {"logit_lens": {"k": 10}}, "pair": (1, 2)}
ITEMS = [make_explanation(0, 2, "L0H1"), make_explanation(1, 3, "L1.mlp"), make_explanation(0, 2, "L1")]
KEYS = [(0, 2, "L0H1"), (1, 3, "L1.mlp"), (0, 2, "L1")]


def test_what_is_added_is_there_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "new", SETTINGS)
    store.add(ITEMS[:2])
    store.add(ITEMS[2:])
    again = Store(tmp_path / "new", SETTINGS)
    assert again.finished == store.finished == dict(zip(KEYS, ITEMS, strict=True))


def test_wherever_it_is_cut_off_whole_lines_stay(tmp_path: Path) -> None:
    store = Store(tmp_path, SETTINGS)
    store.add(ITEMS)
    content = store.file.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for size in [*range(0, ends[0] + 1, 7), *range(ends[0], len(content), 101), *ends, *(end - 1 for end in ends)]:
        store.file.write_bytes(content[:size])
        cut = Store(tmp_path, SETTINGS)
        left = max(0, sum(end <= size for end in ends) - 1)
        assert list(cut.finished) == KEYS[:left]
        cut.add(ITEMS[left:])
        assert store.file.read_bytes() == content


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    Store(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match=r"holds explanations with another texts, extra: choose another run_dir"):
        Store(tmp_path, {**SETTINGS, "texts": [], "extra": 1})
    assert Store(tmp_path, SETTINGS).finished == {}


@pytest.mark.parametrize("line", ["{", "[]", '{"text": 1}', "\x00", "null"])
def test_a_damaged_store_is_refused(tmp_path: Path, line: str) -> None:
    Store(tmp_path, SETTINGS).add(ITEMS)
    with (tmp_path / FILE).open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(ValueError, match="is damaged"):
        Store(tmp_path, SETTINGS)
