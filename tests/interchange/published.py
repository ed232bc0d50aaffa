"""Networks whose parameters have the names of published code, in words of our own, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Fires(nn.Module):
    """Neurons on ``[T N, ...]``, step by step; what they fire is kept."""

    def __init__(self, steps: int, decay: float, above: bool) -> None:
        super().__init__()
        self.steps, self.decay, self.above = steps, decay, above
        self.fired: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        potential, spikes = torch.zeros_like(x[: len(x) // self.steps]), []
        for current in x.chunk(self.steps):
            potential = self.decay * potential + current
            spike = self.fire(potential)
            potential = potential * (1 - spike)
            spikes.append(spike)
        self.fired.append(torch.stack(spikes))
        return torch.cat(spikes)

    def fire(self, potential: Tensor) -> Tensor:
        return (potential > 1 if self.above else potential >= 1).float()


class Published(nn.Module):
    """A network on images ``[N, C, H, W]``: they are normalized and repeated, scores are means over time."""

    decay, above, mean, std = 1.0, False, 0.45, 0.25

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def fires(self) -> Fires:
        return Fires(self.steps, self.decay, self.above)

    def forward(self, x: Tensor) -> Tensor:
        sequence = ((x - self.mean) / self.std).repeat(self.steps, 1, 1, 1)
        return self.body(sequence).view(self.steps, len(x), -1).mean(0)

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def randomized(net: Published) -> Published:
    """Batch norms as after a training; neurons fire."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean, m.running_var = (
                0.3 * torch.randn(m.num_features),
                torch.rand(m.num_features) + 0.1,
            )
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0.4, 0.5)
    return net.eval()


