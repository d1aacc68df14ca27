"""Image files of a folder: which of them can be used, and their classes and groups."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainers.data.files import Folder, content_hash, inspected
from vqkit.media.files import found_under, open_plain
from vqkit.media.pictures import MAX_PIXELS, check_meaning, is_deep, opened, orientation, reason, suffixes
from vqkit.tokens.names import escaped, unescaped


@dataclass(frozen=True)
class ImageFile:
    """One usable image file.

    Attributes:
        name: Path relative to the root, with forward slashes, escaped.
        height: Pixels, as shown (after the EXIF orientation).
        width: Pixels, as shown.
        content: 16 hexadecimal digits of a hash of the bytes, equal for identical files.
        deep: Whether its values have more than 8 bits.
        label: Number of its class, where folders are classes.
        extent: (height, width) of the picture within what is encoded of it, where sizes differ.
        group: Number of what it was cut from, where names say that.
    """

    name: str
    height: int
    width: int
    content: str
    deep: bool = False
    label: int | None = None
    extent: tuple[int, int] | None = None
    group: int | None = None


def scan(
    root: Path,
    *,
    min_size: int,
    max_aspect_ratio: float = math.inf,
    white: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Folder[ImageFile]:
    """Finds the images under a folder by reading the header and the ends of every file with an image's suffix.

    Nothing is decoded, so a file that is damaged in the middle is found only when it is read. See `found_under`.

    Args:
        root: The folder, of any nesting.
        min_size: Images whose shorter side has fewer pixels are skipped.
        max_aspect_ratio: Images whose longer side is more times the shorter one are skipped.
        white: As for `vqkit.media.pictures.read`.
        max_pixels: Images with more pixels are skipped.
    """
    return inspected(
        root,
        found_under(root, suffixes()),
        lambda path: inspect(path, root, min_size, white, max_pixels, max_aspect_ratio),
    )


def inspect(
    path: Path, root: Path, min_size: int, white: float | None, max_pixels: int, max_aspect_ratio: float = math.inf
) -> ImageFile | str:
    """Reads a file's header and ends: the image, or in words why it cannot be used."""
    try:
        with opened(path, max_pixels) as image:
            width, height = image.size
            if orientation(image) >= 5:
                width, height = height, width
            check_meaning(image, white)
            deep = is_deep(image)
        with open_plain(path) as file:
            content = content_hash(file)
    except Exception as error:  # as in `vqkit.media.pictures.read`
        return reason(error)
    if min(width, height) < min_size:
        return f"too small: {width}x{height} pixels, min_size is {min_size}"
    if max(width, height) > max_aspect_ratio * min(width, height):
        return f"too long: {width}x{height} pixels, max_aspect_ratio is {max_aspect_ratio:g}"
    return ImageFile(escaped(path.relative_to(root).as_posix()), height, width, content, deep)


def class_names(root: Path) -> list[str]:
    """The folders in a folder, sorted as torchvision's ImageFolder numbers them; hidden ones are left out. Escaped."""
    with os.scandir(root) as entries:
        return [escaped(name) for name in sorted(entry.name for entry in entries if entry.is_dir()) if name[0] != "."]


def labelled(folder: Folder[ImageFile], classes: Sequence[str]) -> Folder[ImageFile]:
    """The images of a folder with the numbers of their classes, the folders that they lie in.

    Args:
        folder: Images outside of folders are skipped.
        classes: Names, by number.

    Raises:
        ValueError: For a folder that is not a class.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    found = Folder[ImageFile](folder.root, [], dict(folder.skipped), folder.other_files)
    for file in folder.files:
        name, slash, _ = file.name.partition("/")
        if not slash:
            path = escaped(str(folder.root / unescaped(file.name)))
            found.skipped[path] = "lies outside of the class folders"
        elif name in numbers:
            found.files.append(replace(file, label=numbers[name]))
        else:
            raise ValueError(
                f"{escaped(str(folder.root))} has a folder {name!r}, which is not among the {len(numbers)} classes "
                f"({', '.join(classes[:3])}, ...): name its folders as those of root, or set class_folders to false."
            )
    return found


def groups(files: Sequence[ImageFile], pattern: str) -> list[str]:
    """For each image 16 hexadecimal digits, equal where the beginnings of names that `pattern` matches are equal.

    They are the least `content` of the group, so that new names with the same groups change nothing.

    Raises:
        ValueError: The pattern does not match a name.
    """
    matched = []
    for file in files:
        if not (found := re.match(pattern, file.name)):
            raise ValueError(
                f"group_by={pattern!r} does not match the beginning of {file.name}: expected a regular expression for "
                "all names, such as '.*_' where squares of the photograph 0003 are 0003_0000.png, 0003_0001.png, ..."
            )
        matched.append(found[0])
    least: dict[str, str] = {}
    for name, file in zip(matched, files, strict=True):
        least[name] = min(least.get(name, file.content), file.content)
    return [least[name] for name in matched]


def crop_side(uniform: float, *, shorter_side: int, resolution: int, scale: tuple[float, float]) -> int:
    """Side of a random square crop, log-uniform in scale, never below the resolution where the image allows it.

    Args:
        uniform: A number in [0, 1).
        shorter_side: The image's, in pixels.
        resolution: Side of the finished crop, in pixels.
        scale: Least and greatest side as a share of the shorter side.
    """
    most = min(shorter_side, max(resolution, scale[1] * shorter_side))
    least = min(most, max(resolution, scale[0] * shorter_side))
    return round(math.exp((1 - uniform) * math.log(least) + uniform * math.log(most)))
