"""Sound at another sample rate."""

import torch
from torch import Tensor


def resample(wave: Tensor, sample_rate: int, new_sample_rate: int) -> Tensor:
    """`wave` at another sample rate, by torchaudio's Kaiser-windowed sinc filter (64 zero crossings).

    The filter has a row for each phase, `new_sample_rate` over the greatest common divisor of both rates of them: fine
    for 44100 to 16000 Hz, not for odd rates such as 44101 Hz, which are better resampled by soxr before.

    Args:
        wave: (..., T).
        sample_rate: of `wave`, in Hz.
        new_sample_rate: in Hz.

    Returns:
        (..., ceil(T * new_sample_rate / sample_rate)).

    Raises:
        ImportError: torchaudio is not installed.
    """
    try:
        from torchaudio.functional import resample as torchaudio_resample
    except ImportError as error:
        raise ImportError(
            f"resampling from {sample_rate} Hz to {new_sample_rate} Hz needs torchaudio: pip install 'vqkit[audio]',"
            " or resample before"
        ) from error
    resampled = torchaudio_resample(
        wave.to(torch.promote_types(wave.dtype, torch.float32)),  # it forms the filter in the dtype of the wave
        sample_rate,
        new_sample_rate,
        lowpass_filter_width=64,
        rolloff=0.9475937167399596,
        resampling_method="sinc_interp_kaiser",
        beta=14.769656459379492,
    )
    return resampled.to(wave.dtype)
