"""Which samples an evaluation asks, and in which batches."""

import pytest

from vkq_apps.evals.batches import in_batches
from vkq_apps.evals.metrics import METRICS
from vkq_apps.evals.samples import Sample, exchange_pictures
from vkq_apps.evals.synthetic import QUESTIONS_PER_PICTURE, synthetic_tasks
from vkq_apps.evals.tasks import Task, choose_tasks, spread


def task(name, available=None):
    return Task(name, lambda count, seed: [], METRICS["exact"], available=available)


def sample(key, picture="p", choices=()):
    return Sample(key, picture, lambda: [picture], "question?", ("a",), choices)


@pytest.mark.parametrize(
    ("samples", "available", "shares"),
    [
        (10, (None, None), (5, 5)),
        (11, (None, None, None), (4, 4, 3)),
        (10, (2, None), (2, 8)),
        (10, (2, 3), (2, 3)),
        (10, (4, 2, None), (4, 2, 4)),
        (9, (1, 3, None), (1, 3, 5)),
    ],
)
def test_samples_are_spread_evenly_over_tasks(samples, available, shares):
    tasks = [task(str(place), some) for place, some in enumerate(available)]
    assert tuple(spread(samples, tasks).values()) == shares


def test_fewer_samples_than_tasks_are_refused():
    with pytest.raises(ValueError, match="at least one for each of 2 tasks, got 1"):
        spread(1, [task("a"), task("b")])


def test_tasks_are_named_once_or_all():
    known = {name: task(name) for name in ("a", "b", "c")}
    assert [one.name for one in choose_tasks("all", known)] == ["a", "b", "c"]
    assert [one.name for one in choose_tasks("c, a,c", known)] == ["c", "a"]
    for names in ("a,d", "", ","):
        with pytest.raises(ValueError, match="--tasks: expected all or some of a, b, c"):
            choose_tasks(names, known)


@pytest.mark.parametrize("kind", synthetic_tasks())
def test_synthetic_samples_are_those_of_their_seed(kind):
    one = synthetic_tasks()[kind]
    first, again, more, other = (
        one.choose(count, seed) for count, seed in ((5, 3), (5, 3), (7, 3), (5, 4))
    )
    asked = [[(s.key, s.question, s.answers) for s in some] for some in (first, again, more, other)]
    assert asked[0] == asked[1] == asked[2][:5]
    assert asked[0] != asked[3]
    pictures = [s.picture for s in more]
    assert max(map(pictures.count, pictures)) <= QUESTIONS_PER_PICTURE
    assert len({s.key for s in more}) == 7


def test_the_control_asks_about_the_next_picture():
    samples = [sample("0", "a"), sample("1", "a"), sample("2", "b"), sample("3", "c")]
    exchanged = exchange_pictures(samples)
    assert [s.picture for s in exchanged] == ["b", "b", "c", "a"]
    assert [s.load() for s in exchanged] == [["b"], ["b"], ["c"], ["a"]]
    assert [s.key for s in exchanged] == [s.key for s in samples]
    with pytest.raises(ValueError, match="at least two pictures"):
        exchange_pictures(samples[:2])


def test_batches_never_split_a_sample():
    samples = [sample(str(n), choices=("x", "y", "z")) for n in range(3)]
    first, second = in_batches(task("a"), samples, 8)
    assert [s.key for s in first.samples] == ["0", "1"]
    assert first.rows_of_samples == [[0, 1, 2], [3, 4, 5]]
    assert [choice for _, choice in first.rows] == [*"xyzxyz", "x", "x"]
    assert second.rows_of_samples == [[0, 1, 2]]
    with pytest.raises(ValueError, match="at least the 3 choices"):
        list(in_batches(task("a"), samples, 2))


def test_a_batch_is_of_samples_with_choices_or_of_samples_without():
    samples = [sample(str(n), choices=("x", "y") if n == 1 else ()) for n in range(4)]
    batches = list(in_batches(task("a"), samples, 8))
    assert [[s.key for s in batch.samples] for batch in batches] == [["0"], ["1"], ["2", "3"]]
