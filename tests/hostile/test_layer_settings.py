"""Settings of layers and heads by random places: those of a plain rule, or one clear error."""

import random

import pytest

import vkq_jax
from vkq_apps.terminal.codes_option import parse_codes

pytestmark = pytest.mark.usefixtures("as_users_run_it")

NAMES = ("none", "vkq-1bit", "minmax-1bit", "kivi-2bit")
ODD = (None, True, 1.0, "all", "0", (0,), (0, 0, 0), ("all", "all"), (None, 0), float("nan"), [0])
ODD += (range(3, 1), range(10**12), range(10**40), 10**400, (0, True), (0, 1.0), (0, range(2, 2)))


def number(rng, count):
    """A layer or head, now and then one that is not there, or a range of some."""
    low, high = sorted(rng.choices(range(-count, count), k=2))
    return rng.choice((low, high, low, high, range(low, high + 1), rng.choice((count, -count - 1))))


def numbers(place, count):
    """The numbers from 0 on that a place stands for; None: one of them does not exist."""
    listed = list(place) if isinstance(place, range) else [place]
    return None if any(not -count <= n < count for n in listed) else [n % count for n in listed]


def expected(default, changes, layers, heads):
    """The settings of each head, or None: a place that does not exist, or is named twice."""
    own = {}
    for place, name in changes.items():
        layer, head = place if isinstance(place, tuple) else (place, None)
        rows = [None] if layer == "all" else numbers(layer, layers)
        columns = [None] if head is None else numbers(head, heads)
        if rows is None or columns is None:
            return None
        for cell in [(row, column) for row in rows for column in columns]:
            if cell in own:
                return None
            own[cell] = name

    def of(layer, head):
        cells = ((layer, head), (layer, None), (None, head))
        return next((own[cell] for cell in cells if cell in own), default)

    return [[of(layer, head) for head in range(heads)] for layer in range(layers)]


def found(quant, layers, heads):
    """The settings of each head of groups, each held by just one of them."""
    if isinstance(quant, vkq_jax.KVQuantConfig):
        return [[quant] * heads for _ in range(layers)]
    table = [[None] * heads for _ in range(layers)]
    for cells, own in quant.groups:
        held = cells.heads or [range(heads)] * len(cells.layers)
        for layer, row in zip(cells.layers, held, strict=True):
            for head in row:
                assert table[layer][head] is None
                table[layer][head] = own
    return table


def test_each_head_has_the_settings_of_the_narrowest_change(cases, one_clear_error):
    settled = 0
    for case in cases(150):
        rng = random.Random(f"places/{case}")
        layers, heads = rng.randint(1, 5), rng.randint(1, 4)
        changes = {}
        for _ in range(rng.randrange(5)):
            layer = rng.choice(("all", number(rng, layers), number(rng, layers)))
            place = (layer, number(rng, heads))
            if layer != "all" and rng.random() < 0.5:
                place = layer
            changes[place] = rng.choice(NAMES)
        default = rng.choice(NAMES)
        wanted = expected(default, changes, layers, heads)
        try:
            got = vkq_jax.per_layer(default, changes).settle(layers, heads)
        except Exception as error:
            one_clear_error(error)
            assert wanted is None, (case, changes)
            continue
        assert wanted is not None, (case, changes)
        settled += 1
        assert found(got, layers, heads) == [
            [vkq_jax.presets[name] for name in row] for row in wanted
        ], (case, changes)
    assert settled >= len(cases(150)) // 5


def test_places_that_cannot_be_are_refused_at_once(cases, one_clear_error):
    for case in cases(60):
        rng = random.Random(f"odd/{case}")
        odd = rng.choice(ODD)
        if isinstance(odd, list):
            continue
        make = rng.choice((vkq_jax.per_layer, vkq_jax.per_head))
        changes = {odd: rng.choice(NAMES)}
        if rng.random() < 0.3:
            changes = {0: rng.choice((None, 1, "x", {}, vkq_jax.per_layer("none", {})))}
        try:
            got = make(rng.choice(NAMES), changes).settle(3, 2)
        except Exception as error:
            one_clear_error(error)
            continue
        raise AssertionError((case, changes, got))


def test_options_of_codes_are_settings_or_one_clear_error(cases, one_clear_error):
    parts = (*NAMES, "vkq-9bit", "", "key", "value", "0", "-1", "0-2", "2-0", "5.1", "all.0", "all")
    parts += ("=", "/", ".", ":", "os:path", "json:x", "-", "9" * 7, "٣", "\n", "é" * 500, "none/")
    parsed = 0
    for case in cases(200):
        rng = random.Random(f"option/{case}")
        text = rng.choice(NAMES)
        for _ in range(rng.randrange(3)):
            place = rng.choice(
                ("0", "-1", "0-2", "2-0", "1.1", "all.0", "key", "value", "x", "0.2-1")
            )
            text += f"/{place}={rng.choice(NAMES)}"
        if rng.random() < 0.5:
            text = "".join(rng.choice((text, *parts)) for _ in range(rng.randint(1, 5)))
        try:
            codes = parse_codes(text)
        except Exception as error:
            one_clear_error(error)
            continue
        parsed += 1
        if isinstance(codes, vkq_jax.PerLayer):
            # Every change that is written is there.
            assert len(codes.changes) >= sum(
                part.partition("=")[0] not in ("key", "value") for part in text.split("/")[1:]
            ), text
    assert parsed >= len(cases(200)) // 5
