"""Which files are merged: enough of one size, and the number of files stays small."""

from datetime import timedelta

import pytest

from catalog.compaction import LiveFile
from coordinator.compaction_choice import CompactionSizes, choose
from duckmesh.identifiers import SchemaVersion, new_file_id
from duckmesh.tokens import VisibilityToken

MIB = 2**20
SIZES = CompactionSizes(target_bytes=128 * MIB)


def a_file(size_bytes: int, token: int = 1) -> LiveFile:
    token_ = VisibilityToken(token)
    return LiveFile(
        new_file_id(), None, SchemaVersion(1), 1, size_bytes, token_, token_, timedelta(0)
    )


def test_few_small_files_wait_for_more_or_for_rest() -> None:
    files = [a_file(1000, token) for token in range(20)]
    assert choose(files, SIZES, resting=False) == []
    assert choose(files, SIZES, resting=True) == files
    assert choose(files[:3], SIZES, resting=True) == []
    assert choose(files[:3], SIZES, resting=False, eager=True) == files[:3]
    assert choose(files[:1], SIZES, resting=True, eager=True) == []


@pytest.mark.parametrize(("size_bytes", "count"), [(1000, 64), (MIB // 2, 8), (10 * MIB, 8)])
def test_enough_files_of_one_size_are_merged_in_token_order(size_bytes: int, count: int) -> None:
    files = [a_file(size_bytes, token) for token in range(count)]
    assert choose(files, SIZES, resting=False) == files
    assert choose(files[1:], SIZES, resting=False) == []


def test_a_full_tier_takes_everything_smaller_along_and_nothing_larger() -> None:
    tiny, middle, large = a_file(1000), [a_file(3 * MIB) for _ in range(8)], a_file(40 * MIB)
    assert choose([tiny, *middle, large], SIZES, resting=False) == [tiny, *middle]


def test_files_of_half_the_target_are_done() -> None:
    files = [a_file(64 * MIB) for _ in range(50)]
    assert choose(files, SIZES, resting=True, eager=True) == []


def test_one_merge_reads_a_bounded_number_of_bytes() -> None:
    sizes = CompactionSizes(target_bytes=128 * MIB, job_max_bytes=200 * MIB)
    files = [a_file(60 * MIB) for _ in range(50)]
    assert choose(files, sizes, resting=False) == files[:3]


def test_the_number_of_files_grows_with_the_logarithm_of_what_was_written() -> None:
    files: list[LiveFile] = []
    rewritten = 0
    for token in range(5_000):
        files.append(a_file(200_000, token))
        while chosen := choose(files, SIZES, resting=False):
            size_bytes = sum(file.size_bytes for file in chosen)
            rewritten += size_bytes
            files = [file for file in files if file not in chosen] + [a_file(size_bytes, token)]
        assert len([f for f in files if f.size_bytes < SIZES.small_bytes]) <= 60
    assert rewritten < 6 * 5_000 * 200_000
