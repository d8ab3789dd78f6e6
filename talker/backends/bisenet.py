"""BiSeNet for face parsing (Yu et al. 2018), with a ResNet-18 context path.

Written from the paper. Parameters are named as in the published CelebAMask-HQ checkpoint, whose
spatial path is the stride-8 stage of the ResNet.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

CLASSES = (
    *("background", "skin", "left_brow", "right_brow", "left_eye", "right_eye", "glasses"),
    *("left_ear", "right_ear", "earring", "nose", "mouth", "upper_lip", "lower_lip"),
    *("neck", "necklace", "cloth", "hair", "hat"),
)
"""Classes of CelebAMask-HQ in the order of the network's outputs."""


class ConvBNReLU(nn.Module):
    """Convolution without bias, batch normalization and ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class BasicBlock(nn.Module):
    """Residual block of two 3 x 3 convolutions (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(residual + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """ResNet-18 without its classifier; returns the features at strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        stride8 = self.layer2(self.layer1(x))
        stride16 = self.layer3(stride8)
        return stride8, stride16, self.layer4(stride16)


class AttentionRefinement(nn.Module):
    """Attention refinement module: channels are reweighted by their global average."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(inputs, outputs)
        self.conv_atten = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        attention = self.bn_atten(self.conv_atten(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(attention)


class ContextPath(nn.Module):
    """Features at strides 8 and 16, refined from the coarsest to the finest."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = ResNet18()
        self.arm16 = AttentionRefinement(256, 128)
        self.arm32 = AttentionRefinement(512, 128)
        self.conv_head32 = ConvBNReLU(128, 128)
        self.conv_head16 = ConvBNReLU(128, 128)
        self.conv_avg = ConvBNReLU(512, 128, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the spatial features [N, 128, H/8, W/8] and the context of the same shape."""
        stride8, stride16, stride32 = self.resnet(x)
        context = self.conv_avg(stride32.mean((2, 3), keepdim=True))
        context = self.arm32(stride32) + context
        context = self.conv_head32(interpolate(context, stride16.shape[2:]))
        context = self.arm16(stride16) + context
        return stride8, self.conv_head16(interpolate(context, stride8.shape[2:]))


class FeatureFusion(nn.Module):
    """Feature fusion module: joins spatial and context features with channel attention."""

    def __init__(self) -> None:
        super().__init__()
        self.convblk = ConvBNReLU(256, 256, 1)
        self.conv1 = nn.Conv2d(256, 64, 1, bias=False)
        self.conv2 = nn.Conv2d(64, 256, 1, bias=False)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        x = self.convblk(torch.cat([spatial, context], 1))
        attention = self.conv2(torch.relu(self.conv1(x.mean((2, 3), keepdim=True))))
        return x + x * torch.sigmoid(attention)


class Output(nn.Module):
    """Two convolutions from features to class scores."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(inputs, hidden)
        self.conv_out = nn.Conv2d(hidden, classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv(x))


class BiSeNet(nn.Module):
    """Scores [N, C, H, W] of images [N, 3, H, W]; height and width are multiples of 32."""

    def __init__(self, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.cp = ContextPath()
        self.ffm = FeatureFusion()
        self.conv_out = Output(256, 256, classes)
        # The auxiliary outputs of training are in the checkpoint but not used for prediction.
        self.conv_out16 = Output(128, 64, classes)
        self.conv_out32 = Output(128, 64, classes)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.conv_out(self.ffm(*self.cp(x)))
        return interpolate(scores, x.shape[2:], mode="bilinear", align_corners=True)
