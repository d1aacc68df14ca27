"""What is in a sound file: soundfile alone, torchcodec where it is needed.

A header is believed where libsndfile compares it with the size of the file (WAV, AIFF, AU, CAF, W64), where the last
page says it (Ogg), and where the last sample can be read and no more follows (FLAC). An MP3 is believed if its "Xing"
or "Info" tag counts the bytes that are there. Any other file is decoded once to count its samples, which takes some 7
seconds for an hour of stereo, and from its beginning for every part that is read of it: convert such files to FLAC if
they do not fit the cache. A WAV, AIFF, CAF or AU is left out if more follows its sound than chunks, tags and zeros: as
where its sound has 4 GiB more than a size of 32 bits can say. Up to 4,096 bytes of it that may be either, the notes of
a maker or the last moment of a recorder that was killed, are not taken for sound. Chunks never are, nor where the
header promises more sound than there is.
"""

import importlib.util
import io
import mmap
import re
import struct
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy
import soundfile

from vqkit.media.files import open_plain
from vqkit.tokens.names import escaped

if TYPE_CHECKING:
    from torchcodec.decoders import AudioDecoder

# What libsndfile reads by itself (raw formats without a header are not among them), and what needs FFmpeg.
SNDFILE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("wav", "wave", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "aifc", "au", "snd", "caf", "w64", "rf64"),
        *("voc", "sph", "nist", "paf", "ircam", "htk", "svx", "8svx", "iff"),
    )
)
TORCHCODEC_SUFFIXES = frozenset(
    f".{name}" for name in ("m4a", "m4b", "aac", "mp4", "webm", "mka", "mkv", "mov", "wma", "ac3", "amr")
)
EXACT_SUBTYPES = {"PCM_16", "PCM_S8", "PCM_U8"}  # 16 bits hold their samples without loss
PADDING_SAMPLES = 4096  # which a lossy coder may promise beyond the end
ENDLESS_BYTES = 2**40
SKIPPED_FRAMES = 2**16
REST_BYTES = 4096  # of a header, or of a maker's own notes behind the sound; more of them may be sound
FLAC_SAMPLES = 22  # place of the lower 32 bits of the number of samples
CHUNKS = {  # first letters -> place and head (name, size) of the first chunk, and the name of that with the sound
    b"RIFF": (12, "<4sI", b"data"),
    b"RIFX": (12, ">4sI", b"data"),
    b"RF64": (12, "<4sI", b"data"),
    b"FORM": (12, ">4sI", b"SSND"),
    b"caff": (8, ">4sQ", b"data"),
}
MORE_HEAD = {b"FORM": 8}  # bytes of the chunk with the sound before its first sample
NOT_ZERO = re.compile(rb"[^\0]")
AU_SIZES = {b".snd": ">II", b"dns.": "<II"}  # first letters -> place and size of the sound
MPEG_FRAME = 576  # samples; every frame of MPEG layer II or III has one or two times as many
SAMPLE_BYTES = {
    **dict.fromkeys(("PCM_S8", "PCM_U8", "ULAW", "ALAW"), 1),
    **{"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8},
}
NOTES = re.compile(rb"LIST|id3 |ID3 |bext|iXML|_PMX|cue |smpl|NAME|AUTH|ANNO|COMT|info")  # chunks behind the sound
NOTES_BYTES = 2**20  # of the end of a file, in which they are looked for where the sound has no end
W64_DATA = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")  # a name of 16 bytes, then a size that counts both
TRAILERS = (b"TAG", b"APETAGEX", b"LYRICS", b"ID3", b"LIST", b"id3 ")  # what may follow the sound


class SoundHeader(NamedTuple):
    """What a file holds.

    Attributes:
        frames: Samples per channel.
        sample_rate: Hz.
        channels: Number of channels.
        dtype: The type that holds the samples exactly, "int16" or "float32".
        exact: Whether the file's header says all this; else `frames` was counted.
    """

    frames: int
    sample_rate: int
    channels: int
    dtype: str
    exact: bool = True


class Hiding(io.FileIO):
    """A file for libsndfile of which four bytes are read as zeros, those of a count that is not to be believed.

    Args:
        path: The file.
        hidden: Place of the bytes; None hides nothing.
    """

    def __init__(self, path: Path, hidden: int | None) -> None:
        super().__init__(str(path))
        self._hidden = hidden

    def readinto(self, buffer: Any, /) -> int:
        """Fills the buffer, zeros where bytes are hidden."""
        start = io.FileIO.tell(self)
        size = super().readinto(buffer) or 0
        if self._hidden is not None:
            first, last = (min(max(place - start, 0), size) for place in (self._hidden, self._hidden + 4))
            buffer[first:last] = bytes(last - first)
        return size


class Endless(Hiding):
    """A file that seems to have no end too, so that the decoder of MP3 reads as long as there are frames.

    Args:
        path: The file.
        hidden: Place of the letters of a tag that counts wrongly.
    """

    def __init__(self, path: Path, hidden: int | None) -> None:
        super().__init__(path, hidden)
        self._at_end = False

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """To a place; the end is at `ENDLESS_BYTES`."""
        self._at_end = whence == io.SEEK_END
        return ENDLESS_BYTES if self._at_end else super().seek(offset, whence)

    def tell(self) -> int:
        """The place."""
        return ENDLESS_BYTES if self._at_end else super().tell()


class Onwards(soundfile.SoundFile):
    """A sound file that is read from the beginning on, whatever its header says about the end."""

    def close(self) -> None:
        """Closes it, and the `Hiding` file below."""
        super().close()
        if isinstance(self.name, Hiding):
            self.name.close()

    def seekable(self) -> bool:
        """No: soundfile would stop where the header ends, and jumps are not exact where the header is wrong."""
        return False


def header(path: Path) -> SoundHeader:
    """What a file holds, by its header where that can be believed.

    Raises:
        ValueError: If it is no sound file that can be read here, or one of which a part only would be read; the message
            is the reason.
    """
    if path.suffix.lower() in TORCHCODEC_SUFFIXES:
        metadata = torchcodec_decoder(path).metadata
        frames = round((metadata.duration_seconds or 0) * metadata.sample_rate)
        return SoundHeader(frames, metadata.sample_rate, metadata.num_channels, "float32")
    try:
        with open_plain(path) as plain:
            return _header(path, descriptor(plain))
    except soundfile.LibsndfileError as error:
        raise ValueError(reason(error)) from error


def _header(path: Path, plain: Path) -> SoundHeader:
    if plain.stat().st_size == 0:
        raise ValueError("empty: the file has no bytes")
    with soundfile.SoundFile(str(plain)) as file:
        dtype = "int16" if file.subtype in EXACT_SUBTYPES else "float32"
        width = file.channels * SAMPLE_BYTES.get(file.subtype, 0)
        size = bytes_before_notes(plain) if width else None
        frames = file.frames if size is None else min(file.frames, size // width)
        found = SoundHeader(frames, file.samplerate, file.channels, dtype)
        if is_mpeg(file):
            believed = mpeg_tag(plain)[1]
        else:
            believed = file.format != "FLAC" or (last_sample_is_there(file) and not goes_on(plain, file.frames))
        if is_mpeg(file) and file.format != "MP3" and not believed:
            raise ValueError(f"an MP3 inside of another file, without a count of its frames: {mended(path)}")
        if file.format == "OGG" and is_chained(plain):
            raise ValueError(f"holds several recordings one after the other (chained Ogg): {mended(path)}")
    if found.frames == 0 and plain.stat().st_size > REST_BYTES:
        raise ValueError(
            f"empty: its header promises no samples, but it has {plain.stat().st_size} bytes, as a stream that was not "
            f"closed: {mended(path)}"
        )
    if (rest := unknown_rest(plain)) > REST_BYTES:
        raise ValueError(
            f"sound may follow its end: its header counts {found.frames} samples, and {rest} bytes follow that are no "
            f"chunks: read on with sox --ignore-length {escaped(path.name)} {escaped(path.stem)}.flac"
        )
    return found if believed else found._replace(frames=count(path), exact=False)


def mended(path: Path) -> str:
    """The fix for a file that FFmpeg reads otherwise than libsndfile."""
    return f"convert it: ffmpeg -i {escaped(path.name)} {escaped(path.stem)}.flac"


def descriptor(file: BinaryIO) -> Path:
    """The path of an open file, which libsndfile takes whatever the file is called."""
    return Path(f"/dev/fd/{file.fileno()}")


def reason(error: soundfile.LibsndfileError) -> str:
    """An error of libsndfile as a short reason, without the file's name."""
    return f"not a sound file that libsndfile can read: {error.error_string.rstrip('.').removeprefix('Error : ')}"


def is_mpeg(file: soundfile.SoundFile) -> bool:
    """Whether it is an MP3, also inside of another container."""
    return file.subtype.startswith("MPEG_LAYER")


def last_sample_is_there(file: soundfile.SoundFile) -> bool:
    """Whether the sound does not end before the header says so."""
    try:
        file.seek(max(0, file.frames - 1))
        return len(file.read(1)) == min(1, file.frames)
    except soundfile.LibsndfileError:
        return False


def goes_on(path: Path, frames: int) -> bool:
    """Whether a FLAC has samples after the last one that its header counts."""
    with without_count(path) as file:
        try:
            file.seek(frames)
            return len(file.read(1)) > 0
        except soundfile.LibsndfileError:
            return False


def without_count(path: Path) -> "Onwards":
    """A FLAC that libsndfile decodes to the last frame, because it does not see the number of samples."""
    with path.open("rb") as file:
        return Onwards(Hiding(path, past_id3(file) + FLAC_SAMPLES))


def unknown_rest(path: Path) -> int:
    """Bytes after the sound of a WAV, AIFF, CAF or AU that are neither chunks nor tags nor zeros, to the end."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = past_id3(file)
        letters = data[start : start + 4]
        if letters in AU_SIZES and start + 12 <= len(data):
            at = start + sum(struct.unpack_from(AU_SIZES[letters], data, start + 4))
        elif letters in CHUNKS:
            at, heard = _end_of_chunks(data, start, *CHUNKS[letters])
            if not heard:
                return 0
        else:
            return 0
        content = NOT_ZERO.search(data, at)
        if content is None or data[content.start() : content.start() + 8].startswith(TRAILERS):
            return 0
        return len(data) - content.start()


def bytes_before_notes(path: Path) -> int | None:
    """Bytes of the sound of a WAV, AIFF or W64 where libsndfile takes the chunks behind it for sound too; or None.

    It reads to the end of the file where a header promises more than there is, as that of a stream (it refuses such a
    CAF), and any W64. Chunks are known by their names there, and because they end where the file does.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = past_id3(file)
        letters = data[start : start + 4]
        if letters == b"riff":
            body = data.find(W64_DATA, start) + 24
            counted = int.from_bytes(data[body - 8 : body], "little") - 24
            return counted if body >= 24 and 0 <= counted < len(data) - body else None
        if letters not in CHUNKS:
            return None
        _, head, sound = CHUNKS[letters]
        at, heard = _end_of_chunks(data, start, *CHUNKS[letters])
        content = NOT_ZERO.search(data, at)
        if heard or content is None or data[content.start() : content.start() + 4] != sound:
            return None
        body = content.start() + struct.calcsize(head) + MORE_HEAD.get(letters, 0)
        places = [found.start() for found in NOTES.finditer(data, max(body, len(data) - NOTES_BYTES))]
        return next((place - body for place in places if _chunks_fit(data, place, head)), None)


def _chunks_fit(data: mmap.mmap, at: int, head: str) -> bool:
    """Whether chunks follow from here on, and end where the file does."""
    body = struct.calcsize(head)
    while at + body <= len(data):
        size = struct.unpack_from(head, data, at)[1]
        at += body + size + (size & 1)
    return at - len(data) in (0, 1)


def _end_of_chunks(data: mmap.mmap, start: int, first: int, head: str, sound: bytes) -> tuple[int, bool]:
    """Where the chunks end that are whole, and whether that with the sound is among them."""
    at, end, heard = start + first, len(data), False
    while content := NOT_ZERO.search(data, at):  # a byte is added to odd ones, and sometimes many
        place = content.start()
        body = place + struct.calcsize(head)
        if body > end:
            break
        name, size = struct.unpack_from(head, data, place)
        if data[start : start + 4] == b"RF64" and name == sound and size == 2**32 - 1:
            (size,) = struct.unpack_from("<Q", data, start + 28)
        if not name.isascii() or not name.decode().isprintable() or body + size > end:
            break
        at, heard = body + size, heard or name == sound
    return at, heard


def past_id3(file: BinaryIO) -> int:
    """Where the content of a file begins, behind tags of ID3."""
    start, head = 0, file.read(10)
    while head[:3] == b"ID3" and len(head) == 10:  # 28 bits in four bytes, and a footer where bit 4 says so
        start += 20 if head[5] & 16 else 10
        start += head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        file.seek(start)
        head = file.read(10)
    return start


def mpeg_tag(path: Path) -> tuple[int | None, bool]:
    """The "Xing" or "Info" tag in the first frame of an MP3.

    Returns:
        The place of its letters, and whether it counts frames, and all bytes that are there.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = past_id3(file)
        file.seek(start)
        block = file.read(4096)
        place = max(block.find(b"Xing"), block.find(b"Info"))
        sides = (side for side in (36, 21, 13) if place >= side and block[place - side] == 255)
        side = next(sides, None)  # bytes of the frame before the tag
        if side is None:
            return None, False
        flags, _, length = (int.from_bytes(block[place + 4 * word :][:4], "big") for word in (1, 2, 3))
        end = start + place - side + length
        file.seek(end)
        follows = file.read(8)
    whole = flags & 3 == 3 and end <= size and (len(follows) < 2 or follows.startswith(TRAILERS))
    return start + place, whole


def is_chained(path: Path) -> bool:
    """Whether another stream begins in an Ogg file after the first ones: libsndfile reads up to there."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, beginning = 0, True
        while data[at : at + 4] == b"OggS" and at + 27 <= len(data):
            begins = bool(data[at + 5] & 2)
            if begins and not beginning:
                return True
            beginning = beginning and begins
            segments = data[at + 26]
            at += 27 + segments + sum(data[at + 27 : at + 27 + segments])
    return False


def opened(path: Path, *, exact: bool) -> soundfile.SoundFile:
    """A file for reading.

    Args:
        path: The file.
        exact: Of its `SoundHeader`; without it the file is read from its beginning on, to the end of its data.
    """
    with open_plain(path) as file:  # libsndfile would wait for a pipe
        plain = descriptor(file)
        if exact:
            return soundfile.SoundFile(str(plain))
        with soundfile.SoundFile(str(plain)) as first:
            if first.format == "FLAC":
                return without_count(plain)
            endless = is_mpeg(first)
        return Onwards(Endless(plain, mpeg_tag(plain)[0]) if endless else str(plain))


def count(path: Path) -> int:
    """Samples per channel that can be decoded, from the first to the last; an MP3 may end amid a frame."""
    frames = 0
    with opened(path, exact=False) as file:
        try:
            while len(block := file.read(MPEG_FRAME, dtype="float32", always_2d=True)):
                frames += len(block)
        except soundfile.LibsndfileError:
            if not (is_mpeg(file) and frames):
                raise
    return frames


def pieces(path: Path, found: SoundHeader, length: int) -> Iterator[numpy.ndarray]:
    """All samples of a file, one piece in memory at a time.

    Args:
        path: The file.
        found: Its `header`.
        length: Samples in a piece.

    Yields:
        (length, channels) float32, the last one shorter.

    Raises:
        ValueError: If samples cannot be decoded, are missing, or are not finite numbers; the message is the reason.
    """
    seen = 0
    try:
        by_ffmpeg = path.suffix.lower() in TORCHCODEC_SUFFIXES
        decoded = torchcodec_samples(path, found.frames) if by_ffmpeg else numpy.zeros((0, 0))
        with nullcontext() if by_ffmpeg else opened(path, exact=found.exact) as file:
            while seen < found.frames:
                wanted = min(length, found.frames - seen)
                piece = decoded[seen:][:wanted] if file is None else file.read(wanted, "float32", always_2d=True)
                if not len(piece):
                    raise ValueError(f"ends after {seen} of {found.frames} samples")
                if not (finite := numpy.isfinite(piece).all(axis=1)).all():
                    place = (seen + int(finite.argmin())) / found.sample_rate
                    raise ValueError(f"has samples that are not finite numbers, the first at {place:.3f} s")
                seen += len(piece)
                yield piece
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{reason(error)}, after {seen} samples") from error


def skip(file: soundfile.SoundFile, frames: int) -> None:
    """To a place in an open file, by decoding what is before it where the format cannot seek."""
    if file.seekable():
        file.seek(frames)
        return
    while frames > 0 and len(skipped := file.read(min(frames, SKIPPED_FRAMES))):
        frames -= len(skipped)


def torchcodec_samples(path: Path, frames: int) -> numpy.ndarray:
    """All samples of a file, (frames, channels) float32; a little silence where the header counts a coder's padding."""
    data, *_ = torchcodec_decoder(path).get_all_samples()
    decoded = data.numpy().T.astype(numpy.float32)
    missing = max(0, frames - len(decoded))
    return numpy.pad(decoded, ((0, missing), (0, 0))) if missing <= PADDING_SAMPLES else decoded


def torchcodec_decoder(path: Path) -> "AudioDecoder":
    """A decoder of torchcodec; ValueError with the fix where that package is missing, or cannot open the file."""
    if importlib.util.find_spec("torchcodec") is None:
        raise ValueError(
            f"{path.suffix} files need the package torchcodec (with FFmpeg): install it, or {mended(path)}"
        )
    with open_plain(path):  # which FFmpeg would wait for, were it a pipe
        pass
    try:
        from torchcodec.decoders import AudioDecoder  # which fails with RuntimeError where FFmpeg is missing

        return AudioDecoder(str(path))
    except (ImportError, RuntimeError, ValueError) as error:
        raise ValueError(f"not a sound file that torchcodec can read: {str(error).splitlines()[0]}") from error