class RatVGG(Published):
    """VGG-11 of SNN-RAT with few hidden neurons."""

    def __init__(self, steps: int = 2, side: int = 8, hidden: int = 7) -> None:
        super().__init__(steps)
        inputs = 3
        for k, group in enumerate(([64], [128, 256], [512, 512, 512], [512, 512], []), 1):
            layers: list[nn.Module] = []
            for outputs in group:
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), self.fires()]
                inputs = outputs
            setattr(self, f"layer{k}", nn.Sequential(*layers, *[nn.AvgPool2d(2)] * (k <= 3)))
        first = nn.Linear(512 * (side // 8) ** 2, hidden)
        second, third = nn.Linear(hidden, hidden + 1), nn.Linear(hidden + 1, 4)
        nn.init.normal_(first.weight, 0, 0.2)
        nn.init.normal_(second.weight, 0.3, 0.5)
        self.classifier = nn.Sequential(nn.Flatten(), first, self.fires(), second, self.fires(), third)

    def body(self, x: Tensor) -> Tensor:
        for k in range(1, 6):
            x = self.get_submodule(f"layer{k}")(x)
        scores: Tensor = self.classifier(x)
        return scores


class RatJoin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.comb = nn.Parameter(torch.tensor([0.6, 0.7]))


class RatBlock(nn.Module):
    """Batch norm and neurons before each convolution; a learned mixture with the shortcut."""

    def __init__(self, net: Published, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.act1 = nn.BatchNorm2d(inputs), net.fires()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(outputs), net.fires()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None
        self.convex = RatJoin()

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.act1(self.bn1(x))
        deep = self.conv2(self.act2(self.bn2(self.conv1(spikes))))
        a, b = self.convex.comb
        joined: Tensor = a * (x if self.convShortcut is None else self.convShortcut(spikes)) + b * deep
        return joined


class RatWRN(Published):
    """WRN-16 of SNN-RAT, four times as narrow."""

    def __init__(self, steps: int = 2, blocks: int = 2) -> None:
        super().__init__(steps)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        inputs = 16
        for k, (outputs, stride) in enumerate(((16, 1), (32, 2), (64, 2)), 1):
            group = [RatBlock(self, inputs, outputs, stride)]
            group += [RatBlock(self, outputs, outputs, 1) for _ in range(blocks - 1)]
            setattr(self, f"block{k}", nn.Sequential(*group))
            inputs = outputs
        self.bn1, self.act, self.fc = nn.BatchNorm2d(inputs), self.fires(), nn.Linear(inputs, 4)

    def body(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for k in (1, 2, 3):
            x = self.get_submodule(f"block{k}")(x)
        scores: Tensor = self.fc(self.act(self.bn1(x)).mean((-2, -1)))
        return scores


class Sequenced(nn.Module):
    """A container whose content is called ``module``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.module = layers[0] if len(layers) == 1 else nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.module(x)
        return result


class TetLayer(nn.Module):
    def __init__(self, net: Published, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.fwd = Sequenced(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs))
        self.act = net.fires()

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.act(self.fwd(x))
        return spikes


class TetVGG(Published):
    """VGGSNN of TET, with few channels; its neurons fire above 1."""

    decay, above = 0.5, True

    def __init__(self, pooled: bool, steps: int = 3, inputs: int = 2, side: int = 16) -> None:
        super().__init__(steps)
        layers: list[nn.Module] = []
        for k, outputs in enumerate((3, 4, 5, 5, 6, 6, 6, 6)):
            layers.append(TetLayer(self, inputs, outputs, 2 if k % 2 and not pooled else 1))
            layers += [Sequenced(nn.AvgPool2d(2))] * (pooled and k % 2)
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = Sequenced(nn.Linear(6 * (side // 16) ** 2, 4))

    def body(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(x).flatten(1))
        return scores


class TetNorm(nn.Module):
    """A batch norm under two names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.seqbn = Sequenced(self.bn)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.seqbn(x)
        return result


class TetPair(nn.Module):
    """A layer and its batch norm, both under another name, too."""

    def __init__(self, layer: nn.Module, bn: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.bn = Sequenced(layer), bn

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y if self.bn is None else self.bn(y)


class TetBlock(nn.Module):
    def __init__(self, net: Published, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = TetNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = TetNorm(outputs)
        other = inputs != outputs or stride != 1
        beside = TetPair(nn.Conv2d(inputs, outputs, 1, stride, bias=False), TetNorm(outputs))
        self.downsample = beside if other else None
        self.conv1_s, self.conv2_s = TetPair(self.conv1, self.bn1), TetPair(self.conv2, self.bn2)
        self.spike = net.fires()

    def forward(self, x: Tensor) -> Tensor:
        deep = self.conv2_s(self.spike(self.conv1_s(x)))
        spikes: Tensor = self.spike(deep + (x if self.downsample is None else self.downsample(x)))
        return spikes


class TetResNet(Published):
    """ResNet-19 of TET, with few channels."""

    decay, above = 0.5, True

    def __init__(self, steps: int = 2) -> None:
        super().__init__(steps)
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), TetNorm(4)
        self.conv1_s = TetPair(self.conv1, self.bn1)
        inputs = 4
        for k, (outputs, count) in enumerate(((6, 3), (8, 3), (10, 2)), 1):
            blocks = [TetBlock(self, inputs, outputs, 1 if k == 1 else 2)]
            blocks += [TetBlock(self, outputs, outputs, 1) for _ in range(count - 1)]
            setattr(self, f"layer{k}", nn.Sequential(*blocks))
            inputs = outputs
        self.fc1, self.fc2 = nn.Linear(10, 6), nn.Linear(6, 4)
        nn.init.normal_(self.fc1.weight, 0.3, 0.8)
        self.fc1_s, self.fc2_s = TetPair(self.fc1), TetPair(self.fc2)
        self.spike = self.fires()

    def body(self, x: Tensor) -> Tensor:
        x = self.spike(self.conv1_s(x))
        for k in (1, 2, 3):
            x = self.get_submodule(f"layer{k}")(x)
        scores: Tensor = self.fc2_s(self.spike(self.fc1_s(x.mean((-2, -1)))))
        return scores


class SewBlock(nn.Module):
    """Two convolutions, or three, whose spikes are added to the shortcut's."""

    def __init__(self, net: Published, shape: tuple[int, int, int], deep: bool, contained: bool) -> None:
        super().__init__()
        inputs, outputs, stride = shape
        middle = outputs // 2 if deep else outputs
        sizes = [(inputs, middle, 1), (middle, middle, 3), (middle, outputs, 1)]
        self.count, self.contained = 3 if deep else 2, contained
        for k, (a, b, kernel) in enumerate(
            sizes if deep else [(inputs, outputs, 3), (outputs, outputs, 3)], 1
        ):
            conv = nn.Conv2d(a, b, kernel, stride if k == self.count - 1 else 1, kernel // 2, bias=False)
            norm = nn.BatchNorm2d(b)
            setattr(self, f"conv{k}", Sequenced(conv, norm) if contained else conv)
            if not contained:
                setattr(self, f"bn{k}", norm)
            setattr(self, f"sn{k}", net.fires())
        self.downsample: nn.Module | None = None
        self.beside: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            pair = nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            fires = net.fires()
            self.downsample = nn.Sequential(Sequenced(*pair), fires) if contained else nn.Sequential(*pair)
            self.beside = nn.Identity() if contained else fires

    def forward(self, x: Tensor) -> Tensor:
        deep = x
        for k in range(1, self.count + 1):
            deep = self.get_submodule(f"conv{k}")(deep)
            if not self.contained:
                deep = self.get_submodule(f"bn{k}")(deep)
            deep = self.get_submodule(f"sn{k}")(deep)
        shortcut: Tensor = x if self.downsample is None else self.beside(self.downsample(x))
        return deep + shortcut


class SewResNet(Published):
    """SEW-ResNet with few channels, as its authors name it (``contained``) or as spikingjelly does."""

    def __init__(self, deep: bool, contained: bool, steps: int = 2) -> None:
        super().__init__(steps)
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4)
        self.sn1, self.maxpool = self.fires(), nn.MaxPool2d(3, 2, 1)
        inputs = 4
        for k, outputs in enumerate((4, 6, 8, 10), 1):
            shapes = [(inputs, outputs, 1 if k == 1 else 2)] + [(outputs, outputs, 1)] * (k % 2)
            blocks = [SewBlock(self, shape, deep, contained) for shape in shapes]
            setattr(self, f"layer{k}", nn.Sequential(*blocks))
            inputs = outputs
        self.fc = nn.Linear(inputs, 4)

    def body(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.sn1(self.bn1(self.conv1(x))))
        for k in range(1, 5):
            x = self.get_submodule(f"layer{k}")(x)
        scores: Tensor = self.fc(x.mean((-2, -1)))
        return scores
