import pytest
from hypothesis import given
from hypothesis import strategies as st

from diff_oracle.subject.sites import SITE_GROUPS, DiffSite, expand_sites

NUMBERS = st.integers(0, 200)
SITES = st.one_of(
    st.builds(lambda layer: DiffSite("layer", layer), NUMBERS),
    st.builds(lambda a, length: DiffSite("span", a, end=a + length), NUMBERS, st.integers(1, 20)),
    st.builds(DiffSite, st.sampled_from(["attn", "mlp"]), NUMBERS),
    st.builds(lambda layer, head: DiffSite("head", layer, head=head), NUMBERS, NUMBERS),
)


@given(SITES)
def test_a_site_is_read_back_from_its_name(site: DiffSite) -> None:
    assert DiffSite.parse(str(site)) == site


@given(st.text("L0123456789:.Hatnmlp ²-+", max_size=8))
def test_what_can_be_read_is_written_the_same(name: str) -> None:
    """One name a site: the dataset is keyed by names."""
    try:
        site = DiffSite.parse(name)
    except ValueError:
        return
    assert str(site) == name


@pytest.mark.parametrize(
    "name", ["", "7", "L", "L-1", "L07", "l7", "L7.", "L7.ffn", "L7H", "L7H3.attn", "L3:", "L7 ", "L²"]
)
def test_malformed_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="malformed site"):
        DiffSite.parse(name)


@pytest.mark.parametrize("name", ["L3:3", "L8:3"])
def test_empty_spans_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is empty"):
        DiffSite.parse(name)


@pytest.mark.parametrize("name", ["L6", "L6.attn", "L6.mlp", "L6H0", "L0H8", "L3:7"])
def test_sites_that_the_subject_lacks_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' is out of range: the subject has layers 0…5 and heads 0…7"):
        DiffSite.parse(name).check(n_layers=6, n_heads=8)


@pytest.mark.parametrize("name", ["L5", "L5.mlp", "L5H7", "L3:6", "L0:6"])
def test_the_last_sites_are_in_range(name: str) -> None:
    DiffSite.parse(name).check(n_layers=6, n_heads=8)


def test_sets_are_whole() -> None:
    assert [str(s) for s in expand_sites(["layers"], 3, 2)] == ["L0", "L1", "L2"]
    assert [str(s) for s in expand_sites(["components"], 2, 2)] == ["L0.attn", "L0.mlp", "L1.attn", "L1.mlp"]
    assert [str(s) for s in expand_sites(["heads"], 2, 2)] == ["L0H0", "L0H1", "L1H0", "L1H1"]
    spans = [str(s) for s in expand_sites(["spans"], 5, 2)]
    assert spans == ["L0:2", "L1:3", "L2:4", "L3:5", "L0:3", "L1:4", "L2:5", "L0:4", "L1:5"]


def test_order_is_kept_and_repeats_are_dropped() -> None:
    assert [str(s) for s in expand_sites(["L1", "layers", "L1"], 3, 2)] == ["L1", "L0", "L2"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["L9"], "out of range"),
        (["layer"], "unknown site 'layer': choose from layers"),
        (["spans"], "'spans' is empty"),
    ],
)
def test_bad_sets_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_sites(names, n_layers=1, n_heads=2)


def test_every_kind_has_a_group() -> None:
    groups = {site.group for site in expand_sites(["layers", "components", "heads", "spans"], 3, 2)}
    assert groups == set(SITE_GROUPS.values())
