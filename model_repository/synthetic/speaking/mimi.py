"""Mimi in PyTorch, for training: whole utterances at once, with the parameter names of the published checkpoint.

The serving graphs compute the same frame by frame. The quantizer is not here: `quantizer.py` has its codebooks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_repository.checkpoint.geometry import MimiGeometry, TransformerGeometry
from model_repository.synthetic.speaking.training import attend, rotate, rotations

ENCODER_DROPOUT = 0.1
"""In the encoder's transformer."""


class _Named(nn.Module):
    """Holds a module under the name `conv` or `convtr`, as the published parameters have it."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class Convolution(nn.Module):
    """Causal convolution [N, in, 1, T] -> [N, out, 1, T / stride].

    The input has two dimensions, one of them of size 1, and its channels last in memory: PyTorch's one-dimensional
    convolutions are slower.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = _Named(conv=nn.Conv1d(inputs, outputs, kernel, stride))
        self._left, self._stride = kernel - stride, stride

    @property
    def convolution(self) -> nn.Conv1d:
        """Holds the parameters."""
        return self.conv.conv

    def forward(self, x: Tensor) -> Tensor:
        weight = self.convolution.weight[:, :, None].contiguous(memory_format=torch.channels_last)
        padded = functional.pad(x, (self._left, 0))
        return functional.conv2d(padded, weight, self.convolution.bias, stride=(1, self._stride))


