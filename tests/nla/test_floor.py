"""What a transformer adds to: the bag-of-words reader, also inside of a reconstructor and after coming from disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diff_oracle.nla.bag import ClaimFeatures
from diff_oracle.nla.floor import Floor, shortened
from diff_oracle.nla.reconstructor import Reconstructor
from diff_oracle.nla.rows import Rows
from diff_oracle.nla.rungs import BagReader
from diff_oracle.nla.training import METRIC, ReadingConfig, train_reconstructor
from diff_oracle.randomness import keyed_rng
from diff_oracle.tasks.claims import Claim, write
from diff_oracle.tasks.explanation import reworded
from tests.nla.test_reconstructor import config_of, made, readable_rows


def some_rows(model: Reconstructor, number: int = 60) -> Rows:
    """Rows of two sites, told by a token in a way of their site's own."""
    rows = readable_rows(model, number)
    records = [replace(record, site=f"L{i % 2}") for i, record in enumerate(rows.records)]
    sign = np.where(np.arange(number) % 2, -1.0, 1.0)[:, None]
    return Rows(records, rows.gold, sign * rows.target, rows.before)


def test_it_is_the_bag_of_words_reader() -> None:
    model = made(floor=True)
    train, select, test = some_rows(model), some_rows(model, 20), some_rows(model, 10)
    features = ClaimFeatures(model.lm.get_base_model().get_output_embeddings().weight.detach().numpy())
    claims = [
        rows.gold + [shortened(gold, keyed_rng(0, "floor", i)) for i, gold in enumerate(rows.gold)]
        for rows in (train, select)
    ]
    expected = BagReader(twice(train), twice(select), (claims[0], claims[1]), features)(test, test.gold)
    floor = Floor.fit(features, train, select, (train.gold, select.gold))
    np.testing.assert_allclose(floor(test.sites, test.gold).numpy(), expected, rtol=1e-3, atol=1e-4)
    model.fit_floor(train, select, (train.gold, select.gold))
    texts = [write(claims) for claims in test.gold]
    np.testing.assert_allclose(model.reconstruct(test.records, texts), expected, rtol=1e-3, atol=1e-4)  # untrained
    elsewhere = floor(["L3"], [test.gold[0]]).numpy()
    pooled = Floor.fit(features, replace_sites(train, "L9"), replace_sites(select, "L9"), (train.gold, select.gold))
    np.testing.assert_allclose(elsewhere, pooled(["L9"], [test.gold[0]]).numpy(), rtol=1e-3, atol=1e-4)


def twice(rows: Rows) -> Rows:
    doubled = (np.concatenate([v] * 2) if isinstance(v, np.ndarray) else v * 2 for v in vars(rows).values())
    return Rows(*doubled)


def test_without_claims_it_tells_the_mean_of_the_site() -> None:
    model = made(floor=True)
    rows = some_rows(model, 400)
    model.fit_floor(rows, rows, (rows.gold, rows.gold))
    assert model.floor is not None
    mean = np.stack([rows.target[np.array(rows.sites) == site].mean(axis=0) for site in ("L0", "L1")])
    told = model.floor(["L0", "L1"], [(), ()]).numpy()
    assert np.mean((told - mean) ** 2) < 0.1 * np.mean((rows.target - mean[np.arange(400) % 2]) ** 2)


def replace_sites(rows: Rows, site: str) -> Rows:
    return replace(rows, records=[replace(record, site=site) for record in rows.records])


def test_wording_and_order_are_nothing_to_it() -> None:
    model = made(floor=True)
    train = some_rows(model)
    model.fit_floor(train, train, (train.gold, train.gold))
    claims = [Claim("raises", 500), Claim("lowers", 501), Claim("skipped", "no change")]
    texts = [write(claims), reworded(claims, np.random.default_rng(1))]
    assert texts[0] != texts[1]
    floors = model.batch([train.records[0]] * 2, texts)["floor"]
    torch.testing.assert_close(floors[0], floors[1])
    assert not torch.allclose(floors[0], model.batch([train.records[0]], [()])["floor"][0])


def test_a_trained_one_comes_back_from_disk_and_stands_on_its_floor(tmp_path: Path) -> None:
    model = made(floor=True)
    rows = some_rows(model, 80)
    train, select = (Rows(*(values[part] for values in vars(rows).values())) for part in (slice(60), slice(60, 80)))
    model.fit_floor(train, select, (train.gold, select.gold))
    assert model.floor is not None
    before = model.floor.weight.clone()
    claims = (train.gold, select.gold)
    history = train_reconstructor(
        model, train, select, claims, config_of(8), ReadingConfig(shortened=0.0), 0, tmp_path / "run"
    )
    assert next(line[METRIC] for line in history if METRIC in line) > 0.5  # after four steps: it began there
    torch.testing.assert_close(model.floor.weight, before)
    assert model.head.weight.any()
    model.save(tmp_path / "ar")
    back = Reconstructor.from_pretrained(tmp_path / "ar")
    texts = [write(row) for row in select.gold]
    np.testing.assert_allclose(
        back.reconstruct(select.records, texts), model.reconstruct(select.records, texts), rtol=1e-5, atol=1e-6
    )
    (tmp_path / "ar" / "floor.safetensors").unlink()
    with pytest.raises(ValueError, match=r"floor\.safetensors is missing"):
        Reconstructor.from_pretrained(tmp_path / "ar")
