"""`settings()` shows which parameters have a link that is under a mask or in a branch, and which have not."""

import pytest
from torch import nn

import gradchain as gch

ALL = ("0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias")
MATRICES = ("0.weight", "2.weight")
NORM = ("1.weight", "1.bias")


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("tx", "found"),
    [
        (gch.adamw(1e-3, mask=gch.min_ndim(2)), {"masked/add_decayed_weights": MATRICES}),
        (
            gch.chain(gch.masked(gch.add_decayed_weights(0.1), gch.norm), gch.sgd(0.1)),
            {"masked/add_decayed_weights": NORM},
        ),
        (
            gch.chain(gch.partition((gch.norm, gch.sgd(0.1)), (gch.rest, gch.adamw(1e-3, mask=gch.min_ndim(2))))),
            {
                "partition/branch": NORM,
                "partition/rest": tuple(n for n in ALL if n not in NORM),
                "partition/rest/masked/add_decayed_weights": MATRICES,
            },
        ),
        (gch.adamw(1e-3), {}),
    ],
)
def test_whose_they_are(tx, found):
    settings = tx.bind(model()).settings()
    assert settings.links == found
    for address, names in found.items():
        (line,) = [line for line in str(settings).splitlines() if line.startswith(f"{address}: ")]
        left = [name for name in ALL if name not in names]
        assert line.endswith(
            f"{len(names)} parameters have it: {', '.join(names)}; {len(left)} have not: {', '.join(left)}"
        )
        assert line in settings._repr_html_()
    assert found or str(settings) == "Settings: every hyperparameter is one number for all parameters."


def test_many_names_are_cut_and_numbers_are_beside_them():
    deep = nn.Sequential(*(nn.Linear(2, 2) for _ in range(10)))
    settings = gch.adamw(gch.multiply(1e-3, (gch.named("0.*"), 0.1)), mask=gch.min_ndim(2)).bind(deep).settings()
    assert "10 parameters have it: 0.weight, 1.weight, 2.weight, 3.weight, 4.weight, 5.weight and 4 more; 10" in str(
        settings
    )
    assert "0.001 for 18, 0.0001 for 2" in str(settings)


def test_a_long_rule_is_told_once():
    rule = gch.named("0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias")
    settings = gch.adamw(gch.multiply(1e-3, (rule, 0.1), (gch.bias, 0.5))).bind(model()).settings()
    told, both = f"{rule!r} x0.1", f"{rule!r} x0.1, bias x0.5"
    assert len(told) > 48
    lines = str(settings).splitlines()
    assert f"(1): {told}" in lines and f"(2): {both}" in lines
    assert str(settings).count(repr(rule)) == 2 and lines[1].endswith("(1)") and lines[2].endswith("(2)")
