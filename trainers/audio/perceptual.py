"""Measures that stand in for listeners: PESQ, DNSMOS and ViSQOL, of one channel of one utterance."""

import math
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainers.audio.measures import Measure, has_signal
from vqkit.tokenizers.resampling import resample

PESQ_SECONDS = 20.0
"""Longer recordings overflow a fixed buffer of PESQ's C code, which ends the process: they are measured in segments."""


LOWEST_MOS = 1.0
"""What a reconstruction without signal is given, which the models of listening refuse or misjudge."""

SHORTEST_SECONDS = 1.0
"""Of utterances that DNSMOS and ViSQOL are asked about."""


class WidebandPESQ(Measure):
    """Perceptual evaluation of speech quality, wideband: MOS-LQO, 1 to 4.64.

    Source: ITU-T P.862.2, 2007 (https://www.itu.int/rec/T-REC-P.862.2).
    """

    name = "pesq"
    packages: ClassVar[dict[str, str]] = {"pesq": "pesq"}
    rate: ClassVar[int] = 16000
    mode: ClassVar[str] = "wb"
    standard: ClassVar[str] = "P.862.2"

    @property
    def obstacle(self) -> str | None:
        """See `Measure`."""
        if self.sample_rate < self.rate:
            return f"{self.name} needs {self.rate} Hz, and the codec has {self.sample_rate}: measure pesq_nb"
        return super().obstacle

    def __init__(self, sample_rate: int) -> None:
        super().__init__(sample_rate)
        resampled = "" if sample_rate == self.rate else f" resampled from {sample_rate} Hz (torchaudio, Kaiser)"
        self.protocol = (
            f"pesq, {self.standard}, mode {self.mode} at {self.rate} Hz{resampled}; utterances of more than "
            f"{PESQ_SECONDS:g} s in equal segments, of which the mean is taken; utterances in which PESQ finds "
            f"no speech, or less than 0.25 s, are left out; a silent reconstruction has {LOWEST_MOS:g}"
        )

    def _measure(self, original: Tensor, reconstruction: Tensor) -> dict[str, float] | None:
        import pesq

        pair = resample(torch.stack([original, reconstruction]), self.sample_rate, self.rate)
        count = math.ceil(pair.shape[-1] / self.rate / PESQ_SECONDS)
        scores = []
        for first, second in (segment.numpy() for segment in pair.tensor_split(count, dim=-1)):
            if len(first) < self.rate / 4 or not has_signal(torch.from_numpy(first)):
                continue
            if not has_signal(torch.from_numpy(second)):
                scores.append(LOWEST_MOS)
                continue
            try:
                scores.append(float(pesq.pesq(self.rate, first, second, self.mode)))
            except (pesq.NoUtterancesError, pesq.BufferTooShortError):
                continue
        return {self.name: sum(scores) / len(scores)} if scores else None


class NarrowbandPESQ(WidebandPESQ):
    """Perceptual evaluation of speech quality, narrowband: MOS-LQO, 1 to 4.55.

    Source: ITU-T P.862, 2001 (https://www.itu.int/rec/T-REC-P.862), mapped by P.862.1, 2003.
    """

    name = "pesq_nb"
    rate = 8000
    mode = "nb"
    standard = "P.862 mapped by P.862.1"


class DNSMOS(Measure):
    """Predicted ratings of the reconstruction alone (P.835: overall, signal, background), 1 to 5.

    Source: Reddy et al. 2022, arXiv:2110.01763.
    """

    name = "dnsmos"
    figures = ("dnsmos", "dnsmos_signal", "dnsmos_background", "dnsmos_original")
    packages: ClassVar[dict[str, str]] = {"speechmos": "speechmos", "librosa": "librosa", "onnxruntime": "onnxruntime"}
    rate = 16000

    protocol = (
        "speechmos, P.835 model (overall, signal, background) at 16000 Hz, windows of 9.01 s every second, shorter "
        "utterances repeated; without reference: `dnsmos_original` is what the originals have; utterances "
        f"shorter than {SHORTEST_SECONDS:g} s and silent originals are left out"
    )

    def _measure(self, original: Tensor, reconstruction: Tensor) -> dict[str, float] | None:
        if not has_signal(original) or len(original) < SHORTEST_SECONDS * self.sample_rate:
            return None
        from speechmos import dnsmos

        heard, before = (
            dnsmos.run(resample(wave, self.sample_rate, self.rate).clamp(-1, 1).numpy(), self.rate)
            for wave in (reconstruction, original)
        )
        values = (heard["ovrl_mos"], heard["sig_mos"], heard["bak_mos"], before["ovrl_mos"])
        return {name: float(value) for name, value in zip(self.figures, values, strict=True)}


class ViSQOL(Measure):
    """Virtual speech quality objective listener: MOS-LQO, 1 to 5.

    Source: Chinen et al. 2020, arXiv:2004.09584.
    """

    name = "visqol"
    packages: ClassVar[dict[str, str]] = {"visqol": "visqol-python"}

    def __init__(self, sample_rate: int) -> None:
        super().__init__(sample_rate)
        self.mode, self.rate = ("speech", 16000) if sample_rate <= 16000 else ("audio", 48000)
        mapping = "polynomial mapping scaled to 5" if self.mode == "speech" else "support vector regression"
        self.protocol = (
            f"visqol-python, {self.mode} mode at {self.rate} Hz, {mapping}; a silent reconstruction has "
            f"{LOWEST_MOS:g}; utterances shorter than {SHORTEST_SECONDS:g} s and silent originals are left out"
        )

    def _measure(self, original: Tensor, reconstruction: Tensor) -> dict[str, float] | None:
        if not has_signal(original) or len(original) < SHORTEST_SECONDS * self.sample_rate:
            return None
        if not has_signal(reconstruction):
            return {"visqol": LOWEST_MOS}
        pair = resample(torch.stack([original, reconstruction]), self.sample_rate, self.rate).double().numpy()
        return {"visqol": float(self._listener.measure_from_arrays(*pair, self.rate).moslqo)}

    @cached_property
    def _listener(self) -> Any:
        from visqol import VisqolApi

        api = VisqolApi()
        api.create(mode=self.mode, use_lattice_model=False)
        return api
