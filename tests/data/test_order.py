from collections import Counter
from itertools import chain, combinations

import numpy
import pytest

from l2v.data.mixed_order import MixedOrder, MixedValidationOrder, RowTexts
from l2v.data.order import TrainingOrder, ValidationOrder, evenly, seed_of
from l2v.errors import L2VError


def order(rows=23, batch_size=4, batches=12, **settings):
    return TrainingOrder(rows, batch_size=batch_size, batches=batches, **settings)


def rows_of(batches):
    return [pick.row for batch in batches for pick in batch]


@pytest.mark.parametrize(("batch_size", "world_size"), [(4, 2), (2, 4), (1, 8)])
def test_the_ranks_together_read_what_one_process_would(batch_size, world_size):
    whole = list(order(batch_size=8))
    ranks = [list(order(batch_size=batch_size, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert [list(chain(*batches)) for batches in zip(*ranks, strict=True)] == whole


@pytest.mark.parametrize("first", [0, 1, 4, 5, 6, 11, 12])
def test_resuming_reads_the_tail(first):
    assert list(order(first=first)) == list(order())[first:]


@pytest.mark.parametrize("rank", [0, 1])
def test_resuming_on_several_ranks_reads_the_tail(rank):
    settings = {"batch_size": 2, "rank": rank, "world_size": 2}
    assert list(order(**settings, first=7)) == list(order(**settings))[7:]


def test_batches_can_be_asked_for_in_any_order():
    forwards, backwards = order(), order()
    assert [forwards.batch(n) for n in range(12)] == [backwards.batch(n) for n in reversed(range(12))][::-1]


def test_iterating_twice_gives_the_same_batches():
    once = order()
    assert list(once) == list(once)


def test_a_pass_reads_no_row_twice_and_each_pass_is_shuffled_anew():
    passes = [rows_of(list(order())[begin : begin + 5]) for begin in (0, 5)]  # 23 rows fill 5 batches of 4
    assert all(len(rows) == len(set(rows)) == 20 and set(rows) <= set(range(23)) for rows in passes)
    assert passes[0] != passes[1] and passes[0] != sorted(passes[0])


def test_every_row_is_read_sooner_or_later():
    assert set(rows_of(order(batches=100))) == set(range(23))


def test_a_pass_over_rows_that_fill_their_batches_reads_every_row_once():
    assert Counter(rows_of(order(rows=20, batches=15))) == dict.fromkeys(range(20), 3)


def test_a_position_in_the_stream_has_a_key_of_its_own_whatever_the_ranks():
    assert [pick.key for batch in order() for pick in batch] == list(range(48))
    ranks = [list(order(batch_size=2, rank=rank, world_size=2)) for rank in range(2)]
    assert [pick.key for batches in zip(*ranks, strict=True) for batch in batches for pick in batch] == list(range(48))


def test_the_shuffle_depends_on_the_seed_alone():
    assert list(order(seed=1)) == list(order(seed=1)) != list(order(seed=2))


def test_the_order_of_the_first_batches_does_not_depend_on_how_many_there_are():
    assert list(order(batches=50))[:12] == list(order(batches=12))


def test_too_few_rows_for_a_batch_are_refused_with_the_override():
    with pytest.raises(L2VError, match=r"^stage.batch_size=4 on 3 process\(es\) needs 12 rows, but .* has 11"):
        order(rows=11, world_size=3)
    assert rows_of(order(rows=12, world_size=3, batches=1))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_without_a_row_is_refused(batch_size):
    with pytest.raises(L2VError, match=f"^data.batch_size={batch_size}: expected at least 1 row"):
        order(batch_size=batch_size, override="data.batch_size")


def test_the_length_is_that_of_the_whole_training():
    assert len(order()) == len(list(order())) == 12
    assert len(order(first=7)) == 12  # Lightning counts a resumed epoch from its beginning


def test_seeds_differ_wherever_a_part_differs():
    seeds = [seed_of(1, "shuffle", 2), seed_of(1, "shuffle", 3), seed_of(2, "shuffle", 2), seed_of(1, "mask", 2)]
    assert len(set(seeds)) == 4 and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, "shuffle", 2) == seeds[0] == seed_of("1", "shuffle", "2")


def test_seeds_are_the_same_on_every_machine():
    assert seed_of(0, "shuffle", 0) == 5846905486456240468


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 7, 8, 24])
def test_validation_counts_each_row_once(rows, world_size):
    ranks = [list(ValidationOrder(rows, batch_size=3, rank=rank, world_size=world_size)) for rank in range(world_size)]
    counted = [pick for batches in ranks for batch in batches for pick in batch if pick.key >= 0]
    assert [pick.row for pick in counted] == [pick.key for pick in counted] == list(range(rows))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 7, 8, 24])