class TransposedConvolution(nn.Module):
    """Causal transposed convolution [N, in, 1, T] -> [N, out, 1, T * stride].

    It is computed as a convolution of two steps that makes `stride` samples of each: the gradient of PyTorch 2.13's
    transposed convolution in bfloat16 is wrong for few channels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.convtr = _Named(convtr=nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride))
        self._stride = stride

    @property
    def convolution(self) -> nn.ConvTranspose1d:
        """Holds the parameters."""
        return self.convtr.convtr

    def forward(self, x: Tensor) -> Tensor:
        convolution, stride = self.convolution, self._stride
        inputs, outputs, _ = convolution.weight.shape
        # Sample j of step t is W[j] x[t] + W[stride + j] x[t - 1].
        taps = torch.stack([convolution.weight[:, :, stride:], convolution.weight[:, :, :stride]], dim=-1)
        weight = taps.permute(2, 1, 0, 3).reshape(stride * outputs, inputs, 1, 2)
        weight = weight.contiguous(memory_format=torch.channels_last)
        output = functional.conv2d(functional.pad(x, (1, 0)), weight, convolution.bias.repeat(stride))
        count, _, _, steps = output.shape
        return output.permute(0, 2, 3, 1).reshape(count, 1, steps * stride, outputs).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """x + conv1(elu(conv3(elu(x))))."""

    def __init__(self, channels: int, geometry: MimiGeometry) -> None:
        super().__init__()
        inner = channels // geometry.compress
        self.block = nn.ModuleDict(
            {
                "1": Convolution(channels, inner, geometry.residual_kernel_size),
                "3": Convolution(inner, channels, 1),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block["3"](functional.elu(self.block["1"](functional.elu(x))))


class SeanetEncoder(nn.Module):
    """Sound [N, 1, T] -> [N, dimension, T / 960]."""

    def __init__(self, geometry: MimiGeometry) -> None:
        super().__init__()
        width = geometry.n_filters
        model: dict[str, nn.Module] = {"0": Convolution(1, width, geometry.kernel_size)}
        for stage, ratio in enumerate(reversed(geometry.ratios)):
            model[str(3 * stage + 1)] = ResidualBlock(width, geometry)
            model[str(3 * stage + 3)] = Convolution(width, 2 * width, 2 * ratio, ratio)
            width *= 2
        model[str(3 * len(geometry.ratios) + 2)] = Convolution(width, geometry.dimension, geometry.last_kernel_size)
        self.model = nn.ModuleDict(model)

    def forward(self, x: Tensor) -> Tensor:
        x = _two_dimensional(x)
        for name, module in self.model.items():
            follows_activation = name != "0" and isinstance(module, Convolution)
            x = module(functional.elu(x) if follows_activation else x)
        return x[:, :, 0]


class SeanetDecoder(nn.Module):
    """[N, dimension, S] at 25 Hz -> sound [N, 1, 960 S]."""

    def __init__(self, geometry: MimiGeometry) -> None:
        super().__init__()
        width = geometry.n_filters * 2 ** len(geometry.ratios)
        model: dict[str, nn.Module] = {"0": Convolution(geometry.dimension, width, geometry.kernel_size)}
        for stage, ratio in enumerate(geometry.ratios):
            model[str(3 * stage + 2)] = TransposedConvolution(width, width // 2, ratio)
            width //= 2
            model[str(3 * stage + 3)] = ResidualBlock(width, geometry)
        self._exact = (str(3 * len(geometry.ratios)), str(3 * len(geometry.ratios) + 2))
        self._last = self._exact[-1]
        model[self._last] = Convolution(width, 1, geometry.last_kernel_size)
        self.model = nn.ModuleDict(model)

    @property
    def last(self) -> nn.Module:
        """The convolution that makes samples."""
        return self.model[self._last]

    def forward(self, x: Tensor) -> Tensor:
        """The last block and convolution are in single precision, also in mixed precision."""
        x = _two_dimensional(x)
        for name, module in self.model.items():
            follows_activation = name != "0" and not isinstance(module, ResidualBlock)
            if name in self._exact:
                with torch.autocast("cpu", enabled=False):
                    x = module(functional.elu(x.float()) if follows_activation else x.float())
            else:
                x = module(functional.elu(x) if follows_activation else x)
        return x[:, :, 0]


def _two_dimensional(x: Tensor) -> Tensor:
    """[N, C, T] -> [N, C, 1, T], the channels last in memory."""
    return x[:, :, None].contiguous(memory_format=torch.channels_last)


class _Attention(nn.Module):
    def __init__(self, geometry: TransformerGeometry) -> None:
        super().__init__()
        self._geometry = geometry
        self.in_proj_weight = nn.Parameter(torch.empty(3 * geometry.dim, geometry.dim))
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj = nn.Linear(geometry.dim, geometry.dim, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, mask: Tensor) -> Tensor:
        geometry = self._geometry
        projected = functional.linear(x, self.in_proj_weight).float()
        parts = projected.unflatten(-1, (3, geometry.num_heads, geometry.head_dim))
        query, key = rotate(parts[:, :, :2], rotary[:, None, None]).transpose(1, 3).unbind(2)
        mixed = attend(query, key, parts[:, :, 2].transpose(1, 2), attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class _Scale(nn.Module):
    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class _Layer(nn.Module):
    def __init__(self, geometry: TransformerGeometry, layer_scale: float, dropout: float) -> None:
        super().__init__()
        self._dropout = dropout
        self.self_attn = _Attention(geometry)
        self.norm1, self.norm2 = nn.LayerNorm(geometry.dim), nn.LayerNorm(geometry.dim)
        self.linear1 = nn.Linear(geometry.dim, geometry.hidden, bias=False)
        self.linear2 = nn.Linear(geometry.hidden, geometry.dim, bias=False)
        self.layer_scale_1, self.layer_scale_2 = _Scale(geometry.dim, layer_scale), _Scale(geometry.dim, layer_scale)

    def forward(self, x: Tensor, rotary: Tensor, mask: Tensor) -> Tensor:
        x = x + self._dropped(self.layer_scale_1(self.self_attn(self.norm1(x), rotary, mask)))
        return x + self._dropped(self.layer_scale_2(self.linear2(functional.gelu(self.linear1(self.norm2(x))))))

    def _dropped(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self._dropout, self.training)


class Transformer(nn.Module):
    """Mimi's transformer [N, S, dim] -> [N, S, dim] at 25 Hz, `steps` of which make a frame."""

    def __init__(self, geometry: TransformerGeometry, layer_scale: float, steps: int, dropout: float = 0.0) -> None:
        super().__init__()
        self._steps, self._window = steps, geometry.window
        self._head_dim, self._max_period = geometry.head_dim, geometry.max_period
        layers = nn.ModuleList(_Layer(geometry, layer_scale, dropout) for _ in range(geometry.num_layers))
        self.transformer = nn.ModuleDict({"layers": layers})

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1])
        # The keys of a whole frame are written before its first query is made.
        ends = (positions // self._steps + 1) * self._steps
        keys = positions[None]
        heard = (keys <= positions[:, None]) & (keys >= ends[:, None] - self._window)
        mask = torch.zeros(heard.shape).masked_fill(~heard, -torch.inf)
        rotary = rotations(positions, self._head_dim, self._max_period)
        for layer in self.transformer["layers"]:
            x = layer(x, rotary, mask)
        return x


class Downsample(nn.Module):
    """[N, dim, 2 F] -> [N, dim, F]; the first step is repeated before the beginning."""

    def __init__(self, geometry: MimiGeometry) -> None:
        super().__init__()
        steps = geometry.steps_per_frame
        convolution = nn.Conv1d(geometry.dimension, geometry.dimension, 2 * steps, steps, bias=False)
        self.conv = _Named(conv=_Named(conv=convolution))
        self._left = steps

    def forward(self, x: Tensor) -> Tensor:
        return self.conv.conv.conv(functional.pad(x, (self._left, 0), mode="replicate"))


class Upsample(nn.Module):
    """[N, dim, F] -> [N, dim, 2 F], every channel by itself."""

    def __init__(self, geometry: MimiGeometry) -> None:
        super().__init__()
        steps, dim = geometry.steps_per_frame, geometry.dimension
        convolution = nn.ConvTranspose1d(dim, dim, 2 * steps, steps, groups=dim, bias=False)
        # Begin with each frame held; the frame before is faded out.
        with torch.no_grad():
            convolution.weight.copy_(torch.tensor([0.75, 1.0, 0.25, 0.0]).expand(dim, 1, 4))
        self.convtr = _Named(convtr=_Named(convtr=convolution))
        self._steps = steps

    def forward(self, x: Tensor) -> Tensor:
        return self.convtr.convtr.convtr(x)[..., : x.shape[-1] * self._steps]


class Encoder(nn.Module):
    """The encoding half of the codec, without its quantizer."""

    def __init__(self, geometry: MimiGeometry) -> None:
        super().__init__()
        self.encoder = SeanetEncoder(geometry)
        self.encoder_transformer = Transformer(
            geometry.transformer, geometry.layer_scale, geometry.steps_per_frame, ENCODER_DROPOUT
        )
        self.downsample = Downsample(geometry)

    def latents(self, features: Tensor) -> Tensor:
        """Features of `encoder` [N, 2 F, dim] at 25 Hz -> latents [N, F, dim]: what the quantizer takes."""
        return self.downsample(self.encoder_transformer(features).transpose(1, 2)).transpose(1, 2)


class Decoder(nn.Module):
    """The decoding half: sums of acoustic centroids [N, F, codebook_dim] -> sound [N, 1920 F]."""

    def __init__(self, geometry: MimiGeometry) -> None:
        super().__init__()
        self.output_proj = nn.Conv1d(geometry.codebook_dim, geometry.dimension, 1, bias=False)
        self.upsample = Upsample(geometry)
        self.decoder_transformer = Transformer(geometry.transformer, geometry.layer_scale, geometry.steps_per_frame)
        self.decoder = SeanetDecoder(geometry)

    def forward(self, sums: Tensor) -> Tensor:
        steps = self.upsample(self.output_proj(sums.transpose(1, 2))).transpose(1, 2)
        return self.decoder(self.decoder_transformer(steps).transpose(1, 2))[:, 0]
