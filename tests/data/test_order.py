from collections import Counter
from itertools import chain

import pytest

from l2v.data.order import TrainingOrder, ValidationOrder, seed_of
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
