"""The base of objectives of images."""

from trainers.core.objective import Objective


class ImageObjective(Objective):
    """A distance of images (B, C, H, W) in [-1, 1]: a derived class writes `distance`."""

    axes = ("height", "width")
