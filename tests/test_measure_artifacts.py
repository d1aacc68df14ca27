"""What is counted as wrong in reconstructions: `scripts/measure_artifacts.py`."""

import math

import measure_artifacts
import torch


def test_a_speck_is_a_colour_that_neighbours_and_original_do_not_have() -> None:
    original = torch.full((4, 3, 8, 8), 100.0)
    image = original.clone()
    image[0, 2, 3, 4] += 60  # 40 above the mean of the pixel
    image[1, :, 3, 4] += 60  # bright, without colour
    image[2, 2, :, 4:] += 60  # an edge
    image[3, 2, 3, 4] = original[3, 2, 3, 4] = 160.0  # the original has it
    found = measure_artifacts.specks(original, image)
    assert found.nonzero().tolist() == [[0, 3, 4]]


def test_steps_between_patches_are_told_from_those_within() -> None:
    slope = torch.arange(16.0).expand(1, 3, 16, 16)
    slope = slope + slope.mT
    assert math.isclose(measure_artifacts.grid(slope, 4), 1.0)
    patches = slope + 2 * (torch.arange(16) // 4)  # across columns a step of 1 becomes 3, across rows it stays
    assert math.isclose(measure_artifacts.grid(patches, 4), 2.0)


def test_values_are_counted_behind_the_decoder_and_in_files() -> None:
    decoded = torch.zeros(1, 3, 8, 8)
    decoded[0, 0, 0, :2] = 1 + 2 / 127.5
    decoded[0, 0, 1, 0] = -1 - 4 / 127.5
    decoded[0, 0, 1, 1] = 1.0
    found = measure_artifacts.artifacts(decoded.clamp(-1, 1), decoded, 4)
    assert math.isclose(found["outside"], 3 / 192, rel_tol=1e-6)
    assert math.isclose(found["excess"], 8 / 3, rel_tol=1e-4)  # 1 + 2 / 127.5 has a spacing of 2^-23
    assert math.isclose(found["saturated"], 4 / 192, rel_tol=1e-6)
    assert found["specks"] == found["speckled"] == 0


def test_energy_is_that_of_the_originals_where_nothing_changes() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert measure_artifacts.artifacts(images, images, 4)["energy"] == [1.0] * (len(measure_artifacts.BANDS) - 1)


def test_equal_sets_are_at_no_distance() -> None:
    rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    found = measure_artifacts.distances(rows, rows)
    assert found.keys() == {"frechet_distance", "kernel_distance"}
    assert abs(found["frechet_distance"]) < 1e-6  # sums in float64 of features of length 1
    moved = measure_artifacts.distances(rows, rows + 2)
    assert math.isclose(moved["frechet_distance"], 16, rel_tol=1e-4)
