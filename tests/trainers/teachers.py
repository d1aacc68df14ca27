"""Tiny networks of speech with random weights, in folders as transformers saves them."""

from pathlib import Path

import torch

WAVES = {
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "conv_dim": [4, 4],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 4],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
"""Of a network of 800 frames a second, each of a window of 20 samples."""


def save_wavlm(folder: Path, *, normalized: bool = True, **options) -> Path:
    """WavLM, which hears samples."""
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

    return _save(folder, WavLMModel, WavLMConfig(**WAVES | options), Wav2Vec2FeatureExtractor(do_normalize=normalized))


def save_hubert(folder: Path, **options) -> Path:
    """HuBERT with the norms of its large form, the last of which stands behind all layers."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    config = HubertConfig(**WAVES, do_stable_layer_norm=True, feat_extract_norm="layer", **options)
    return _save(folder, HubertModel, config, Wav2Vec2FeatureExtractor(do_normalize=False))


def save_whisper(folder: Path) -> Path:
    """Whisper of one second, 50 frames."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    config = WhisperConfig(
        d_model=8,
        encoder_layers=3,
        encoder_attention_heads=2,
        encoder_ffn_dim=8,
        max_source_positions=50,
        decoder_layers=0,
        decoder_attention_heads=1,
        vocab_size=1,
        max_target_positions=1,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
    )
    return _save(folder, WhisperModel, config, WhisperFeatureExtractor(chunk_length=1))


def save_w2v_bert(folder: Path) -> Path:
    """w2v-BERT 2.0, which hears Kaldi's bands, two frames at once."""
    from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel

    config = Wav2Vec2BertConfig(
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=8,
        conv_depthwise_kernel_size=3,
        left_max_position_embeddings=4,
        right_max_position_embeddings=2,
    )
    return _save(folder, Wav2Vec2BertModel, config, SeamlessM4TFeatureExtractor())


KINDS = {"wavlm": save_wavlm, "hubert": save_hubert, "whisper": save_whisper, "w2v_bert": save_w2v_bert}


def _save(folder: Path, network, config, extractor) -> Path:
    torch.manual_seed(3)
    model = network(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # no bias and no norm that does nothing
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder
