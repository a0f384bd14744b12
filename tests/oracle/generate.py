"""Writes oracle.npz: what PyPI `moshi` 0.2.13 makes of the checkpoint in checkpoint.py, greedy and in float32.

Run by regenerate.sh in an environment of its own (torch, moshi). That package differs from the published model's code
in its attention window once a ring is full, so the run stays shorter than every ring; and it feeds user frame j and
returns, one call earlier, what the published code returns at call j + 1.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyloudnorm
import sentencepiece
import soundfile
import torch
from moshi.models import loaders
from moshi.models.lm import LMGen
from safetensors.torch import load_file

from tests.oracle.checkpoint import PROMPT, write

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
FRAME = 1920
FRAMES = 45
STEPS = 8
"""Depth steps: this package takes the streams beyond them as the user's."""

SILENCE = [948, 243, 1178, 546, 1736, 1030, 1978, 2008]
SINE = [430, 1268, 381, 1611, 1095, 1495, 56, 472]
PAD = 3


def load_mimi(folder: Path, config: dict) -> object:
    seanet = {
        "channels": 1, "causal": True, "n_residual_layers": 1, "activation": "ELU", "dilation_base": 2,
        "disable_norm_outer_blocks": 0, "norm": "none", "pad_mode": "constant", "true_skip": True, **config["seanet"],
    }  # fmt: skip
    dimension = seanet["dimension"]
    transformer = {
        "causal": True, "conv_layout": True, "gating": "none", "norm": "layer_norm", "positional_embedding": "rope",
        "input_dimension": dimension, "output_dimensions": [dimension], **config["mimi_transformer"],
    }  # fmt: skip
    quantizer = {"input_dimension": dimension, "output_dimension": dimension, **config["quantizer"]}
    mimi = loaders.get_mimi(
        None,
        mimi_config={
            "sample_rate": 24000, "channels": 1, "frame_rate": 12.5,
            "seanet": seanet, "quantizer": quantizer, "transformer": transformer,
        },
        device="cpu",
        num_codebooks=8,
    )  # fmt: skip
    mimi.load_state_dict(load_file(folder / "tokenizer-e351c8d8-checkpoint125.safetensors"), strict=True)
    mimi.eval()
    mimi.streaming_forever(1)
    return mimi


def load_lm(folder: Path, config: dict) -> object:
    kwargs = {
        **config["lm"],
        "dep_q": STEPS, "causal": True, "layer_scale": None, "gating": "silu", "norm": "rms_norm_f32",
        "positional_embedding": "rope", "depformer_layer_scale": None, "depformer_multi_linear": True,
        "depformer_context": STEPS, "depformer_max_period": 10_000, "depformer_gating": "silu",
        "depformer_pos_emb": "none", "depformer_weights_per_step": True,
    }  # fmt: skip
    lm = loaders.get_moshi_lm(None, lm_kwargs=kwargs, device="cpu", dtype=torch.float32)
    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith(("self_attn.in_proj_weight", "self_attn.out_proj.weight")) and name.startswith("depformer"):
            tensor = tensor[: len(tensor) * STEPS // config["lm"]["dep_q"]]
        step = next((int(part) for part in name.split(".") if part.isdigit() and not name.startswith("emb.")), 0)
        if "gating" in name and name.startswith("depformer.layers"):
            step = int(name.split(".gating.")[1].split(".")[0])
        elif name.startswith(("transformer.layers", "depformer.layers")):
            step = 0
        limit = STEPS - 1 if name.startswith("depformer_emb.") else STEPS
        if step < limit:
            state[name] = tensor
    lm.load_state_dict(state, strict=True)
    lm.eval()
    return lm


def encode(mimi: object, pcm: np.ndarray) -> np.ndarray:
    """pcm [T] -> codes [ceil(T / FRAME), 8], from a fresh state."""
    mimi.reset_streaming()
    frames = np.zeros((-(-len(pcm) // FRAME), FRAME), np.float32)
    frames.reshape(-1)[: len(pcm)] = pcm
    return np.concatenate([mimi.encode(torch.from_numpy(frame)[None, None])[0].T.numpy() for frame in frames])


@torch.no_grad()
def main() -> None:
    folder = Path(tempfile.mkdtemp()) / "checkpoint"
    write(folder)
    config = json.loads((folder / "config.json").read_text())
    mimi, lm = load_mimi(folder, config), load_lm(folder, config)

    voice, _ = soundfile.read(GOLDEN / "voice.wav")
    loudness = pyloudnorm.Meter(24000).integrated_loudness(voice)
    voice = pyloudnorm.normalize.loudness(voice, loudness, -24.0).astype(np.float32)
    voice_codes = encode(mimi, voice)
    user, _ = soundfile.read(GOLDEN / "user.wav", dtype="float32")
    user_codes = encode(mimi, user[: FRAMES * FRAME])
    assert len(user_codes) == FRAMES

    tokenizer = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer_spm_32k_3.model"))
    text = tokenizer.encode(f"<system> {PROMPT} <system>")
    prompt = [(PAD, codes) for codes in voice_codes]
    prompt += [(PAD, SILENCE)] * 6 + [(token, SILENCE) for token in text] + [(PAD, SILENCE)] * 6

    forced: dict[str, object] = {}

    def force_text(token: torch.Tensor) -> None:
        if forced["text"] is not None:
            token[:] = forced["text"]

    def force_audio(codes: torch.Tensor) -> None:
        for book, code in forced["audio"].items():
            codes[:, book] = code

    generator = LMGen(lm, use_sampling=False, on_text_hook=force_text, on_audio_hook=force_audio)
    generator.streaming_forever(1)
    out = []
    for call in range(len(prompt) + FRAMES - 1):
        in_prompt = call < len(prompt)
        user_frame = SINE if in_prompt else user_codes[call - len(prompt)]
        # A call draws column call + 1: the text and codebook 0 of frame call + 1, the other codebooks of frame call.
        upcoming = prompt[call + 1] if call + 1 < len(prompt) else None
        forced["text"] = upcoming[0] if upcoming else None
        forced["audio"] = {0: int(upcoming[1][0])} if upcoming else {}
        if in_prompt:
            forced["audio"] |= {book: int(prompt[call][1][book]) for book in range(1, 8)}
        answer = generator.step(torch.tensor(user_frame, dtype=torch.long).view(1, 8, 1))
        if call >= len(prompt) - 1:
            out.append(answer[0, :, 0].numpy())
    tokens = np.stack(out)[:, :9]
    assert tokens[0].tolist() == [PAD, *SILENCE]

    mimi.reset_streaming()
    codes = torch.from_numpy(np.ascontiguousarray(tokens[:, 1:]))
    pcm = np.concatenate([mimi.decode(frame[None, :, None])[0, 0].numpy() for frame in codes])
    np.savez_compressed(
        HERE / "oracle.npz",
        voice_codes=voice_codes, user_codes=user_codes, text_prompt_tokens=text, out_tokens=tokens, pcm=pcm,
    )  # fmt: skip
    print(f"{len(prompt)} prompt frames, {len(tokens)} frames, {len(np.unique(tokens[:, 1:]))} different codes")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))
    main()
