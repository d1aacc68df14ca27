"""WavTokenizer with random weights: the class of transformers, and its weights under the names of the authors."""

from functools import cache

import torch
from torch import nn
from transformers import WavTokenizerConfig, WavTokenizerModel

from tests.conversion.sound import sound

AUTHORS = (
    ("encoder_model.quantizer.codebook.", "feature_extractor.encodec.quantizer.vq.layers.0._codebook."),
    ("encoder_model.encoder.layers.", "feature_extractor.encodec.encoder.model."),
    ("head.linear.", "head.out."),
    (".conv.", ".conv.conv."),
    ("parametrizations.weight.original0", "weight_g"),
    ("parametrizations.weight.original1", "weight_v"),
)
"""Parts of names in transformers, and in a checkpoint of the authors."""
LEFT_OUT = (
    "feature_extractor.encodec.decoder.model.0.conv.conv.bias",
    "multiperioddisc.discriminators.0.emb.weight",
    "multiresddisc.discriminators.0.conv_post.bias",
    "dac.discriminators.0.convs.0.0.bias",
    "dacdiscriminator.discriminator.discriminators.0.convs.0.0.bias",
    "melspec_loss.mel_spec.spectrogram.window",
)
"""Entries of such a checkpoint that a tokenizer does not need, one of each part."""


@cache
def wavtokenizer(ratios: tuple[int, ...] = (3, 2, 2)) -> WavTokenizerModel:
    """A small model in eval mode and float32, whose codes lie among the latents of `sound`."""
    config = WavTokenizerConfig(
        num_filters=4,
        upsampling_ratios=list(ratios),
        hidden_size=6,
        codebook_dim=6,
        codebook_size=32,
        decoder_hidden_size=32,
        decoder_intermediate_size=48,
        decoder_num_layers=2,
        adanorm_num_embeddings=3,
    )
    model = WavTokenizerModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name or "gamma" in name or name.endswith("bias"):
            spread = 0.3
        elif name.endswith("original0"):
            continue
        else:
            spread = parameter[0].numel() ** -0.5
        nn.init.normal_(parameter, std=spread, generator=generator)
        if "scale" in name or name.endswith(("norm1.weight", "norm2.weight", "norm.weight")):
            parameter.data += 1
    codebook = model.encoder_model.quantizer.codebook
    with torch.no_grad():
        latents = model.encoder_model.encoder(sound(40, config.hop_length).float())
        rows = latents.mT.reshape(-1, 6)
        codebook.embed.copy_(rows.mean(0) + rows.std(0) * torch.randn(32, 6, generator=generator))
        codebook.cluster_size.copy_(torch.rand(32, generator=generator) * 9)
    return model


def authors_checkpoint(model: WavTokenizerModel) -> dict[str, object]:
    """A Lightning checkpoint of the same weights."""
    state = {}
    for name, value in model.state_dict().items():
        for ours, theirs in AUTHORS:
            if not name.startswith("backbone") or ours != ".conv.":
                name = name.replace(ours, theirs)
        state[name] = value.clone()
    state["head.istft.window"] = torch.hann_window(model.config.n_fft)
    state |= {name: torch.zeros(3) for name in LEFT_OUT}
    return {"epoch": 3, "global_step": 7, "state_dict": state, "hyper_parameters": {"sample_rate": 24000}}