def test_validation_gives_every_rank_batches_of_the_same_sizes_and_rows_that_exist(rows, world_size):
    ranks = [ValidationOrder(rows, batch_size=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    sizes = [[len(batch) for batch in rank] for rank in ranks]
    assert all(size == sizes[0] for size in sizes) and [len(rank) for rank in ranks] == [len(sizes[0])] * world_size
    assert all(0 <= pick.row < rows for rank in ranks for batch in rank for pick in batch)


def test_validation_in_one_process_has_no_fillers():
    assert list(ValidationOrder(5, batch_size=2)) == [[(0, 0), (1, 1)], [(2, 2), (3, 3)], [(4, 4)]]


# batches of several data sets


def texts_of(rows, numbers=None):
    """Rows of (query, positive, *negatives), small numbers that stand for texts."""
    sets = numpy.zeros(len(rows), dtype=numpy.int16) if numbers is None else numpy.array(numbers, dtype=numpy.int16)
    return RowTexts(
        sets=sets,
        queries=numpy.array([row[0] for row in rows], dtype=numpy.int64),
        documents=numpy.array([text for row in rows for text in row[1:]], dtype=numpy.int64),
        offsets=numpy.cumsum([0, *(len(row) - 1 for row in rows)]),
    )


def clean_rows(count, first=0):
    return [(first + 3 * n, first + 3 * n + 1, first + 3 * n + 2) for n in range(count)]


SIZES = (40, 23, 9)
CLEAN = texts_of(
    [row for number, size in enumerate(SIZES) for row in clean_rows(size, 1000 * number)],
    [number for number, size in enumerate(SIZES) for _ in range(size)],
)


def mixed(texts=CLEAN, batch_size=4, batches=60, **settings):
    names = [f"set{n}" for n in range(int(texts.sets.max()) + 1)]
    return MixedOrder(texts, **{"names": names, "batch_size": batch_size, "batches": batches} | settings)


def clash(texts, one, other):
    def own(row):
        return {texts.queries[row], texts.documents[texts.offsets[row]]}

    def every(row):
        return {texts.queries[row], *texts.documents[texts.offsets[row] : texts.offsets[row + 1]]}

    return bool(own(one) & every(other) or every(one) & own(other))


def assert_sound(texts, batches):
    for batch in batches:
        rows = [pick.row for pick in batch]
        assert len(set(rows)) == len(rows) and len({int(texts.sets[row]) for row in rows}) == 1
        assert not any(clash(texts, one, other) for one, other in combinations(rows, 2))


def crowded(rows=120, seed=0):
    """Rows that often share queries, positives, and each other's positives as negatives."""
    draw = numpy.random.default_rng(seed)
    return texts_of([(draw.integers(60), 100 + draw.integers(60), 100 + draw.integers(60)) for _ in range(rows)])


def test_each_batch_comes_from_one_set_and_a_round_reads_the_sets_in_proportion():
    order = mixed()
    assert order.round_batches == 10 + 5 + 2
    first = [order.batch(n) for n in range(17)]
    assert_sound(CLEAN, first)
    assert Counter(int(CLEAN.sets[batch[0].row]) for batch in first) == {0: 10, 1: 5, 2: 2}
    assert max(Counter(rows_of(first)).values()) == 1
    assert [int(CLEAN.sets[batch[0].row]) for batch in first] != sorted(int(CLEAN.sets[b[0].row]) for b in first)


@pytest.mark.parametrize(("alpha", "shares"), [(1.0, [10, 5, 2]), (0.5, [8, 6, 3]), (0.0, [6, 6, 5])])
def test_a_power_below_one_evens_the_sets_out(alpha, shares):
    order = mixed(alpha=alpha)
    assert order.shares == shares
    taken = [batch[0].row for batch in order][: 3 * 17]
    assert Counter(int(CLEAN.sets[row]) for row in taken) == {n: 3 * share for n, share in enumerate(shares)}


def test_every_pass_over_a_set_reads_its_rows_once_also_where_rounds_and_passes_differ():
    order = mixed(alpha=0.0)
    third = [row for row in rows_of(order) if CLEAN.sets[row] == 2]
    passes = [third[begin : begin + 8] for begin in range(0, len(third) - 7, 8)]  # 9 rows fill 2 batches of 4
    assert len(passes) > 5 and all(len(set(rows)) == 8 for rows in passes)
    assert set(third) == set(range(63, 72)) and passes[0] != passes[1]


@pytest.mark.parametrize("texts", [CLEAN, crowded()], ids=["clean", "crowded"])
@pytest.mark.parametrize(("batch_size", "world_size"), [(4, 2), (1, 8)])
def test_mixed_batches_are_the_same_whatever_the_number_of_ranks(texts, batch_size, world_size):
    whole = list(mixed(texts, batch_size=8))
    ranks = [list(mixed(texts, batch_size=batch_size, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert [list(chain(*batches)) for batches in zip(*ranks, strict=True)] == whole


@pytest.mark.parametrize("texts", [CLEAN, crowded()], ids=["clean", "crowded"])
@pytest.mark.parametrize("first", [0, 1, 16, 17, 18, 41, 60])
def test_mixed_batches_resume_in_the_middle(texts, first):
    assert list(mixed(texts, first=first)) == list(mixed(texts))[first:]


def test_mixed_batches_can_be_asked_for_in_any_order():
    forwards, backwards = mixed(crowded()), mixed(crowded())
    assert [forwards.batch(n) for n in range(60)] == [backwards.batch(n) for n in reversed(range(60))][::-1]


def test_mixed_batches_depend_on_the_seed_alone():
    assert list(mixed(seed=1)) == list(mixed(seed=1, batches=90))[:60] != list(mixed(seed=2))


def test_a_position_in_the_mixed_stream_has_a_key_of_its_own():
    assert [pick.key for batch in mixed() for pick in batch] == list(range(240))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("batch_size", [2, 4, 8, 16])
def test_no_batch_has_texts_that_would_be_false_negatives(batch_size, seed):
    texts = crowded(seed=seed)
    order = mixed(texts, batch_size=batch_size, batches=40, seed=seed)
    batches = list(order)
    assert_sound(texts, batches)
    if batch_size <= 4:  # few clashes: nearly every row is read in a pass
        first = rows_of([order.batch(n) for n in range(order.round_batches)])
        assert len(first) == len(set(first)) >= 0.9 * len(texts)


def test_each_kind_of_clash_keeps_rows_apart_and_a_shared_negative_does_not():
    query, positive = [(1, 2, 3), (1, 4, 5)], [(1, 2, 3), (4, 2, 5)]
    negative_is_positive, negative_is_query = [(1, 2, 4), (3, 4, 5)], [(1, 2, 3), (3, 4, 5)]
    positive_is_query = [(1, 2, 3), (2, 4, 5)]
    for rows in (query, positive, negative_is_positive, negative_is_query, positive_is_query):
        with pytest.raises(L2VError, match="2 rows without equal texts"):
            mixed(texts_of(rows), batch_size=2)
    assert len(mixed(texts_of([(1, 2, 3), (4, 5, 3)]), batch_size=2).batch(0)) == 2
    assert len(mixed(texts_of([(1, 1, 3), (4, 5)]), batch_size=2).batch(0)) == 2  # a row does not clash with itself


def test_a_query_that_most_rows_share_leaves_the_batches_that_the_others_fill():
    texts = texts_of([(0 if n < 50 else n, 1000 + n) for n in range(60)])
    order = mixed(texts, batch_size=3, batches=20)
    assert order.round_batches == 5  # ten other queries, and the shared one once a batch
    assert_sound(texts, list(order))


def test_every_row_of_a_crowded_set_is_read_sooner_or_later():
    assert set(rows_of(mixed(crowded(), batch_size=4, batches=300))) == set(range(120))


def test_a_set_with_fewer_rows_than_a_batch_is_left_out_and_named(capsys):
    order = mixed(batch_size=16)
    assert order.left_out == ["set2"] and {int(CLEAN.sets[row]) for row in rows_of(order)} == {0, 1}
    assert "stage.batch_size=16 on 1 process(es) needs 16 rows; left out, as they have fewer: set2" in (
        capsys.readouterr().err
    )


def test_only_the_first_rank_names_what_is_left_out(capsys):
    mixed(batch_size=8, rank=1, world_size=2)
    assert capsys.readouterr().err == ""


def test_no_set_with_the_rows_of_a_batch_is_refused():
    with pytest.raises(L2VError, match=r"^stage.batch_size=32 on 2 process\(es\) needs 64 rows"):
        mixed(batch_size=32, world_size=2)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_mixed_validation_reads_each_row_once_in_batches_of_one_set(world_size):
    ranks = [
        list(MixedValidationOrder(CLEAN.sets, batch_size=4, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for rank in ranks for batch in rank]
    assert sorted(pick.row for batch in batches for pick in batch if pick.key >= 0) == list(range(72))
    assert all(len({int(CLEAN.sets[pick.row]) for pick in batch}) == 1 for batch in batches)


def test_rows_that_are_spread_evenly_exist_however_many_there_are():
    for rows in (2**24 + 4, 30_000_004, 10**9):
        found = evenly(rows, 256)
        assert found[0] == 0 and found[-1] == rows - 1 and found == sorted(set(found))
